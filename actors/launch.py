"""Start the actors and the front door in a running cluster: `python -m actors.launch ADDRESS PORT`.

The settings come as JSON on standard input. A process of its own, so that whoever starts a
cluster does not carry Ray's threads and environment with it.
"""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve

import serve_app
from actors.deploy import NAMESPACE, start_actors, wait_ready
from kitbash_ray.config import Settings


def main() -> None:
    address, port = sys.argv[1], int(sys.argv[2])
    settings = Settings.model_validate_json(sys.stdin.read())
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    handles = start_actors(settings)
    print(f"starting {', '.join(handles)} and the front door", flush=True)
    # Both take seconds of imports in their own processes; the front door waits for the layers it needs.
    with ThreadPoolExecutor(1) as aside:
        ready = aside.submit(wait_ready, handles, lambda name, what: print(f"{name} is up ({what})", flush=True))
        serve.start(http_options={"host": settings.kitbash_host, "port": port})
        serve.run(serve_app.build(settings), name=serve_app.APP_NAME, route_prefix="/")
        ready.result()


if __name__ == "__main__":
    main()
