"""Fit the calibration that ships with Kitbash, and say how good it is.

The questions are those of the shipped cartridges (whose facts have ways to ask) and of the
development sets in benchmarks/data (whose facts have none, like imported ones): `dev_a` to
`dev_c` and the cartridges' own questions.jsonl are deliberately obscure, with close near-misses,
and teach the trees, like the traps, one small step away from a fact; `dev_d`, `ordinary`,
`everyday` and `asked_*` (over the shipped cartridges) are what people ordinarily ask, and the error
budget is kept on them. `newcomer` (over the shipped cartridges) takes no part in any of this; it
judges the result.

    python -m benchmarks.fit_calibration [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import finish, print_table
from kitbash_ray.calibration import SHIPPED, Calibration, save_calibration
from kitbash_ray.config import PROJECT, Settings, load_settings
from kitbash_ray.evaluation import calibration_error
from kitbash_ray.fitting import (
    SHIPPED_SAMPLES,
    Bools,
    Floats,
    Sample,
    calibrate,
    exact_matches,
    fresh,
    sample,
    save_samples,
    unfitted,
)
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.documents import read_jsonl
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.grain_index import GrainIndex, build_arrays
from kitbash_ray.knowledge.library import Library
from kitbash_ray.knowledge.retrieval import Retrieval, build_table
from kitbash_ray.knowledge.vectors import VectorStore
from kitbash_ray.knowledge.verifier import taught_questions
from kitbash_ray.layers.bitnet import SHIPPED as STUDENT
from kitbash_ray.layers.bitnet import StudentLayer, open_student
from kitbash_ray.layers.cartridge import CartridgeLayer, open_cartridge
from kitbash_ray.layers.grain import GrainLayer
from kitbash_ray.questions import Question, held_out, question_key
from kitbash_ray.shared_budget import SHARES
from kitbash_ray.types import Query

LAYERS = ("grain", "bitnet", "cartridge")
DEFAULT_BUDGET = 0.05
SHOWN_BUDGETS = (0.01, 0.02, DEFAULT_BUDGET, 0.1)
DATA = Path(__file__).with_name("data")
POOLED = "+others"
#: Layers 0 and 2, one after the other, in the table.
BOTH = "in_turn"
#: Ordinary questions over the shipped cartridges. The last are written from what the cartridges claim to cover.
OVER_SHIPPED = ("ordinary", "everyday", "asked_a", "asked_b", "asked_c", "visitor_a")
#: Never fitted, never used to choose anything: they tell how good the rest is.
JUDGES = ("newcomer", "visitor")
#: One small step away from a shipped fact, over the shipped cartridges: they teach. Of the sets that have several for
#: each fact, only those are asked here that the verifier has not learned from.
TRAPS_OF_EACH = ("traps_c", "traps_d")
TRAPS = ("traps_a", "traps_b", *TRAPS_OF_EACH)
ORDINARY = frozenset({"dev_d", *OVER_SHIPPED})
#: The shipped cartridges' own questions: `kitbash calibrate` asks them anew, so they are not stored.
CARTRIDGES = "cartridges"

Grouped = list[tuple[str, Question]]


@dataclass(frozen=True)
class Knowledge:
    """Facts and held-out questions about them, each with its group."""

    facts: list[Fact]
    questions: Grouped


def ask_all(library: Knowledge, store: VectorStore, settings: Settings, student: StudentLayer) -> dict[str, list[Sample]]:
    """What layers 0, 1 and 2 over `library` make of its questions."""
    index = GrainIndex(build_arrays(library.facts, store))
    nothing = unfitted()
    asked: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        build_table(library.facts, store, Path(folder) / "table")
        table = Retrieval(Path(folder) / "table")
        grain = GrainLayer(index, store.embedder, nothing)
        student.follow((fact.id, fact.text) for fact in library.facts)
        for layer in (grain, student, open_cartridge(table, index, nothing, store.embedder, settings)):
            found = asyncio.run(_asked(layer, library.questions))
            asked[layer.name] = [item for item in found if item]
    return asked


async def _asked(layer: GrainLayer | StudentLayer | CartridgeLayer, questions: Grouped) -> list[Sample | None]:
    return [
        sample(question, await layer.answer(Query(question.query)), traffic=group in ORDINARY, group=group)
        for group, question in questions
    ]


def read_set(name: str) -> Knowledge:
    """One development set: its facts, without ways to ask, and its questions."""
    facts = [
        Fact(f"{name}:{raw['id']}", name, "general", raw["text"], (), None)
        for _, raw in read_jsonl(DATA / name / "facts.jsonl")
    ]
    return Knowledge(facts, [(name, question) for question in read_questions(name, prefix=f"{name}:")])


def read_questions(name: str, prefix: str = "") -> list[Question]:
    return [
        Question(raw["query"], tuple(prefix + fact for fact in raw["expected"]), (), raw["kind"])
        for _, raw in read_jsonl(DATA / name / "questions.jsonl")
    ]


def shipped_library() -> Knowledge:
    """All general cartridges with their own questions and with the sets over them."""
    contents = Library(PROJECT / "cartridges").load()
    facts = [fact for fact in contents.facts if fact.faction == "general"]
    questions = [(CARTRIDGES, question) for question in held_out(contents)]
    questions += [(name, item) for name in (*OVER_SHIPPED, *TRAPS, *JUDGES) for item in read_questions(name)]
    taught = taught_questions()
    return Knowledge(
        facts, [each for each in questions if each[0] not in TRAPS_OF_EACH or question_key(each[1].query) not in taught]
    )


def collect(store: VectorStore, settings: Settings, student: StudentLayer) -> dict[str, list[Sample]]:
    """Every question in its own library; the obscure ones on facts without asks also among each other's facts."""
    sets = {folder.name: read_set(folder.name) for folder in sorted(DATA.glob("dev_*"))}
    # Sets on the same subject stay apart: a fact of one answers some near-misses of the other.
    bare = [own for name, own in sets.items() if name not in ORDINARY]
    pooled = Knowledge(
        [fact for own in bare for fact in own.facts], [(name + POOLED, item) for own in bare for name, item in own.questions]
    )
    found: dict[str, list[Sample]] = {layer: [] for layer in LAYERS}
    for library in (*sets.values(), pooled, shipped_library()):
        for layer, items in ask_all(library, store, settings, student).items():
            found[layer] += items
    found["cartridge"] = for_layer_2(found["cartridge"])
    return found


def for_layer_2(items: list[Sample]) -> list[Sample]:
    """Without the traps that its verifier has learned from, which would only blur the fit."""
    taught = taught_questions()
    return [item for item in items if item.group not in TRAPS or item.question not in taught]


def in_turn(
    samples: dict[str, list[Sample]], confidences: dict[str, Floats], fit: Calibration, budget: float
) -> tuple[list[Sample], Bools]:
    """What the layers of SHARES answer one after the other: of each question the answer that is given, or the last
    one's that is not, and which are given."""
    said: dict[tuple[str, int], tuple[Sample, bool]] = {}
    for layer in SHARES:
        enough = fit.enough(layer, budget)
        for item, sure in zip(samples[layer], confidences[layer].tolist(), strict=True):
            place = item.group, item.question
            if place not in said or not said[place][1]:
                said[place] = item, sure >= enough
    return [item for item, _ in said.values()], np.array([given for _, given in said.values()])


def table_rows(name: str, budget: float, threshold: str, samples: list[Sample], given: Bools) -> list[tuple[object, ...]]:
    """One line for each group of questions: how many answers are given, and how good they are."""
    groups = {
        "ordinary": np.array([item.traffic for item in samples]),
        "obscure": np.array([not item.traffic and item.group not in JUDGES and POOLED not in item.group for item in samples]),
        "imported": np.array([item.group == "dev_d" for item in samples]),
        **{judge: np.array([item.group == judge for item in samples]) for judge in JUDGES},
    }
    right, answerable, near = (np.array([getattr(i, n) for i in samples]) for n in ("right", "answerable", "near_miss"))
    rows: list[tuple[object, ...]] = []
    for group, chosen in groups.items():
        if not chosen.any():  # layer 1 was taught nothing of imported facts
            continue
        accepted = chosen & given
        error = 1 - right[accepted].mean() if accepted.any() else 0.0
        coverage = right[accepted].sum() / answerable[chosen].sum()
        caught = f"{near[accepted].sum()} of {near[chosen].sum()}"
        rows.append((name, budget, threshold, group, int(accepted.sum()), f"{error:.3f}", f"{coverage:.3f}", caught))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="replace calibration.json and held_out.npz in kitbash_ray/")
    options = parser.parse_args()
    settings = load_settings()
    store = VectorStore(open_embedder(settings), settings.cache_dir)
    student = open_student(STUDENT, max_tokens=settings.bitnet_max_tokens)
    asked = collect(store, settings, student)
    taught = fresh({layer: [item for item in items if item.group not in JUDGES] for layer, items in asked.items()})
    judging = {layer: [item for item in items if item.group in JUDGES] for layer, items in asked.items()}
    facts = shipped_library().facts
    index = GrainIndex(build_arrays(facts, store))
    exact = exact_matches(index, [(ask, fact.id) for fact in facts for ask in fact.asks])
    assert student.engine is not None
    fit, unseen = calibrate(taught, exact, {student.name: student.engine.name})
    samples, confidences, metrics = {}, {}, {"exact": fit.exact}
    for layer in LAYERS:
        judged = np.array([fit.layers[layer].confidence(item.evidence) for item in judging[layer]])
        samples[layer], confidences[layer] = taught[layer] + judging[layer], np.concatenate([unseen[layer], judged])
        right = np.array([item.right for item in samples[layer]])
        metrics[f"{layer}_ece"] = round(calibration_error(confidences[layer], right), 4)
    rows = []
    for budget in SHOWN_BUDGETS:
        for layer in LAYERS:
            enough = fit.enough(layer, budget)
            rows += table_rows(layer, budget, f"{enough:.3f}", samples[layer], confidences[layer] >= enough)
        rows += table_rows(BOTH, budget, "", *in_turn(samples, confidences, fit, budget))
    metrics |= {
        f"{name}_{group}_{what}": float(str(value))
        for name, budget, _, group, _, error, coverage, _ in rows
        if budget == DEFAULT_BUDGET and group != "obscure"
        for what, value in (("right", coverage), ("error", error))
    }
    print_table(
        "Held-out questions, each in its own library",
        ("layer", "budget", "threshold", "questions", "accepted", "error", "right", "near-misses"),
        rows,
    )
    if options.write:
        save_calibration(fit, SHIPPED)
        stored = {layer: [item for item in items if item.group != CARTRIDGES] for layer, items in taught.items()}
        save_samples(stored, SHIPPED_SAMPLES)
    finish("fit_calibration", metrics, {f"{layer}_ece": ("<=", 0.08) for layer in LAYERS})


if __name__ == "__main__":
    main()
