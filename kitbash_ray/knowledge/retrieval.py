"""Layer 2's table: LanceDB with a vector and a full-text index over every text.

A passage, which is longer than what an embedding model takes in well, has a vector for each of its
sentences besides, and is put in order by vector and full text together; a fact by vector alone.

The table is a build product under the cache, in a folder named by the content it was made
from; an edited cartridge gets a new folder, and its vectors come from the vector store.
Not here: judging what was found (evidence.py) and putting an answer together (layers).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.grain_index import Grain, Hit, Scope, is_grain
from kitbash_ray.knowledge.spans import sentences
from kitbash_ray.knowledge.vectors import Progress, VectorStore
from kitbash_ray.types import Source

TABLE = "texts"
#: Where a text begins that is no sentence cut from a passage.
WHOLE = -1
#: Rows from which an approximate vector index pays; below, one list of all vectors is exact. Of 12,000 rows it
#: gives the nearest in 10 ms, and a scan of the table without any index in 36.
APPROXIMATE_FROM_ROWS = 50_000
#: Columns that rows are chosen by, of few different values and of many.
FEW_VALUES, MANY_VALUES = ("faction", "cartridge"), ("begins", "ends", "fact_id")
#: Rows that each of the two searches contributes; several may belong to one fact.
ROWS_PER_SEARCH = 24
#: What a passage's cosine counts beside its full-text score, both at most 1. Chosen on the articles of
#: benchmarks/squad2.py, where 0.5 to 0.8 find as many. On short facts full text loses: among eight,
#: 0.87 of the shipped cartridges' questions find their fact with it and 0.95 without.
COSINE_WEIGHT = 0.7
#: What ranking the rows takes; the rest is read of the facts that are kept.
RANKED = ("fact_id", "passage", "vector")
#: Rows of the facts that are kept; no fact has as many ways to ask.
MOST_TEXTS = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Found(Hit):
    """A hit of layer 2, with the vector of its nearest text.

    `order` is what it was put in order by. A passage has `sentences`: where each begins in it,
    where it ends, and its cosine.
    """

    vector: npt.NDArray[np.float32]
    order: float
    sentences: tuple[tuple[int, int, float], ...]


class Retrieval:
    """Hybrid search over one built table. Blocking: call it from a thread."""

    def __init__(self, folder: Path) -> None:
        import lancedb

        self._table = lancedb.connect(str(folder)).open_table(TABLE)

    def search(self, question: str, vector: npt.NDArray[np.float32], scope: Scope, limit: int = 8) -> list[Found]:
        """Up to `limit` facts, the best by cosine and full text first."""
        where = _where(scope)
        by_vector: Any = self._table.search(vector, query_type="vector")
        found = (
            by_vector.distance_type("cosine")
            .where(where, prefilter=True)
            .select([*RANKED, "_distance"])
            .limit(ROWS_PER_SEARCH)
            .to_list()
        )
        if any(char.isalnum() for char in question):
            by_text = self._table.search(_match_query(question), query_type="fts")
            found += by_text.where(where, prefilter=True).select([*RANKED, "_score"]).limit(ROWS_PER_SEARCH).to_list()
        order = _order(found, vector)
        best = sorted(order, key=lambda fact_id: -order[fact_id])[:limit]
        return self._whole({fact_id: order[fact_id] for fact_id in best}, vector)

    def _whole(self, order: dict[str, float], vector: npt.NDArray[np.float32]) -> list[Found]:
        """These facts with all their texts, in the same order."""
        if not order:
            return []
        columns = ["fact_id", "cartridge", "fact", "text", "start", "reference", "section", "asks", "vector"]
        query = self._table.search().where(f"fact_id IN ({_quoted(list(order))})").select(columns).limit(MOST_TEXTS)
        rows: dict[str, list[dict[str, Any]]] = {fact_id: [] for fact_id in order}
        for row in query.to_list():
            rows[row["fact_id"]].append(row)
        return [_found(texts, vector, order[fact_id]) for fact_id, texts in rows.items()]


def _order(rows: list[dict[str, Any]], vector: npt.NDArray[np.float32]) -> dict[str, float]:
    """What each fact among `rows` is put in order by: its best cosine, of a passage combined with the full-text score.

    Full-text scores have no scale of their own, so the best of the question counts as 1.
    """
    cosines: dict[str, float] = {}
    lexical: dict[str, float] = {}
    for row in rows:
        name = row["fact_id"]
        cosines[name] = max(cosines.get(name, -1.0), float(_vector(row) @ vector))
        if row["passage"]:
            lexical[name] = max(lexical.get(name, 0.0), row.get("_score") or 0.0)
    best = max(lexical.values(), default=0.0) or 1.0
    together = {name: COSINE_WEIGHT * cosines[name] + (1 - COSINE_WEIGHT) * score / best for name, score in lexical.items()}
    return cosines | together


def _found(rows: list[dict[str, Any]], vector: npt.NDArray[np.float32], order: float) -> Found:
    """One fact of its rows, of which the statement, each ask and each sentence of a passage has one."""
    grain = _grain(rows[0])
    measured = [(row, float(_vector(row) @ vector)) for row in rows]
    best, cosine = max(measured, key=lambda pair: pair[1])
    cosines = {row["text"]: its for row, its in measured if row["start"] == WHOLE}
    in_order = tuple(cosines[text] for text in (grain.source.text, *grain.asks))
    parts = sorted((row["start"], row["start"] + len(row["text"]), its) for row, its in measured if row["start"] != WHOLE)
    return Found(grain, best["text"], cosine, in_order, _vector(best), order, tuple(parts))


def _vector(row: dict[str, Any]) -> npt.NDArray[np.float32]:
    return np.asarray(row["vector"], np.float32)


def build_table(facts: Sequence[Fact], store: VectorStore, folder: Path, progress: Progress | None = None) -> None:
    """Make the table of `facts` in `folder`, which appears complete or not at all."""
    import lancedb

    rows = [(fact, start, text) for fact in facts for start, text in _texts(fact)]
    vectors = store.vectors([text for _, _, text in rows], progress)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    data = [_row(*row, vector) for row, vector in zip(rows, vectors, strict=True)]
    table = lancedb.connect(str(partial)).create_table(TABLE, data=data or None, schema=_schema(store.embedder.dimensions))
    table.create_fts_index("words", with_position=False, language="English", stem=True, remove_stop_words=True)
    if rows:
        _add_indexes(table, len(rows))
    if folder.exists():  # another process was faster; both made the same
        shutil.rmtree(partial)
    else:
        partial.rename(folder)


def _add_indexes(table: Any, rows: int) -> None:
    from lancedb.index import Bitmap, BTree, HnswSq, IvfFlat

    for columns, kind in ((FEW_VALUES, Bitmap), (MANY_VALUES, BTree)):
        for column in columns:
            table.create_index(column, config=kind())
    if rows < APPROXIMATE_FROM_ROWS:
        table.create_index("vector", config=IvfFlat("cosine", num_partitions=1))
    else:
        table.create_index("vector", config=HnswSq("cosine", num_partitions=rows // 12_500))


def _schema(dimensions: int) -> Any:
    import pyarrow as pa

    text = ["fact_id", "cartridge", "faction", "fact", "text", "words", "reference", "section"]
    return pa.schema(
        [pa.field(name, pa.string()) for name in text]
        + [pa.field("asks", pa.list_(pa.string())), pa.field("begins", pa.int32()), pa.field("ends", pa.int32())]
        + [pa.field("start", pa.int32()), pa.field("passage", pa.bool_())]
        + [pa.field("vector", pa.list_(pa.float32(), dimensions))]
    )


def _texts(fact: Fact) -> Iterator[tuple[int, str]]:
    """Every text that gets a row: the fact, its asks, and the sentences of a passage with their first character."""
    for text in (fact.text, *fact.asks):
        yield WHOLE, text
    if not is_grain(fact):
        for start, end in sentences(fact.text):
            yield start, fact.text[start:end]


def _row(fact: Fact, start: int, text: str, vector: npt.NDArray[np.float32]) -> dict[str, Any]:
    return {
        "fact_id": fact.id, "cartridge": fact.cartridge, "faction": fact.faction, "fact": fact.text,
        "passage": not is_grain(fact), "text": text, "words": text if start == WHOLE else None, "start": start, "reference": fact.source, "section": fact.section, "asks": list(fact.asks),
        "begins": fact.valid_from.toordinal() if fact.valid_from else 0,
        "ends": fact.valid_until.toordinal() if fact.valid_until else date.max.toordinal(),
        "vector": vector.tolist(),
    }  # fmt: skip


def _where(scope: Scope) -> str:
    today = date.today().toordinal()
    clauses = [f"faction IN ({_quoted(scope.factions)})", f"begins <= {today}", f"ends >= {today}"]
    if scope.cartridges:
        clauses.append(f"cartridge IN ({_quoted(scope.cartridges)})")
    return " AND ".join(clauses)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)


def _match_query(question: str) -> Any:
    """The question as plain words: a person's quotes and colons are no query syntax."""
    from lancedb.query import MatchQuery

    kind: Any = MatchQuery
    return kind(question, "words")


def _grain(row: dict[str, Any]) -> Grain:
    source = Source(
        cartridge=row["cartridge"], fact_id=row["fact_id"], text=row["fact"], score=1.0,
        reference=row["reference"], section=row["section"],
    )  # fmt: skip
    return Grain(source, tuple(row["asks"]))
