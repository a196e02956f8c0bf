"""Keeps Ray running on one device of several, and ends everything else there with it: `python -m actors.keeper`.

What to keep comes as JSON on standard input. Ray's processes that die are started again, and on
the head its two Redises too. `ray down` stops Ray on the head and nothing more; so the keeper
there, when it sees that, ends Redis and HAProxy and tells the other devices. On those Ray ends by
itself after a while without the head, and its keeper starts it again when the head is back. Of a
link that was cut Ray hears only when it is there again, so the keeper looks after that. Not here:
which process is which (ray_node.py), starting the layers (launch.py).
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psutil

from actors.cluster import end_processes, ray_log
from actors.kept import Kept, tell_down
from actors.ray_node import RayNode, State, adopt
from kitbash_ray.blackboard import DOWN
from kitbash_ray.config import Settings, child_environment
from kitbash_ray.devices import forget_ray, head_redis, ray_redis
from kitbash_ray.errors import StoreError
from kitbash_ray.redis_client import FAULTS, connect_sync
from kitbash_ray.redis_server import RedisServer
from kitbash_ray.state import Running, read_record, record_file, write_record

#: A device whose head was away for so long stops trying: it is not coming back by itself.
GIVE_UP_S = 900.0
LOOK_EVERY_S = 0.5
#: Over a link that was cut a connection is tried again after a second: so one that does not come at once is given up.
LINK_S, LINK_EVERY_S = 0.5, 0.1
#: How often it is looked whether the link is there, and after how long without it Ray is ended: by then the head has
#: given this device up. So all is ready to join anew when the link is back.
LINK_LOOK_EVERY_S, LOST_S = 3.0, 30.0
LINK_MS = 10_000
#: When Ray has come up and its layers with it, the next start is prepared, so that it takes some seconds less.
SPARE_AFTER_S = 15.0


class Keeper:
    """One device's Ray, from start to end."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        #: Set when the cluster is to end.
        self._over = threading.Event()

    def run(self) -> None:
        if self._kept.joins:
            threading.Thread(target=self._listen, name="down", daemon=True).start()
        first = True
        ray = RayNode(self._kept.command, ray_log(self._kept.settings))
        while True:
            ray.prepare()
            if not self._head_is_there():
                break
            ray.start()
            state = self._watch(ray)
            if state is State.STOPPED or (state is State.REFUSED and first and not self._kept.joins):
                break
            first = False
            print("Ray is gone; starting it again", flush=True)
            ray.end(but=self._redis_pids())
            if state is State.REFUSED:
                self._over.wait(1)
        self._end()

    def _head_is_there(self) -> bool:
        """Wait until the head takes connections; False when it is too late.

        Ray's own attempts wait longer and longer, so it is started when the link is there.
        """
        if not self._kept.joins:
            return not self._over.is_set()
        end = time.monotonic() + GIVE_UP_S
        while not self._over.is_set() and time.monotonic() < end:
            if self._linked():
                return True
            self._over.wait(LINK_EVERY_S)
        return False

    def _linked(self) -> bool:
        """Whether the head takes connections."""
        assert self._kept.joins
        host, _, port = self._kept.joins.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=LINK_S).close()
        except OSError:
            return False
        return True

    def _watch(self, ray: RayNode) -> State:
        """Return when Ray is gone or out of the head's reach, or the cluster is to end."""
        began = looked = linked = time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            self._mind_redis()
            if (state := ray.look()) is not State.RUNS:
                return state
            if time.monotonic() - began > SPARE_AFTER_S:
                ray.prepare()
            if self._kept.joins and time.monotonic() - looked > LINK_LOOK_EVERY_S:
                looked = time.monotonic()
                linked = looked if self._linked() else linked
                if looked - linked > LOST_S:
                    return State.DIED
        return State.STOPPED

    def _listen(self) -> None:
        """Wait for the head's word that the cluster ends."""
        url = self._kept.settings.resolved_redis_url
        # What is sent must be taken within LINK_MS: a link that was cut says nothing by itself.
        keepalive = {"socket_keepalive": True, "socket_keepalive_options": {socket.TCP_USER_TIMEOUT: LINK_MS}}
        while not self._over.is_set():
            try:
                with connect_sync(url, socket_timeout=5, **keepalive) as client:
                    channel = client.pubsub(ignore_subscribe_messages=True)
                    channel.subscribe(DOWN)
                    while not self._over.is_set():
                        message = channel.get_message(timeout=5.0)
                        if message and message["type"] == "message":
                            self._over.set()
                        elif not message:
                            channel.ping()
            except FAULTS:
                self._over.wait(1)

    def _mind_redis(self) -> None:
        """Start those of the head's Redises again whose process is gone."""
        if found := self._record():
            again = replace(
                found,
                redis_pid=self._revived(found.redis_pid, head_redis),
                ray_redis_pid=self._revived(found.ray_redis_pid, ray_redis),
            )
            if again != found:
                write_record(self._kept.settings, again)

    def _revived(self, pid: int | None, server: Callable[[Settings], RedisServer | None]) -> int | None:
        if pid is None or _lives(pid):
            return pid
        try:
            if again := server(self._kept.settings):
                print(f"The Redis in {again.folder} is gone; starting it again", flush=True)
                return again.start(child_environment())
        except StoreError as error:
            print(error, flush=True)  # tried again at the next look
        return pid

    def _redis_pids(self) -> list[int]:
        found = self._record()
        return [pid for pid in (found.redis_pid, found.ray_redis_pid) if pid] if found else []

    def _record(self) -> Running | None:
        found = read_record(self._kept.settings)
        return found if found and found.id == self._kept.cluster_id else None

    def _end(self) -> None:
        if not self._kept.joins:
            tell_down(self._kept.settings)
        found = read_record(self._kept.settings)
        # First, so that whoever starts this device anew meanwhile does not take it for running.
        record_file(self._kept.settings).unlink(missing_ok=True)
        end_processes(self._kept.cluster_id, found, lambda what: None)
        forget_ray(self._kept.settings)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    adopt()
    Keeper(Kept.from_json(sys.stdin.read())).run()
