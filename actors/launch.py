"""Start the actors and the front door in a running cluster: `python -m actors.launch ADDRESS PORT [RESOURCE...]`.

The settings come as JSON on standard input. A process of its own, so that whoever starts a
cluster does not carry Ray's threads and environment with it.

With resources the cluster has several devices, which may join later: an actor waits for the
device that has its resource instead of running anywhere, and the front door stays with layer 0.
"""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from ray.exceptions import GetTimeoutError

import serve_app
from actors.deploy import NAMESPACE, START_S, start_actors, wait_ready
from kitbash_ray.config import Settings

#: How long to wait for the next device: the first time it compiles llama.cpp.
DEVICES_S = 1800.0


def main() -> None:
    address, port, resources = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    settings = Settings.model_validate_json(sys.stdin.read())
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    handles = start_actors(settings, resources)
    print(f"starting {', '.join(handles)} and the front door", flush=True)
    # Both take seconds of imports in their own processes; the front door waits for the layers it needs.
    with ThreadPoolExecutor(1) as aside:
        patience = DEVICES_S if resources else START_S
        ready = aside.submit(wait_ready, handles, lambda name, what: print(f"{name} is up ({what})", flush=True), patience)
        # Replicas listen where the front door does, and HAProxy looks for those of its own device at the loopback.
        everywhere = resources and not settings.kitbash_host.startswith("127.")
        serve.start(http_options={"host": "0.0.0.0" if everywhere else settings.kitbash_host, "port": port})
        near = settings.grain_resource if settings.grain_resource in resources else None
        serve.run(serve_app.build(settings, near), name=serve_app.APP_NAME, route_prefix="/")
        if resources:
            print("the front door is up", flush=True)
        try:
            ready.result()
        except GetTimeoutError as error:
            if not resources:
                raise
            print(f"{error}: it begins when its device joins; `kitbash doctor` says what keeps it", flush=True)


if __name__ == "__main__":
    main()
