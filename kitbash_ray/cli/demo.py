"""`kitbash demo`: eight questions that show what the layers do, and what they refuse to do."""

from __future__ import annotations

from dataclasses import dataclass

from kitbash_ray.cli.cluster import show_where, start
from kitbash_ray.cli.console import errors, output, start_log
from kitbash_ray.client import Kitbash
from kitbash_ray.config import load_settings
from kitbash_ray.render import answer_panel
from kitbash_ray.types import Turn


@dataclass(frozen=True, slots=True)
class Shown:
    """A question of the demo and what it shows."""

    title: str
    question: str
    history: tuple[Turn, ...] = ()


QUESTIONS = (
    Shown("1  an exact grain", "What is ATP?"),
    Shown("2  a paraphrase of one", "Which molecule is the main energy currency of the cell?"),
    Shown("3  two facts from cartridges", "How old are the Earth and the universe?"),
    Shown(
        "4  a follow-up: it must not hit a grain",
        "And why is that?",
        (Turn("user", "What is ATP?"), Turn("assistant", "ATP is the main energy currency of cells.")),
    ),
    Shown("5  a near-miss: another port", "What port does Redis Cluster use for its bus?"),
    Shown("6  a near-miss: who, and not what", "Who discovered ATP?"),
    Shown("7  out of scope", "Who won the 1998 football World Cup?"),
    Shown("8  for layer 4, the language model", "Write two sentences that make a child curious about enzymes."),
)


def demo() -> None:
    """Start the cluster if it does not run, and ask eight questions.

    An exact grain, a paraphrase, one for two facts of a cartridge, a follow-up, two near-misses
    and a question out of scope, which must be abstained from, and one for the language model.
    """
    settings = load_settings()
    start_log(settings)
    found = start(settings)
    with Kitbash(found.url, settings=settings) as client:
        for shown in QUESTIONS:
            output.print(answer_panel(client.ask(shown.question, history=shown.history), title=shown.title))
    show_where(settings, found)
    errors.print('[dim]The cluster stays up: `kitbash ask "..."`, `kitbash chat`, `kitbash status`; `kitbash down` ends it.[/]')
