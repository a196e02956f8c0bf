"""Build products over a library: made when its content is new, found again when it is not.

Each lives in `<cache>/index/<version>/`, where the version hashes the cartridges' content,
the embedding model and the index format. A lock makes a second process wait for the first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from kitbash_ray.config import Settings
from kitbash_ray.errors import LibraryChanged
from kitbash_ray.knowledge import grain_index, retrieval
from kitbash_ray.knowledge.embedder import Embeds, open_embedder
from kitbash_ray.knowledge.grain_index import Arrays
from kitbash_ray.knowledge.library import Contents, Library
from kitbash_ray.knowledge.vectors import Progress, VectorStore

#: Raise it when the arrays or the table change their shape.
FORMAT = 7
PROBLEMS = "problems.json"
#: Attempts to index a library that is being edited.
TRIES = 10
#: Build products kept besides the newest, and the age in seconds below which none is removed,
#: because another process may still read it.
KEEP, KEEP_S = 3, 3600.0


def open_builder(settings: Settings) -> IndexBuilder:
    """The builder over CARTRIDGES_DIR with the embedder of the settings. Loads the model."""
    store = VectorStore(open_embedder(settings), settings.cache_dir)
    return IndexBuilder(Library(settings.cartridges_dir), store, settings.cache_dir)


class IndexBuilder:
    """The index over one library. Blocking; `problems` has a sentence for each bad cartridge."""

    def __init__(self, library: Library, store: VectorStore, cache_dir: Path) -> None:
        self.library = library
        self.problems: tuple[str, ...] = ()
        self._store = store
        self._root = cache_dir / "index"

    @property
    def embedder(self) -> Embeds:
        return self._store.embedder

    def version(self) -> str:
        """Names the content as it is on disk now."""
        made_of = f"{FORMAT}\0{self.library.fingerprint()}\0{self._store.embedder.model_id}"
        return hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()

    def build(self, progress: Progress | None = None) -> str:
        """Make whatever is missing for the newest content, and name its version.

        Starts again when the library is edited meanwhile. Raises CartridgeError.
        """
        for _ in range(TRIES):
            version = self.version()
            with suppress(LibraryChanged):
                self.grains(version, progress)
                self.table(version, progress)
                return version
        raise LibraryChanged("The cartridges are changed faster than they are indexed; try again when that is over.")

    def grains(self, version: str, progress: Progress | None = None) -> Arrays:
        """Layer 0's arrays for `version`."""
        folder = self._folder(version)
        target = folder / "grains.npz"
        with FileLock(folder.with_suffix(".lock")):
            if not target.is_file():
                contents = self._contents(folder)
                grain_index.save_arrays(grain_index.build_arrays(contents.facts, self._store, progress), target)
            self._recall(folder)
        return grain_index.load_arrays(target)

    def table(self, version: str, progress: Progress | None = None) -> Path:
        """The folder of layer 2's table for `version`."""
        folder = self._folder(version)
        target = folder / "table"
        with FileLock(folder.with_suffix(".lock")):
            if not target.is_dir():
                retrieval.build_table(self._contents(folder).facts, self._store, target, progress)
            self._recall(folder)
        return target

    def _contents(self, folder: Path) -> Contents:
        """The library; its problems are kept with what is built from it."""
        contents = self.library.load()
        if self.version() != folder.name:
            raise LibraryChanged("The cartridges are being changed while they are indexed; try again when that is over.")
        (folder / PROBLEMS).write_text(json.dumps(contents.problems))
        return contents

    def _recall(self, folder: Path) -> None:
        self.problems = tuple(json.loads((folder / PROBLEMS).read_text()))

    def _folder(self, version: str) -> Path:
        folder = self._root / version
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self._prune()
        return folder

    def _prune(self) -> None:
        folders = sorted((p for p in self._root.iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
        for folder in folders[KEEP + 1 :]:
            if time.time() - folder.stat().st_mtime > KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)
                folder.with_suffix(".lock").unlink(missing_ok=True)
