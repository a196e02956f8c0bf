"""What the benchmarks share: percentiles, a table, and the JSON object on the last line."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

Targets = Mapping[str, tuple[str, float]]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not exceed, by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=120).print(table)


def finish(name: str, metrics: Mapping[str, float], targets: Targets) -> None:
    """Print the last line: what was measured, what was aimed at, and whether it was met."""
    compare = {">=": operator.ge, "<=": operator.le}
    met = all(compare[sign](metrics[metric], goal) for metric, (sign, goal) in targets.items())
    print(
        json.dumps(
            {"benchmark": name, "metrics": dict(metrics), "targets": {k: list(v) for k, v in targets.items()}, "met": met}
        )
    )
