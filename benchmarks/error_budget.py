"""Does the error stay within the budget? Budgets of 1, 2, 5 and 10 % on each benchmark that accepts or refuses.

A threshold is proven on one half of a benchmark's questions (kitbash_ray/bounds.py) and its
error is observed on the other. A cell counts as over budget when its observed error is above
the budget; with 95 % confidence in each bound, about one cell in twenty may be.

    python -m benchmarks.error_budget [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import clinc150, facts, gsm8k_cascade, squad2
from benchmarks.common import finish, print_table

Cell = tuple[str, float, int, float, float]

SOURCES: dict[str, Callable[[], list[Cell]]] = {
    "facts": facts.budget_cells,
    "clinc150": clinc150.budget_cells,
    "gsm8k_cascade": gsm8k_cascade.budget_cells,
    "squad2": squad2.budget_cells,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the facts alone")
    quick = parser.parse_args().quick
    cells = [cell for name, source in SOURCES.items() if not quick or name == "facts" for cell in source()]
    over = [cell for cell in cells if cell[3] > cell[1]]
    rows = [
        (
            name,
            f"{budget:g}",
            accepted,
            f"{error:.4f}" if accepted else "nothing proven",
            f"{coverage:.3f}",
            "over" * (error > budget),
        )
        for name, budget, accepted, error, coverage in cells
    ]
    print_table("Error against budget", ("benchmark", "budget", "accepted", "observed error", "coverage", ""), rows)
    finish("error_budget", {"cells": len(cells), "cells_over_budget": len(over)}, {"cells_over_budget": ("<=", 0)})


if __name__ == "__main__":
    main()
