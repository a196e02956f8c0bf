"""Vectors of texts, kept on disk so that each text is embedded once per model.

One SQLite file per model, keyed by a hash of the text: an edited cartridge costs only its
new sentences. Several processes may use it at once.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from kitbash_ray.knowledge.embedder import Embeds
from kitbash_ray.knowledge.encoder import Vectors

#: Called with (texts done, texts in all) while a build goes on.
Progress = Callable[[int, int], None]
CHUNK = 64


class VectorStore:
    """An embedder with a memory."""

    def __init__(self, embedder: Embeds, cache_dir: Path) -> None:
        cache_dir.mkdir(parents=True, exist_ok=True)
        self.embedder = embedder
        self._path = cache_dir / f"vectors-{embedder.model_id}.sqlite3"
        with closing(self._open()) as store, store:
            store.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")

    def vectors(self, texts: Sequence[str], progress: Progress | None = None) -> Vectors:
        """Unit vectors of `texts`, shape (len(texts), dimensions), float32 with float16 precision."""
        keys = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        with closing(self._open()) as store:
            known = self._read(store, keys)
            missing = list({key: at for at, key in enumerate(keys) if key not in known}.values())
            for start in range(0, len(missing), CHUNK):
                if progress:
                    progress(len(texts) - len(missing) + start, len(texts))
                chunk = missing[start : start + CHUNK]
                made = self.embedder.embed([texts[at] for at in chunk]).astype(np.float16)
                fresh = {keys[at]: row.tobytes() for at, row in zip(chunk, made, strict=True)}
                with store:
                    store.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", fresh.items())
                known |= fresh
        if progress:
            progress(len(texts), len(texts))
        joined = b"".join(known[key] for key in keys)
        return np.frombuffer(joined, np.float16).reshape(len(texts), self.embedder.dimensions).astype(np.float32)

    def _open(self) -> sqlite3.Connection:
        store = sqlite3.connect(self._path, timeout=60)
        store.execute("PRAGMA journal_mode=WAL")
        return store

    def _read(self, store: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), 500):
            chunk = keys[start : start + 500]
            marks = ",".join("?" * len(chunk))
            found.update(store.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", chunk))
        return found
