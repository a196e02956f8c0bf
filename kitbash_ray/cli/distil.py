"""`kitbash distil`: teach the small model of layer 1 what the cartridges know."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kitbash_ray.cli.console import count, errors, output, progress_bar, start_log
from kitbash_ray.config import Settings, load_settings
from kitbash_ray.errors import ModelError

if TYPE_CHECKING:
    from kitbash_ray.learn.corpus import Corpus
    from kitbash_ray.learn.manifest import Scores
    from kitbash_ray.learn.recipe import Recipe
    from kitbash_ray.learn.train import Training
    from kitbash_ray.questions import Question

NEEDED = ("torch", "tokenizers")
CHECKPOINT = "checkpoint.pt"


def distil(
    out: Path | None = typer.Option(
        None, help="Folder for the student. [default: student in KITBASH_STATE_DIR]", show_default=False
    ),
    cartridges: Path | None = typer.Option(None, help="Folder of cartridges. [default: CARTRIDGES_DIR]", show_default=False),
    steps: int | None = typer.Option(None, min=1, help="Steps of training. [default: the recipe's]", show_default=False),
    resume: bool = typer.Option(True, "--resume/--fresh", help="Go on from the checkpoint of a run that was interrupted."),
) -> None:
    """Teach a small ternary model the facts of your cartridges: about half an hour on two cores.

    Needs the extra `train`. Writes student.gguf, answers.jsonl and manifest.json, and prints what the
    student alone says to the held-out questions. An interrupted run goes on where it was.

    kitbash distil

    kitbash distil --steps 300 --out /tmp/student
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModelError(f"Training needs {' and '.join(missing)}: run pip install 'kitbash-ray[train]'.")
    settings = load_settings(cartridges_dir=cartridges)
    start_log(settings)
    folder = out or settings.state_dir / "student"
    folder.mkdir(parents=True, exist_ok=True)
    _distil(settings, folder, steps, resume)


def _distil(settings: Settings, folder: Path, steps: int | None, resume: bool) -> None:
    from msgspec.structs import replace

    from kitbash_ray.knowledge.embedder import open_embedder
    from kitbash_ray.knowledge.library import Library
    from kitbash_ray.knowledge.vectors import VectorStore
    from kitbash_ray.learn.alike import alike_words
    from kitbash_ray.learn.corpus import load_corpus
    from kitbash_ray.learn.recipe import Recipe
    from kitbash_ray.learn.tokenizer import Vocabulary
    from kitbash_ray.learn.train import Training
    from kitbash_ray.questions import held_out

    contents = Library(settings.cartridges_dir).load()
    for problem in contents.problems:
        errors.print(f"left out: {problem}", soft_wrap=True, markup=False)
    recipe = replace(Recipe(), steps=steps) if steps else Recipe()
    corpus = load_corpus(contents, alike_words)
    with progress_bar("reading the ways to ask") as report:
        vectors = VectorStore(open_embedder(settings), settings.cache_dir).vectors(corpus.meanings, report)
    training = Training(corpus, Vocabulary.learn(corpus.texts, recipe.shape.vocabulary), recipe, vectors)
    _train(training, folder / CHECKPOINT, resume)
    scores = _finish(training, corpus, recipe, folder, held_out(contents), settings)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    _show(scores)
    output.print(f"{count(corpus.facts, 'fact')} taught; the student is in {folder}", soft_wrap=True)


def _train(training: Training, checkpoint: Path, resume: bool) -> None:
    """All steps, with a bar; on Ctrl-C the way to go on is told."""
    if resume and checkpoint.exists():
        why_not = training.resume(checkpoint)
        errors.print(f"starting anew: {why_not}" if why_not else f"going on from step {training.step:,}")
    columns = (
        TextColumn("teaching"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        with Progress(*columns, console=errors, transient=True) as bar:
            task = bar.add_task("", total=training.recipe.steps, completed=training.step, loss=training.loss)
            training.run(checkpoint, lambda done, total, loss: bar.update(task, completed=done, total=total, loss=loss))
    except KeyboardInterrupt:
        errors.print(f"stopped after step {training.step:,}; the same command goes on from {checkpoint}", soft_wrap=True)
        raise


def _finish(
    training: Training, corpus: Corpus, recipe: Recipe, folder: Path, questions: list[Question], settings: Settings
) -> Scores:
    """Write the three files of a student and examine it."""
    from kitbash_ray.layers.bitnet import student_layer
    from kitbash_ray.layers.known_answers import write_answers
    from kitbash_ray.learn.exam import examine
    from kitbash_ray.learn.export import NAME, export
    from kitbash_ray.learn.manifest import ANSWERS, MODEL, Manifest, write_manifest

    export(training.student, training.vocabulary, folder / MODEL)
    write_answers(folder / ANSWERS, corpus.sources)
    layer = student_layer(folder, NAME, max_tokens=settings.bitnet_max_tokens)
    with progress_bar("asking held-out questions") as report:
        scores, _ = examine(layer, questions, report)
    write_manifest(folder, Manifest(NAME, corpus.hash, recipe, scores, tuple(fact.id for fact in corpus.facts)))
    return scores


def _show(scores: Scores) -> None:
    table = Table(title="the student alone, whatever its confidence", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("held-out questions", "right", "wrong", "declined"):
        table.add_column(column, justify="right" if table.columns else "left")
    table.add_row("with an answer", str(scores.right), str(scores.wrong), str(scores.declined))
    table.add_row("without one", str(scores.refused), str(scores.answered), str(scores.refused))
    output.print(table)
