"""Pictures of an evaluation as PNG files: reliability diagram and risk-coverage curve. Uses Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitbash_ray.evaluation import Bools, Floats, area_under, calibration_error, reliability, risk_coverage

SIZE_INCHES, DPI = (6.4, 5.2), 130


def plot_reliability(layers: Mapping[str, tuple[Floats, Bools]], path: Path) -> None:
    """Stated confidence against how often it was right, for each layer; a true confidence lies on the diagonal."""
    figure, axes = _figure("confidence stated", "share that is right", "Reliability")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="as stated")
    for layer, (confidences, right) in layers.items():
        points = reliability(confidences, right)
        label = f"{layer}: {len(right)} answers, ECE {calibration_error(confidences, right):.3f}"
        (line,) = axes.plot([said for said, _, _ in points], [was for _, was, _ in points], label=label)
        sizes = [20 + 400 * share for _, _, share in points]
        axes.scatter([said for said, _, _ in points], [was for _, was, _ in points], s=sizes, color=line.get_color(), alpha=0.5)
    _save(figure, axes, path)


def plot_risk_coverage(runs: Mapping[str, tuple[Floats, Bools]], path: Path, max_error: float) -> None:
    """Share of wrong answers when ever more questions are answered, the surest first."""
    figure, axes = _figure(
        "share of the questions that are answered", "share of the answers that is wrong", "Risk and coverage"
    )
    for name, (confidences, right) in runs.items():
        coverage, risk = risk_coverage(confidences, right)
        axes.plot(coverage, risk, label=f"{name}: area {area_under(risk):.3f}")
    axes.axhline(max_error, color="grey", linewidth=1, linestyle="--", label=f"error budget {max_error:g}")
    _save(figure, axes, path)


def _figure(x: str, y: str, title: str) -> tuple[Any, Any]:
    # The object interface, without pyplot: no display, no state that threads would share.
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(loc="best", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
