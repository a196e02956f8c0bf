"""How many near-miss swaps of shipped facts are answered with a fact all the same.

A swap is a way to ask for a fact with one thing exchanged: another thing or number, a negation, the
opposite, another quantity, a part for the whole or the whole for a part, another property. No shipped
fact answers it, so each answer is wrong. The controls are swaps that a fact does answer.
Direct mode with the shipped calibration; nothing is fitted or chosen on this set.

    python -m benchmarks.swaps [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import finish, print_table
from kitbash_ray.bounds import upper_bound
from kitbash_ray.config import load_settings
from kitbash_ray.direct import Direct
from kitbash_ray.knowledge.documents import read_jsonl
from kitbash_ray.types import Answer, Query

SET = Path(__file__).with_name("data") / "swaps" / "questions.jsonl"
KINDS = ("entity", "number", "negation", "opposite", "unit", "subset", "superset", "property")
CONTROL = "answerable"
BUDGETS = (0.01, 0.02, 0.05, 0.10)
#: The budget that has the target, and whose wrong answers are listed.
LISTED = 0.02
TARGETS = {"wrong_at_0.02": ("<=", 0.0)}


@dataclass(frozen=True)
class Swap:
    """One question; `expected` is empty unless it is a control. `of` is the fact it was made from."""

    query: str
    expected: frozenset[str]
    kind: str
    of: str

    def right(self, answer: Answer) -> bool:
        """Whether the fact that the answer rests on is one that was expected."""
        return bool(answer.sources) and answer.sources[0].fact_id in self.expected


def read_swaps() -> list[Swap]:
    return [Swap(raw["query"], frozenset(raw["expected"]), raw["kind"], raw["of"]) for _, raw in read_jsonl(SET)]


async def ask_all(kitbash: Direct, swaps: Iterable[Swap], max_error: float) -> list[Answer]:
    return [await kitbash.ask(Query(swap.query, max_error=max_error)) for swap in swaps]


def offenders(swaps: list[Swap], answers: list[Answer]) -> list[tuple[Swap, Answer]]:
    """What was answered although no fact answers it, or with another fact than the expected one."""
    pairs = zip(swaps, answers, strict=True)
    return [(swap, answer) for swap, answer in pairs if answer.status == "answered" and not swap.right(answer)]


def count_right(swaps: list[Swap], answers: list[Answer]) -> int:
    """Controls that were answered with the fact that answers them."""
    return sum(a.status == "answered" and swap.right(a) for swap, a in zip(swaps, answers, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every fourth question")
    swaps = read_swaps()[:: 4 if parser.parse_args().quick else 1]
    kitbash = Direct(load_settings())
    answers = {budget: asyncio.run(ask_all(kitbash, swaps, budget)) for budget in BUDGETS}
    wrong = {budget: offenders(swaps, answers[budget]) for budget in BUDGETS}
    asked = sum(swap.kind != CONTROL for swap in swaps)
    total = {budget: sum(swap.kind != CONTROL for swap, _ in wrong[budget]) for budget in BUDGETS}
    right = {budget: count_right(swaps, answers[budget]) for budget in BUDGETS}
    rows: list[tuple[object, ...]] = [
        (kind, sum(swap.kind == kind for swap in swaps), *(sum(s.kind == kind for s, _ in wrong[b]) for b in BUDGETS))
        for kind in (*KINDS, CONTROL)
    ]
    rows.append(("all swaps", asked, *total.values()))
    rows.append(("at most, in %", "", *(f"{100 * upper_bound(count, asked):.1f}" for count in total.values())))
    rows.append(("controls right", len(swaps) - asked, *right.values()))
    print_table("Answered with a wrong fact, by error budget", ("kind", "questions", *map(str, BUDGETS)), rows)
    print_table(
        f"Wrongly answered at {LISTED}, the surest first",
        ("kind", "question", "answered with", "layer", "sure"),
        [
            (swap.kind, swap.query, answer.sources[0].fact_id, answer.layer, f"{answer.confidence or 0:.3f}")
            for swap, answer in sorted(wrong[LISTED], key=lambda pair: -(pair[1].confidence or 0))
        ],
    )
    metrics: dict[str, float] = {"swaps": asked, "controls": len(swaps) - asked}
    metrics |= {f"wrong_at_{budget:.2f}": count for budget, count in total.items()}
    metrics |= {f"controls_right_at_{budget:.2f}": count for budget, count in right.items()}
    finish("swaps", metrics, TARGETS)


if __name__ == "__main__":
    main()
