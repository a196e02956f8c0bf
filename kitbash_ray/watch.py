"""A thread that looks, once a second, whether the cartridges have changed on disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kitbash_ray.errors import KitbashError

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class Watch:
    """Calls `rebuild(version)` when there is new content, again and again until it succeeds."""

    def __init__(self, look: Callable[[], str], version: str, rebuild: Callable[[str], None]) -> None:
        """`look` names the content that is on disk now."""
        self._look = look
        self._version = version
        self._rebuild = rebuild
        #: Why the newest content could not be indexed, None when it is.
        self.problem: str | None = None
        threading.Thread(target=self._run, name="cartridge-watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            try:
                version = self._look()
                if version != self._version:
                    self._rebuild(version)
                    self._version = version
                self.problem = None
            except (KitbashError, OSError) as error:
                self.problem = str(error)
                log.warning("the cartridges cannot be indexed: %s", error)
