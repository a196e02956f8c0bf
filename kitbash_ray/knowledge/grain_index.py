"""Layer 0's index: every way to ask, as immutable arrays that processes can share.

Exact: sorted 64-bit hashes of the normalized askings. Semantic: one sign bit per dimension
picks the nearest rows by Hamming distance, their float16 vectors give the true cosine.
The arrays are built once and only read, so Ray's object store can map them into every
process without a copy. Not here: judging a match (evidence.py), how the asks of grains that
have many of them vote (intents.py), embedding (embedder.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from heapq import nlargest
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from kitbash_ray.errors import InvalidQuery
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.evidence import Candidate
from kitbash_ray.knowledge.intents import Intents, fit_intents, intent_cartridges
from kitbash_ray.knowledge.text import normalize, read
from kitbash_ray.knowledge.vectors import Progress, VectorStore
from kitbash_ray.types import Faction, Query, Source

Arrays = Mapping[str, npt.NDArray[Any]]
Distances = npt.NDArray[np.unsignedinteger[Any]]

FACTIONS: tuple[Faction, ...] = ("general", "fiction", "experiment")
#: A longer text without a way to ask for it is a passage: layer 2 answers from it, no grain.
GRAIN_CHARS = 300
#: Rows that the Hamming distance hands on to the exact cosine. At 150,000 random rows a true
#: match with a cosine of 0.6 lies ten standard deviations before the 256th stranger.
SHORTLIST = 256
#: Over this many rows half of the bits choose some 4,096 whose other bits are read: that takes half the time.
MANY_ROWS, HALFWAY = 65_536, 4_096
#: Which rows stand for all when the limit for those is guessed. Prime, because a grain's texts come in turn.
EVERY = 17
#: Rows whose distance is counted at a time: what is in between stays in the processor's cache.
BLOCK_ROWS = 32_768
#: Ways to ask whose words are compared with a question's; no shipped fact has more than five.
ASKS_READ = 8
#: The bits of a 32-bit number that a 16-bit one has: its sign, the lower five of the exponent, ten of the fraction.
HALF_IN_FLOAT = np.uint32(0x8FFFE000).view(np.int32)


@dataclass(frozen=True, slots=True)
class Grain:
    """A fact as layer 0 answers with it. `votes`: `GrainIndex.vote` knows it."""

    source: Source
    asks: tuple[str, ...]
    votes: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """A grain that is near a question: its nearest text with that text's cosine, and the cosines of all its texts.

    `vote` is the log-odds that `GrainIndex.vote` found for it.
    """

    grain: Grain
    nearest: str
    cosine: float
    cosines: tuple[float, ...]
    vote: float = field(default=0.0, kw_only=True)

    def candidate(self) -> Candidate:
        """What is judged: of many ways to ask the nearest, because reading all would take milliseconds."""
        asks, cosines = self.grain.asks, self.cosines
        if len(asks) > ASKS_READ:
            kept = nlargest(ASKS_READ, range(len(asks)), key=cosines[1:].__getitem__)
            asks, cosines = tuple(asks[at] for at in kept), (cosines[0], *(cosines[at + 1] for at in kept))
        return Candidate(self.grain.source.text, asks, self.nearest, self.cosine, cosines, self.vote)


class _Stored(Struct, frozen=True, gc=False):
    """A fact in the array `blob`."""

    cartridge: str
    fact_id: str
    text: str
    asks: tuple[str, ...]
    reference: str | None
    section: str | None


_stored = msgspec.json.Decoder(_Stored).decode


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of the knowledge a query may be answered from."""

    factions: tuple[Faction, ...] = ("general",)
    cartridges: tuple[str, ...] = ()


class GrainIndex:
    """Lookups over the arrays that `build_arrays` made. Safe to use from several threads."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._names: list[str] = json.loads(bytes(arrays["cartridges"]))
        self._masks = lru_cache(maxsize=64)(self._row_mask)
        self._grain = lru_cache(maxsize=4096)(self._read_grain)
        self._is_asking = lru_cache(maxsize=4096)(self._compare_askings)
        self._intents = Intents(arrays)
        self._voters = frozenset(self._intents.grains.tolist())
        self._voter_rows = arrays["row_grains"].searchsorted(self._intents.grains)
        self._terms: dict[int, int] = dict(zip(arrays["term_keys"].tolist(), arrays["term_counts"].tolist(), strict=True))

    def __len__(self) -> int:
        return len(self._arrays["offsets"]) - 1

    @property
    def cartridges(self) -> tuple[str, ...]:
        """Names of all cartridges in the library, also of those without a grain."""
        return tuple(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def exact(self, question: str, scope: Scope) -> Grain | None:
        """The grain that has `question`, normalized, among its askings."""
        wanted = normalize(question)
        # As a Python int the key would make NumPy compare in float64: slow, and not exact.
        key = np.uint64(_key(wanted))
        keys = self._arrays["keys"]
        at = int(keys.searchsorted(key))
        while at < len(keys) and keys[at] == key:
            number = int(self._arrays["key_grains"][at])
            # The hash has 64 bits; comparing the texts makes an answer independent of luck.
            if self._in_scope(number, scope) and self._is_asking(number, wanted):
                return self._grain(number)
            at += 1
        return None

    def nearest(self, vector: npt.NDArray[np.float32], scope: Scope, limit: int = 8) -> list[Hit]:
        """Up to `limit` different grains, the one with the nearest text first."""
        rows = self._shortlist(vector, scope)
        if not len(rows):
            return []
        cosines = _products(self._arrays["vectors"].take(rows, axis=0), vector)
        found: dict[int, Hit] = {}
        for at in np.argsort(-cosines, kind="stable"):
            number = int(self._arrays["row_grains"][rows[at]])
            if number not in found:
                grain = self._grain(number)
                texts = (grain.source.text, *grain.asks)
                nearest = texts[int(self._arrays["row_texts"][rows[at]])]
                found[number] = Hit(grain, nearest, float(cosines[at]), self._cosines(number, vector))
                if len(found) == limit:
                    break
        return list(found.values())

    def vote(self, vector: npt.NDArray[np.float32], scope: Scope) -> Hit | None:
        """The grain that its many asks speak for most; None where no grain in scope has many."""
        mask = self._masks(scope, date.today().toordinal())
        vote = self._intents.vote(vector, mask[self._voter_rows])
        if vote is None:
            return None
        grain, cosines = self._grain(vote.grain), self._cosines(vote.grain, vector)
        texts = (grain.source.text, *grain.asks)
        at = max(range(len(texts)), key=cosines.__getitem__)
        return Hit(grain, texts[at], cosines[at], cosines, vote=vote.log_odds)

    def sources(self) -> Iterator[Source]:
        """Every fact of the index."""
        return (self._read_grain(number).source for number in range(len(self)))

    def _cosines(self, number: int, vector: npt.NDArray[np.float32]) -> tuple[float, ...]:
        """Of the grain's statement and of each of its asks; a grain's rows lie side by side, in that order."""
        owners = self._arrays["row_grains"]
        # Of another type than theirs, the two would have NumPy convert all of them first.
        start, end = owners.searchsorted(np.array((number, number + 1), owners.dtype))
        return tuple(_products(self._arrays["vectors"][start:end], vector).tolist())

    def rarity(self, stem: str) -> float:
        """How rare a stem is among all facts, passages too: near 0 in all of them, 1 and above in none."""
        count = self._terms.get(_key(stem), 0)
        total = int(self._arrays["facts"]) + 1
        return max(0.05, math.log(total / (count + 0.5)) / math.log(total + 1))

    def _shortlist(self, vector: npt.NDArray[np.float32], scope: Scope) -> npt.NDArray[np.intp]:
        """The SHORTLIST rows in scope whose codes are nearest, and those as near as the last of them."""
        codes, code = self._arrays["codes"], _codes(vector[None, :] - self._arrays["center"])[:, 0]
        mask = self._masks(scope, date.today().toordinal())
        if len(mask) <= MANY_ROWS:
            return _nearest(codes, code, mask, SHORTLIST)
        rows = _halfway(codes, code, mask)
        return rows[_nearest(codes.take(rows, axis=1), code, mask[rows], SHORTLIST)]

    def _row_mask(self, scope: Scope, today: int) -> npt.NDArray[np.bool_]:
        """What `_in_scope` says of each row's grain on the day `today`."""
        places, factions, begins, ends = self._arrays["grains"].T
        allowed = np.isin(factions, [at for at, faction in enumerate(FACTIONS) if faction in scope.factions])
        if scope.cartridges:
            allowed &= np.isin(places, [at for at, name in enumerate(self._names) if name in scope.cartridges])
        allowed &= (begins <= today) & ((ends == 0) | (today <= ends))
        rows: npt.NDArray[np.bool_] = allowed[self._arrays["row_grains"]]
        return rows

    def _in_scope(self, number: int, scope: Scope) -> bool:
        place, faction, begins, ends = self._arrays["grains"][number]
        if FACTIONS[faction] not in scope.factions:
            return False
        if scope.cartridges and self._names[place] not in scope.cartridges:
            return False
        if begins or ends:
            today = date.today().toordinal()
            return bool(begins <= today and (not ends or today <= ends))
        return True

    def _compare_askings(self, number: int, wanted: str) -> bool:
        grain = self._grain(number)
        # The text that is meant has nearly the same length, so the others need no normalizing.
        texts = sorted((*grain.asks, grain.source.text), key=lambda text: abs(len(text) - len(wanted)))
        return wanted in map(normalize, texts)

    def _read_grain(self, number: int) -> Grain:
        start, end = self._arrays["offsets"][number : number + 2]
        stored = _stored(self._arrays["blob"][start:end].data)
        source = Source(stored.cartridge, stored.fact_id, stored.text, 1.0, stored.reference, stored.section)
        return Grain(source, stored.asks, number in self._voters)


def known_cartridges(query: Query, names: Sequence[str]) -> None:
    """Raises InvalidQuery when the query wants a cartridge that is not among `names`."""
    for wanted in query.cartridges:
        if wanted not in names:
            raise InvalidQuery(f"There is no cartridge {wanted!r}; there are: {', '.join(names) or 'none'}.")


def is_grain(fact: Fact) -> bool:
    """Whether a fact is definite enough to answer by itself; what was cut from a document is not."""
    return bool(fact.asks) or (len(fact.text) <= GRAIN_CHARS and not fact.excerpt)


def build_arrays(facts: Sequence[Fact], store: VectorStore, progress: Progress | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an index over the grains among `facts`."""
    names = sorted({fact.cartridge for fact in facts})
    terms, known = _term_counts(facts), len(facts)
    facts = [fact for fact in facts if is_grain(fact)]
    rows = [(number, place, text) for number, fact in enumerate(facts) for place, text in enumerate(_texts(fact))]
    vectors = store.vectors([text for _, _, text in rows], progress)
    center = vectors.mean(axis=0) if len(vectors) else np.zeros(store.embedder.dimensions, np.float32)
    keys = sorted((_key(normalize(text)), number) for number, _, text in rows)
    learned = intent_cartridges([(fact.cartridge, len(fact.asks)) for fact in facts])
    asks = [at for at, (number, place, _) in enumerate(rows) if place and facts[number].cartridge in learned]
    blobs = [_blob(fact) for fact in facts]
    return {
        "keys": np.array([key for key, _ in keys], np.uint64),
        "key_grains": np.array([number for _, number in keys], np.int32),
        "center": center.astype(np.float32),
        "codes": _codes(vectors - center),
        "vectors": vectors.astype(np.float16),
        "row_grains": np.array([number for number, _, _ in rows], np.int32),
        "row_texts": np.array([place for _, place, _ in rows], np.int16),
        "grains": np.array([_place(fact, names) for fact in facts], np.int32).reshape(-1, 4),
        "offsets": np.cumsum([0, *map(len, blobs)], dtype=np.int64),
        "blob": np.frombuffer(b"".join(blobs), np.uint8),
        "cartridges": np.frombuffer(json.dumps(names).encode(), np.uint8),
        "facts": np.array(known, np.int64),
        "term_keys": np.array([_key(stem) for stem in terms], np.uint64),
        "term_counts": np.array(list(terms.values()), np.int32),
        **fit_intents(vectors[np.array(asks, np.intp)], np.array([rows[at][0] for at in asks], np.int32)),
    }


def save_arrays(arrays: Arrays, path: Path) -> None:
    """Write the arrays so that a reader sees all of them or none."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **dict(arrays))  # type: ignore[arg-type]
    partial.replace(path)


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _texts(fact: Fact) -> Iterator[str]:
    yield fact.text
    yield from fact.asks


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _products(halves: npt.NDArray[np.float16], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`halves @ vector` in 32 bits, five times as fast as with NumPy's own conversion.

    Moved 13 bits up, behind its sign, a finite 16-bit number is a 32-bit one but for the exponent, which counts from
    112 lower. The vector makes up for that.
    """
    bits = halves.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= HALF_IN_FLOAT
    products: npt.NDArray[np.float32] = bits.view(np.float32) @ (vector * np.float32(2.0**112))
    return products


def _codes(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Sign bits, shape (words of 64 bits, rows)."""
    bits = np.packbits(vectors > 0, axis=1)
    if spare := -bits.shape[1] % 8:
        bits = np.pad(bits, ((0, 0), (0, spare)))
    return np.ascontiguousarray(bits.view(np.uint64).T)


def _halfway(codes: npt.NDArray[np.uint64], code: npt.NDArray[np.uint64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Some HALFWAY rows of `mask`, the nearest by the first half of the bits."""
    half = len(code) // 2
    distance = _distances(codes[:half], code[:half])
    sample, count = distance[::EVERY][mask[::EVERY]], HALFWAY // EVERY
    near = distance <= np.partition(sample, count)[count] if len(sample) > count else True
    return np.flatnonzero(near & mask)


def _nearest(
    codes: npt.NDArray[np.uint64], code: npt.NDArray[np.uint64], mask: npt.NDArray[np.bool_], count: int
) -> npt.NDArray[np.intp]:
    """The `count` rows of `mask` that are nearest, and those as near as the last of them."""
    distance = _distances(codes, code)
    if not mask.all():
        distance[~mask] = np.iinfo(distance.dtype).max
    if len(distance) <= count:
        return np.flatnonzero(mask)
    return np.flatnonzero((distance <= _shortest(distance, count)) & mask)


def _distances(codes: npt.NDArray[np.uint64], code: npt.NDArray[np.uint64]) -> Distances:
    """Hamming distances of all rows of `codes`, which `_codes` made, from one."""
    distance: Distances = np.zeros(codes.shape[1], np.uint8 if 64 * len(code) < 255 else np.uint16)
    differing, bits = np.empty(BLOCK_ROWS, np.uint64), np.empty(BLOCK_ROWS, np.uint8)
    for start in range(0, len(distance), BLOCK_ROWS):
        block = distance[start : start + BLOCK_ROWS]
        for word in range(len(code)):
            np.bitwise_xor(codes[word, start : start + BLOCK_ROWS], code[word], out=differing[: len(block)])
            block += np.bitwise_count(differing[: len(block)], out=bits[: len(block)])
    return distance


def _shortest(distance: Distances, count: int) -> np.integer[Any]:
    """The distance that `count` of them lie before, as `np.partition(distance, count)[count]` but eight times as fast.

    Of four times as many stretches of rows each has its shortest; where that many of those lie, the limit lies too.
    """
    stretches = 4 * count
    if len(distance) >= stretches:
        shortest = distance[: len(distance) // stretches * stretches].reshape(stretches, -1).min(axis=1)
        distance = distance[distance <= np.partition(shortest, count)[count]]
    limit: np.integer[Any] = np.partition(distance, count)[count]
    return limit


def _place(fact: Fact, names: list[str]) -> tuple[int, int, int, int]:
    begins = fact.valid_from.toordinal() if fact.valid_from else 0
    ends = fact.valid_until.toordinal() if fact.valid_until else 0
    return names.index(fact.cartridge), FACTIONS.index(fact.faction), begins, ends


def _blob(fact: Fact) -> bytes:
    return msgspec.json.encode(_Stored(fact.cartridge, fact.id, fact.text, fact.asks, fact.source, fact.section))


def _term_counts(facts: Sequence[Fact]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for fact in facts:
        counts.update({stem for text in _texts(fact) for stem in read(text).content})
    return counts
