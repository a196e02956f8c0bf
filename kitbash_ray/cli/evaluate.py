"""`kitbash eval`: how good the answers to a file of questions are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich import box
from rich.table import Table

from kitbash_ray.bounds import upper_bound
from kitbash_ray.cli import asker as askers
from kitbash_ray.cli.console import count, errors, output, progress_bar, start_log
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import ConfigError
from kitbash_ray.evaluation import Judged, Score, area_under, calibration_error, columns, judge, risk_coverage, score
from kitbash_ray.knowledge.vectors import Progress
from kitbash_ray.questions import Question, read_questions
from kitbash_ray.types import LAYER_NUMBERS, Query

POLICIES = ("fixed", "calibrated")


def evaluate(
    file: Path = typer.Argument(..., help='JSON Lines: {"query", "expected": [fact ids], "answers": [texts], "kind"}.'),
    mode: askers.Mode | None = typer.Option(
        None,
        help="`redis`: the running cluster. `direct`: this process. [default: the cluster if one runs]",
        show_default=False,
    ),
    cartridges: Path | None = typer.Option(None, help="Folder of cartridges for --mode direct.", show_default=False),
    max_error: float | None = typer.Option(
        None, min=0.001, max=0.999, help="Error budget. [default: KITBASH_MAX_ERROR]", show_default=False
    ),
    compare: str | None = typer.Option(
        None, help="Policies to compare in this process, as `fixed,calibrated`.", show_default=False
    ),
    plots: Path | None = typer.Option(None, help="Folder for the risk-coverage curve and reliability diagram (PNG)."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object, and nothing else, on standard output."),
) -> None:
    """Ask every question of a file and count what is right, wrong and abstained from.

    A line without `expected` and `answers` wants an abstention.

    kitbash eval questions.jsonl --plots pictures/

    kitbash eval questions.jsonl --compare fixed,calibrated --json
    """
    questions = read_questions(file)
    settings = load_settings(cartridges_dir=cartridges, kitbash_max_error=max_error)
    start_log(settings)
    runs = {}
    for name, policy in _policies(compare, mode):
        own = settings if policy is None else load_settings(
            cartridges_dir=cartridges, kitbash_max_error=max_error, kitbash_policy=policy
        )  # fmt: skip
        chosen: askers.Mode | None = "direct" if policy else mode
        asker = askers.open_asker(chosen, own, own_cartridges=cartridges is not None)
        try:
            with progress_bar(f"asking, {name}") as report:
                runs[name] = _ask_all(asker, questions, max_error, report)
        finally:
            asker.close()
    if as_json:
        found: Any = {name: summary(items, settings) for name, items in runs.items()}
        print(json.dumps(found if compare else next(iter(found.values()))))
    else:
        for name, items in runs.items():
            _show(name, items, settings)
    if plots:
        _plot(runs, plots, settings)


def _policies(compare: str | None, mode: askers.Mode | None) -> list[tuple[str, str | None]]:
    if compare is None:
        return [("the answers", None)]
    names = compare.split(",")
    if mode == "redis":
        raise ConfigError("--compare asks in this process: leave --mode redis out.")
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"There is no policy {name!r}: {' and '.join(POLICIES)} are the ones.")
    return [(name, name) for name in names]


def _ask_all(asker: askers.Asker, questions: Sequence[Question], max_error: float | None, report: Progress) -> list[Judged]:
    found = []
    for number, question in enumerate(questions, 1):
        found.append(judge(question, askers.ask(asker, Query(question.query, max_error=max_error))))
        report(number, len(questions))
    return found


def summary(items: Sequence[Judged], settings: Settings) -> dict[str, Any]:
    """All measures of one run, for programs."""
    confidences, right = columns(items)
    _, risk = risk_coverage(confidences, right)
    answered = [item for item in items if item.answered]
    total = score(items)
    return {
        "max_error": settings.kitbash_max_error,
        "calibration": next((item.answer.calibration for item in items if item.answer.calibration), None),
        **_numbers(total),
        "error_bound": round(upper_bound(total.wrong, total.right + total.wrong), 4),
        "ece": round(calibration_error(*columns(answered)), 4) if answered else None,
        "area_under_risk_coverage": round(area_under(risk), 4),
        "kinds": {kind or "unnamed": _numbers(score(group)) for kind, group in _by_kind(items)},
        "layers": {layer: _layer(layer, items) for layer in LAYER_NUMBERS},
    }


def _numbers(found: Score) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    counts: dict[str, Any] = msgspec.to_builtins(found)
    return counts | {"precision": rounded(found.precision), "coverage": rounded(found.coverage)}


def _layer(layer: str, items: Sequence[Judged]) -> dict[str, Any]:
    """What a layer answered, how much of it is right, and how long it took whenever it was asked."""
    import numpy as np

    answered = [item for item in items if item.answered and item.answer.layer == layer]
    latencies = [step.latency_ms for item in items for step in item.answer.path if step.layer == layer]
    p50, p95 = np.percentile(latencies, (50, 95)).round(3).tolist() if latencies else (None, None)
    right = sum(item.right for item in answered)
    return {"asked": len(latencies), "right": right, "wrong": len(answered) - right, "p50_ms": p50, "p95_ms": p95}


def _by_kind(items: Sequence[Judged]) -> Iterable[tuple[str, list[Judged]]]:
    kinds = dict.fromkeys(item.question.kind for item in items)
    return [(kind, [item for item in items if item.question.kind == kind]) for kind in kinds]


def _show(name: str, items: Sequence[Judged], settings: Settings) -> None:
    kinds = Table(title=f"{name}: {count(items, 'question')}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    kinds.add_column("kind")
    for column in ("questions", "right", "wrong", "abstained", "failed", "precision", "coverage"):
        kinds.add_column(column, justify="right")
    for kind, group in [*_by_kind(items), ("all", list(items))]:
        found = score(group)
        kinds.add_row(
            kind or "unnamed",
            *map(str, (found.questions, found.right, found.wrong, found.abstained, found.failed)),
            *("" if share is None else f"{share:.1%}" for share in (found.precision, found.coverage)),
        )
    layers = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    layers.add_column("layer")
    for column in ("asked", "right", "wrong", "p50 ms", "p95 ms"):
        layers.add_column(column, justify="right")
    for layer in LAYER_NUMBERS:
        cells = _layer(layer, items)
        layers.add_row(layer, *("" if value is None else str(value) for value in cells.values()))
    output.print(kinds, layers)
    whole = summary(items, settings)
    answers = whole["right"] + whole["wrong"]
    if answers:
        output.print(
            f"Of {count(answers, 'answer')}, {whole['wrong'] / answers:.1%} are wrong; "
            f"with 95 % confidence at most {whole['error_bound']:.1%} are."
        )
    output.print(
        f"[dim]error budget {settings.kitbash_max_error:g}, calibration {whole['calibration'] or 'none'}, "
        f"ECE {whole['ece'] if answers else 'none'}, area under the risk-coverage curve {whole['area_under_risk_coverage']}[/]"
    )


def _plot(runs: dict[str, list[Judged]], folder: Path, settings: Settings) -> None:
    from kitbash_ray.plots import plot_reliability, plot_risk_coverage

    points = {name: columns(items) for name, items in runs.items()}
    plot_risk_coverage(points, folder / "risk_coverage.png", settings.kitbash_max_error)
    answered = {name: [item for item in items if item.answer.confidence is not None] for name, items in runs.items()}
    plot_reliability({name: columns(items) for name, items in answered.items() if items}, folder / "reliability.png")
    errors.print(f"pictures in {folder}: risk_coverage.png, reliability.png", soft_wrap=True)
