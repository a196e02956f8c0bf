"""`kitbash calibrate`: fit confidences and thresholds on held-out questions, and see whether they still hold."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from msgspec.structs import replace
from rich import box
from rich.table import Table

from kitbash_ray.bounds import lower_bound, upper_bound
from kitbash_ray.calibration import SHIPPED, Calibration, load_calibration, save_calibration
from kitbash_ray.cli import exits
from kitbash_ray.cli.console import count, errors, output, progress_bar, start_log
from kitbash_ray.client import Kitbash
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.consensus import agreement
from kitbash_ray.fitting import FEWEST, Floats, Sample, exact_matches, fresh, load_samples, sample
from kitbash_ray.fitting import calibrate as fit_all
from kitbash_ray.knowledge.library import Library
from kitbash_ray.knowledge.vectors import Progress
from kitbash_ray.policy import AGREE
from kitbash_ray.questions import Question, held_out, read_questions
from kitbash_ray.state import running
from kitbash_ray.types import Event, LayerResult, Query

SHOWN_BUDGETS = (0.01, 0.02, 0.05, 0.1)
#: Groups of samples that are not shipped.
LIBRARY, FILES, FEEDBACK = "library", "files", "feedback"
Grouped = list[tuple[str, Question]]


def calibrate(
    files: list[Path] = typer.Argument(
        None, help="Questions like those you are asked, in the format of `kitbash eval`.", show_default=False
    ),
    check: bool = typer.Option(False, "--check", help="Fit nothing: tell whether the error is still within the budget."),
    alone: bool = typer.Option(
        False, "--alone", help="Prove thresholds on FILES and feedback alone, without the shipped sets."
    ),
    language_model: bool = typer.Option(False, "--language-model", help="Also calibrate layer 4; it is asked every question."),
    plot: Path | None = typer.Option(
        None, help="Where the reliability diagram goes. [default: KITBASH_STATE_DIR]", show_default=False
    ),
) -> None:
    """Make confidences true for your cartridges, and thresholds that keep the error budget.

    Asks the held-out questions of all cartridges, those of FILES and those with feedback, beside the
    evidence of the sets that ship with Kitbash. The answers of a running cluster use the result from
    its next start on.

    kitbash calibrate

    kitbash calibrate my_questions.jsonl --alone

    kitbash calibrate --check      # exit code 1: the error has left the budget
    """
    settings = load_settings()
    start_log(settings)
    own: Grouped = [(FILES, question) for path in files or () for question in read_questions(path)]
    own += [(FEEDBACK, question) for question in _feedback(settings)]
    if check:
        _check(own, settings)
        return
    if alone and not own:
        errors.print("[yellow]--alone needs questions:[/] name a file, or give feedback first.")
        raise typer.Exit(exits.FAILED)
    _fit(own, settings, alone, language_model, plot)


def _fit(own: Grouped, settings: Settings, alone: bool, language_model: bool, plot: Path | None) -> None:
    from kitbash_ray.direct import Direct, calibration_file
    from kitbash_ray.evaluation import calibration_error
    from kitbash_ray.plots import plot_reliability

    contents = Library(settings.cartridges_dir).load()
    questions = [(LIBRARY, question) for question in held_out(contents)] + own
    with progress_bar("indexing the cartridges") as report:
        # A calibration of an older version is what may have to be replaced, so it is not opened.
        direct = Direct(settings.model_copy(update={"kitbash_calibration": SHIPPED}), report)
    layers: list[Any] = [layer for layer in direct.cascade.layers.values() if not getattr(layer, "unavailable", None)]
    layers = [layer for layer in layers if layer.name != "kobold" or language_model]
    facts = {fact.id: fact.text for fact in contents.facts}
    with progress_bar("asking held-out questions") as report:
        asked = asyncio.run(_ask_all(layers, questions, facts, direct.cosine, report))
    shipped = load_samples()
    samples = fresh({name: _joined(shipped.get(name, []), asked[name], alone) for name in asked})
    own_exact = exact_matches(direct.index, [(ask, fact.id) for fact in contents.facts for ask in fact.asks])
    # Matching is the same everywhere, so a small library need not prove it alone.
    wrong, of = load_calibration().exact_matches
    exact = own_exact[0] + wrong, own_exact[1] + of
    models = {layer.name: layer.engine.name for layer in layers if hasattr(layer, "engine")}
    with errors.status("fitting"):
        fit, unseen = fit_all(samples, exact, models)
    where = calibration_file(settings)
    save_calibration(fit, where.parent / "calibrations" / f"{fit.version}.json")
    save_calibration(fit, where)
    _show(fit, samples, unseen)
    columns = {name: (unseen[name], _right(samples[name])) for name in fit.layers}
    picture = plot or settings.state_dir / "reliability.png"
    plot_reliability(columns, picture)
    for name, (confidences, right) in columns.items():
        output.print(f"{name}: expected calibration error {calibration_error(confidences, right):.3f}")
    for name in samples.keys() - fit.layers.keys():
        output.print(f"[yellow]{name}: only {len(samples[name])} answers, {FEWEST} are needed; it states no confidence.[/]")
    output.print(f"reliability diagram in {picture}", soft_wrap=True)
    output.print(f"calibration [bold]{fit.version}[/] saved in {where}", soft_wrap=True)
    if running(settings):
        output.print("The running cluster uses it after `kitbash down` and `kitbash up`.")


def _joined(shipped: Sequence[Sample], asked: Sequence[Sample], alone: bool) -> list[Sample]:
    return [replace(item, traffic=False) if alone else item for item in shipped] + list(asked)


def _right(samples: Sequence[Sample]) -> Any:
    import numpy as np

    return np.array([item.right for item in samples], np.bool_)


async def _ask_all(
    layers: Sequence[Any], questions: Grouped, facts: dict[str, str], cosine: Any, report: Progress
) -> dict[str, list[Sample]]:
    """What each layer makes of each question; later layers see what earlier ones said."""
    found: dict[str, list[Sample]] = {layer.name: [] for layer in layers}
    for number, (group, question) in enumerate(questions, 1):
        so_far: tuple[LayerResult, ...] = ()
        for layer in layers:
            said = await layer.answer(Query(question.query), so_far)
            so_far += (said,)
            right = await _says(said, question, facts, cosine) if hasattr(layer, "engine") else None
            if item := sample(question, said, traffic=group != LIBRARY, group=group, right=right):
                found[layer.name].append(item)
        report(number, len(questions))
    return found


async def _says(said: LayerResult, question: Question, facts: dict[str, str], cosine: Any) -> bool:
    """Whether a generated text is right: by citation, or because it means what an expected fact says."""
    if said.text is None or question.right(said):
        return said.text is not None
    known = [facts[fact] for fact in question.expected if fact in facts]
    return any([agreement(said.text, fact, await cosine(said.text, fact)) >= AGREE for fact in known])


def _feedback(settings: Settings) -> list[Question]:
    """Questions of the running cluster whose answers somebody has judged."""
    if not (settings.kitbash_url or running(settings)):
        return []
    with Kitbash(settings=settings) as client:
        judged = {event.query_id: event for event in client.feed("0", follow=False) if event.right is not None}
    return [question for event in judged.values() if (question := _learned(event))]


def _learned(event: Event) -> Question | None:
    if not event.answer or not event.answer.sources:
        return None
    fact = event.answer.sources[0].fact_id
    return Question(event.answer.query, (fact,), kind=FEEDBACK) if event.right else Question(event.answer.query, refused=fact)


def _check(own: Grouped, settings: Settings) -> None:
    """Whether the answers to FILES and those with feedback keep to the budget."""
    from kitbash_ray.direct import Direct

    if not own:
        output.print("Nothing to check: name a file of questions, or give feedback with `kitbash feedback`.")
        return
    answers = wrong = 0
    with progress_bar("indexing the cartridges") as report:
        direct = Direct(settings, report)
    with progress_bar("asking") as report:
        for number, (_, question) in enumerate(own, 1):
            answer = asyncio.run(direct.ask(Query(question.query)))
            told = question.refused is None or bool(answer.sources and answer.sources[0].fact_id == question.refused)
            if answer.status == "answered" and told:
                answers, wrong = answers + 1, wrong + (not question.right(answer))
            report(number, len(own))
    budget, least, most = settings.kitbash_max_error, lower_bound(wrong, answers), upper_bound(wrong, answers)
    said = (
        f"{wrong} of {count(answers, 'answer')} wrong; with 95 % confidence the error lies between {least:.1%} and {most:.1%}"
    )
    output.print(f"{said}. The budget is {budget:.1%}.")
    if least > budget:
        output.print("[red]The error has left the budget:[/] run `kitbash calibrate` with questions like these.")
        raise typer.Exit(exits.FAILED)
    output.print("Within the budget." if most <= budget else "Not outside of it, but too few answers to prove that it is kept.")


def _show(fit: Calibration, samples: dict[str, list[Sample]], unseen: dict[str, Floats]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "n", "budget", "threshold", "coverage", "error", "bound"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, layer in fit.layers.items():
        for budget, threshold in layer.thresholds:
            if budget not in SHOWN_BUDGETS:
                continue
            cells = (f"{threshold.value:.3f}", f"{threshold.coverage:.1%}", f"{threshold.error:.1%}", f"{threshold.bound:.1%}")
            exact = "exact matches only" if name == "grain" else "nothing"
            shown = cells if threshold.proven else ("1.000", exact, "", "not proven")
            table.add_row(name, str(threshold.questions), f"{budget:.1%}", *shown)
    output.print(table)
    unproven = [f"{name} at {budget:.1%}" for name, f in fit.layers.items() for budget, t in f.thresholds if not t.proven]
    if unproven:
        output.print(f"[yellow]Too few answers to prove a threshold: {', '.join(unproven)}.[/] More questions lower them.")
