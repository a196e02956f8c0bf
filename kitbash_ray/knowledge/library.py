"""All cartridges of a folder: which there are, what is in them, and whether anything changed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import FACTS, MANIFEST, PASSAGES, Cartridge, Fact, load_cartridge

#: Files that the index is made of; questions are for measuring and change nothing.
INDEXED = (MANIFEST, FACTS, PASSAGES)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a library held when it was read: good cartridges, and a sentence for each bad one."""

    cartridges: tuple[Cartridge, ...]
    problems: tuple[str, ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(fact for cartridge in self.cartridges for fact in cartridge.facts)


class Library:
    """A folder of cartridges."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: tuple[object, ...] = ()
        self._fingerprint = ""

    def folders(self) -> list[Path]:
        """Folders that are cartridges, by name. Raises CartridgeError when the library is none."""
        if not self.folder.is_dir():
            raise CartridgeError(f"There is no cartridges folder {str(self.folder)!r}; make it or set CARTRIDGES_DIR.")
        return sorted(path.parent for path in self.folder.glob(f"*/{MANIFEST}"))

    def fingerprint(self) -> str:
        """A hash of the content of every indexed file; reads them again only when one was touched."""
        files = [path for folder in self.folders() for name in INDEXED if (path := folder / name).is_file()]
        seen = tuple((str(path), (stat := path.stat()).st_mtime_ns, stat.st_size, stat.st_ino) for path in files)
        if seen != self._seen or not self._fingerprint:
            digest = hashlib.blake2b(digest_size=12)
            for path in files:
                content = path.read_bytes()
                digest.update(f"{path.parent.name}/{path.name}\0{len(content)}\0".encode() + content)
            self._fingerprint, self._seen = digest.hexdigest(), seen
        return self._fingerprint

    def load(self) -> Contents:
        """Every cartridge; one that cannot be read becomes a problem and does not stop the others."""
        cartridges, problems = [], []
        for folder in self.folders():
            try:
                cartridges.append(load_cartridge(folder))
            except CartridgeError as error:
                problems.append(str(error))
        return Contents(tuple(cartridges), tuple(problems))
