"""How long layer 0 takes over 50,000 grains: an exact match, and a match by meaning.

Every grain is a fact and two ways to ask, made from templates: 150,000 rows. 400 grains have
real MiniLM vectors and are asked about in other words. All other rows have made-up vectors,
because embedding them would take half an hour: each grain lies near one of 3,000 centres, and
a centre is the mean of three real vectors, so that strangers lie where real texts lie and
near each other. That makes nothing easier: the scan reads the same bytes for any vector, the
shortlist has the same 256 rows and more, and the strangers in it are verified like any
candidate. What it does not measure is how often the right grain is found in real text
(benchmarks/fit_calibration.py does); the share found here only shows that the work was done.

The parts of a match by meaning are timed on questions of their own, with caches as cold.

    python -m benchmarks.layer0 [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.common import finish, percentile, print_table
from kitbash_ray.calibration import load_calibration
from kitbash_ray.config import load_settings
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.embedder import Embeds, open_embedder
from kitbash_ray.knowledge.encoder import Vectors
from kitbash_ray.knowledge.evidence import Comparison
from kitbash_ray.knowledge.grain_index import GrainIndex, Scope, build_arrays
from kitbash_ray.knowledge.text import read
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.types import LayerResult, Query

TARGETS = {"exact_p99_ms": ("<=", 0.05), "semantic_p50_ms": ("<=", 4.0)}
REAL_GRAINS = 400
CENTRES = 3000
#: Lengths of the random parts beside a centre of length 1: a grain's, and each of its texts'.
GRAIN_SPREAD, TEXT_SPREAD = 0.5, 0.4

FIRST = """amber ancient arctic autumn azure bitter blue bright broad bronze calm carved cedar copper coral crimson
crystal curved dark deep desert distant double dusty eastern emerald empty fallen forest frozen gentle gilded golden
granite green grey harbour hidden high hollow honey indigo inner iron ivory jade lonely lower lunar maple marble meadow
middle misty mountain narrow northern ocean old olive open orange outer painted pale pearl pine polar purple quiet rainy
red rising river rocky royal rusty sandy scarlet secret silent silver sleeping small snowy solar southern steel stone
stormy summer sunken upper velvet violet western white wild winding windy winter wooden yellow""".split()
SECOND = """acorn anchor antler apple arrow badger banner barrel basket beacon beaver bell birch bishop boulder bridle
bucket buffalo cactus camel candle canyon castle cherry clover cobra comet compass condor cottage cradle crane cricket
crown dagger dolphin dragon drum eagle elm falcon feather fern fiddle finch fox garden gazelle glacier goose hammer
harp hawk hazel heron horse island ivy jackal juniper kettle kite ladder lantern lark lemon lily lion lizard lynx magpie
mirror moose needle oak orchid otter owl panther pepper pigeon pilot rabbit raven ribbon robin saddle salmon shepherd
sparrow spider swan temple thistle tiger tulip turtle walnut whale willow wolf""".split()
PLACES = "Bergen Cadiz Cork Dover Ghent Graz Jena Kiel Leeds Lyon Malmo Nantes Oporto Parma Riga Siena Tartu Turku Varna York".split()

#: A fact, two ways to ask for it, and four other ways that are not in the index.
TEMPLATES: tuple[tuple[str, tuple[str, str], tuple[str, str, str, str]], ...] = (
    (
        "The {name} Bridge near {place} was opened to traffic in {year}; its main span is {count} metres long and rests on two towers.",
        ("When was the {name} Bridge opened?", "How long is the main span of the {name} Bridge?"),
        ("In which year was the {name} Bridge opened to traffic?", "What length does the {name} Bridge's main span have?",
         "Since when can one drive over the {name} Bridge?", "How many metres does the {name} Bridge span?"),
    ),
    (
        "{name} is a mineral first described in {year} from a quarry near {place}; it melts at {count} °C and is used as a pigment.",
        ("At what temperature does the mineral {name} melt?", "When was the mineral {name} first described?"),
        ("What is the melting point of the mineral {name}?", "In what year did somebody describe the mineral {name} first?",
         "How hot must the mineral {name} be to melt?", "Which year was the mineral {name} found in?"),
    ),
    (
        "The novel {name} appeared in {place} in {year} and tells of a family of {count} who leave their village after a flood.",
        ("When did the novel {name} appear?", "What is the novel {name} about?"),
        ("In which year was the novel {name} published?", "What story does the novel {name} tell?",
         "What year did the book {name} come out?", "What happens in the book {name}?"),
    ),
    (
        "The {name} Railway has linked {place} with the coast since {year}. It is {count} kilometres long and carries freight only.",
        ("How long is the {name} Railway?", "Since when does the {name} Railway run?"),
        ("How many kilometres of track has the {name} Railway?", "In which year did the {name} Railway start to run?",
         "What is the length of the {name} Railway?", "When did trains begin to use the {name} Railway?"),
    ),
    (
        "{name} is an open-source message broker, written in {place} in {year}. By default it listens on port {count}.",
        ("Which port does the {name} broker use by default?", "When was the {name} message broker written?"),
        ("On what port does the {name} broker listen?", "What year is the {name} message broker from?",
         "What is the default port of the {name} broker?", "In which year was the {name} broker made?"),
    ),
    (
        "The {name} Observatory stands on a hill above {place}, {count} metres above sea level; its first telescope dates from {year}.",
        ("How high above sea level is the {name} Observatory?", "When did the {name} Observatory get its first telescope?"),
        ("At what altitude does the {name} Observatory stand?", "What year is the first telescope of the {name} Observatory from?",
         "What is the elevation of the {name} Observatory?", "In which year was the {name} Observatory given a telescope?"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question and the fact that it is about."""

    text: str
    fact_id: str


def make_grains(count: int) -> tuple[list[Fact], dict[str, tuple[str, ...]]]:
    """`count` facts with different names, and for each id the askings that the index lacks."""
    chance = random.Random(0)
    facts, unindexed = [], {}
    for number, at in enumerate(chance.sample(range(len(FIRST) * len(SECOND) * len(TEMPLATES)), count)):
        at, template = divmod(at, len(TEMPLATES))
        first, second = divmod(at, len(SECOND))
        filled = {
            "name": f"{FIRST[first]} {SECOND[second]}".title(),
            "place": chance.choice(PLACES),
            "year": chance.randint(1700, 2020),
            "count": chance.randint(40, 9000),
        }
        text, asks, others = TEMPLATES[template]
        ask, other_ask = (line.format(**filled) for line in asks)
        fact = Fact(f"bench:{number}", "bench", "general", text.format(**filled), (ask, other_ask), "Bench, p. 1")
        facts.append(fact)
        unindexed[fact.id] = tuple(line.format(**filled) for line in others)
    return facts, unindexed


class MostlyMadeUp:
    """An embedder that gives the texts of `known` real vectors, and those of `strangers` vectors near common centres."""

    def __init__(self, real: Embeds, known: Sequence[Fact], strangers: Sequence[Fact]) -> None:
        self.model_id = f"made-up-{len(strangers)}"
        self.dimensions = real.dimensions
        own_texts = [text for fact in known for text in (fact.text, *fact.asks)]
        texts = [(at, text) for at, fact in enumerate(strangers) for text in (fact.text, *fact.asks)]
        self._rows = {text: row for row, text in enumerate([*own_texts, *(text for _, text in texts)])}
        chance = np.random.default_rng(0)
        own = real.embed(own_texts)
        centres = _unit(own[chance.integers(len(own), size=(CENTRES, 3))].sum(axis=1))
        grains = centres[chance.integers(CENTRES, size=len(strangers))]
        grains = _unit(grains + self._noise(chance, len(strangers), GRAIN_SPREAD))
        made_up = _unit(grains[[at for at, _ in texts]] + self._noise(chance, len(texts), TEXT_SPREAD))
        self._vectors = np.concatenate([own, made_up])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts of the library; there are no others."""
        return self._vectors[[self._rows[text] for text in texts]]

    def count_tokens(self, texts: Sequence[str]) -> int:
        """None: nothing is read."""
        return 0

    def _noise(self, chance: np.random.Generator, count: int, length: float) -> Vectors:
        return chance.standard_normal((count, self.dimensions), np.float32) * np.float32(length / self.dimensions**0.5)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


async def ask_all(layer: GrainLayer, questions: Sequence[Asked]) -> tuple[list[float], list[LayerResult]]:
    """Milliseconds that each question took, and what layer 0 said."""
    times, results = [], []
    for asked in questions:
        query = Query(asked.text)
        began = time.perf_counter()
        result = await layer.answer(query)
        times.append((time.perf_counter() - began) * 1000)
        results.append(result)
    return times, results


def time_parts(index: GrainIndex, embedder: Embeds, questions: Sequence[Asked]) -> dict[str, list[float]]:
    """Milliseconds of each step that GrainLayer takes for a question it has to match by meaning."""
    fit = load_calibration().layers["grain"]
    times: dict[str, list[float]] = {"embedding": [], "search": [], "verification": []}
    for asked in questions:
        at = [time.perf_counter()]
        vector = embedder.embed([asked.text])[0]
        at.append(time.perf_counter())
        found = index.nearest(vector, Scope())
        at.append(time.perf_counter())
        beside = Comparison(asked.text, [hit.candidate() for hit in found], index.rarity)
        fit.confidence(beside.features(beside.best()))
        at.append(time.perf_counter())
        for part, (began, ended) in zip(times, pairwise(at), strict=True):
            times[part].append((ended - began) * 1000)
    return times


def share_found(questions: Sequence[Asked], results: Sequence[LayerResult]) -> float:
    hits = [bool(r.sources) and r.sources[0].fact_id == q.fact_id for q, r in zip(questions, results, strict=True)]
    return sum(hits) / len(hits)


def summary(name: str, times: Sequence[float]) -> tuple[str, int, str, str, str]:
    p50, p90, p99 = (f"{percentile(times, share):.4f}" for share in (0.5, 0.9, 0.99))
    return name, len(times), p50, p90, p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5,000 grains and fewer questions")
    quick = parser.parse_args().quick
    grains, exact_calls, semantic_calls, part_calls, warm_up = (
        (5_000, 2_000, 200, 100, 50) if quick else (50_000, 10_000, 1_000, 300, 200)
    )
    embedder = open_embedder(load_settings())
    facts, unindexed = make_grains(grains)
    known, strangers = facts[:REAL_GRAINS], facts[REAL_GRAINS:]
    made_up = MostlyMadeUp(embedder, known, strangers)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        index = GrainIndex(build_arrays(facts, VectorStore(made_up, Path(folder))))
    build_s = time.perf_counter() - began
    del made_up
    # A front door loads its index from a file: it has read no text before the first question, and
    # its collector has no 50,000 facts to look at.
    read.cache_clear()
    gc.collect()
    gc.freeze()

    # Half of them as they stand in the index, half as somebody types them in a hurry.
    exact = [Asked(fact.asks[0] if at % 2 else fact.asks[1].lower().rstrip("?"), fact.id) for at, fact in enumerate(facts)]
    random.Random(1).shuffle(exact)
    # A grain's four unindexed askings are spread over the lists, so that few texts are read twice.
    semantic = [Asked(unindexed[fact.id][at], fact.id) for at in range(4) for fact in known]
    layer = GrainLayer(index, embedder, load_calibration())
    # In a thread, as the layer does it: llama.cpp is slower there than in the thread that loaded it.
    with ThreadPoolExecutor(1) as thread:
        parts = thread.submit(time_parts, index, embedder, semantic[-part_calls:]).result()
    read.cache_clear()
    asyncio.run(ask_all(layer, exact[:warm_up] + semantic[-warm_up:]))
    exact_ms, exact_results = asyncio.run(ask_all(layer, exact[warm_up : warm_up + exact_calls]))
    semantic_ms, semantic_results = asyncio.run(ask_all(layer, semantic[:semantic_calls]))

    assert all(result.reason == "exact match" for result in exact_results)
    assert share_found(exact[warm_up : warm_up + exact_calls], exact_results) == 1.0
    assert not any(result.reason == "exact match" for result in semantic_results)
    found = share_found(semantic[:semantic_calls], semantic_results)
    assert found >= 0.9, f"only {found:.1%} of the questions found their grain"

    rows = [summary("exact match", exact_ms), summary("match by meaning", semantic_ms)]
    rows += [summary(f"  of which {part}", times) for part, times in parts.items()]
    print_table(f"Layer 0 over {len(index):,} grains, milliseconds", ("what", "calls", "p50", "p90", "p99"), rows)
    print(f"{found:.1%} of the questions by meaning found the grain they are about")
    metrics = {
        "exact_p99_ms": round(percentile(exact_ms, 0.99), 4),
        "semantic_p50_ms": round(percentile(semantic_ms, 0.5), 3),
        "bytes_per_grain": round(index.nbytes / len(index)),
        "build_s": round(build_s, 1),
        "rows": sum(1 + len(fact.asks) for fact in facts),
        **{f"{part}_p50_ms": round(percentile(times, 0.5), 3) for part, times in parts.items()},
        "found": round(found, 4),
    }
    finish("layer0", metrics, TARGETS)


if __name__ == "__main__":
    main()
