"""Keeps Ray running on one device of several, and ends everything else there with it: `python -m actors.keeper`.

What to keep comes as JSON on standard input. `ray down` stops Ray on the head and nothing more;
so the keeper there, when it sees that, ends Redis and HAProxy and tells the other devices. On
those Ray ends by itself after a while without the head, and its keeper starts it again; so does
the head's with a Redis that died. Not here: starting the layers (launch.py).
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil

from actors.cluster import end_processes, ray_log
from actors.kept import Kept, tell_down
from kitbash_ray.blackboard import DOWN
from kitbash_ray.config import child_environment
from kitbash_ray.devices import head_redis
from kitbash_ray.errors import StoreError
from kitbash_ray.redis_client import FAULTS, connect_sync
from kitbash_ray.state import read_record, record_file, write_record

#: A device whose head was away for so long stops trying: it is not coming back by itself.
GIVE_UP_S = 900.0
LOOK_EVERY_S = 0.5
#: Ray's processes appear one by one; one that is missing for so long is missing.
GONE_S = 3.0
LINK_MS = 10_000


class Keeper:
    """One device's Ray, from start to end."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        #: Set when the cluster is to end.
        self._over = threading.Event()

    def run(self) -> None:
        if self._kept.joins:
            threading.Thread(target=self._listen, name="down", daemon=True).start()
        while self._head_is_there():
            stopped = self._watch(self._start())
            if stopped or not self._kept.joins:
                break
            self._over.wait(1)
        self._end()

    def _head_is_there(self) -> bool:
        """Wait until the head takes connections; False when it is too late.

        Ray's own attempts wait longer and longer, so it is started when the link is there.
        """
        if not self._kept.joins:
            return True
        host, _, port = self._kept.joins.rpartition(":")
        end = time.monotonic() + GIVE_UP_S
        while not self._over.is_set() and time.monotonic() < end:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return True
            except OSError:
                self._over.wait(LOOK_EVERY_S)
        return False

    def _start(self) -> subprocess.Popen[bytes]:
        with ray_log(self._kept.settings).open("wb") as output:
            return subprocess.Popen(
                self._kept.command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def _watch(self, process: subprocess.Popen[bytes]) -> bool:
        """Return when Ray is gone: True if somebody stopped it, False if it ended by itself."""
        seen = time.monotonic()
        begun = False
        while process.poll() is None and not self._over.wait(LOOK_EVERY_S):
            self._mind_redis()
            if _has_raylet(process.pid):
                seen, begun = time.monotonic(), True
            # `ray stop` ends Ray's processes, but not the one that started them.
            elif begun and time.monotonic() - seen > GONE_S:
                return True
        return self._over.is_set()

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
        """Start the head's Redis again if its process is gone."""
        found = read_record(self._kept.settings)
        if found is None or found.id != self._kept.cluster_id or found.redis_pid is None or _lives(found.redis_pid):
            return
        server = head_redis(self._kept.settings)
        try:
            if server:
                print("Redis is gone; starting it again", flush=True)
                write_record(self._kept.settings, replace(found, redis_pid=server.start(child_environment())))
        except StoreError as error:
            print(error, flush=True)  # tried again at the next look

    def _end(self) -> None:
        if not self._kept.joins:
            tell_down(self._kept.settings)
        found = read_record(self._kept.settings)
        # First, so that whoever starts this device anew meanwhile does not take it for running.
        record_file(self._kept.settings).unlink(missing_ok=True)
        end_processes(self._kept.cluster_id, found, lambda what: None)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _has_raylet(pid: int) -> bool:
    try:
        return any(
            child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE for child in psutil.Process(pid).children()
        )
    except psutil.Error:
        return False


if __name__ == "__main__":
    Keeper(Kept.from_json(sys.stdin.read())).run()
