"""`kitbash chat`: a conversation that shows the path of every question, layer by layer."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from kitbash_ray.cli import asker as askers
from kitbash_ray.cli.console import output, start_log
from kitbash_ray.cli.tables import events_table, layers_table
from kitbash_ray.config import load_settings
from kitbash_ray.errors import KitbashError
from kitbash_ray.render import answer_panel, best_guess, percent
from kitbash_ray.types import Answer, Event, Query, Turn

HELP = """[bold]/why[/] how the last answer came about   [bold]/feed[/] its events   [bold]/layers[/] the layers and how they are
[bold]/new[/] forget the conversation          [bold]/help[/] this              [bold]/quit[/] leave (also Ctrl-D)"""
#: Earlier messages that are sent along.
REMEMBERED = 12
MARKS = {
    "answered": "[green]answered[/]",
    "abstained": "[yellow]abstained[/]",
    "failed": "[red]failed[/]",
    "timeout": "[red]timed out[/]",
}


def chat(
    mode: askers.Mode | None = typer.Option(
        None,
        help="`redis`: the running cluster. `direct`: this process. [default: the cluster if one runs]",
        show_default=False,
    ),
    cartridges: Path | None = typer.Option(None, help="Folder of cartridges for --mode direct.", show_default=False),
) -> None:
    """Talk with Kitbash; each question shows its way through the layers.

    kitbash chat --mode direct
    """
    settings = load_settings(cartridges_dir=cartridges)
    start_log(settings)
    talk = Chat(askers.open_asker(mode, settings, own_cartridges=cartridges is not None))
    try:
        talk.run()
    finally:
        talk.asker.close()


class Chat:
    """One conversation at a terminal."""

    def __init__(self, asker: askers.Asker) -> None:
        self.asker = asker
        self._history: list[Turn] = []
        self._events: list[Event] = []
        self._last: Answer | None = None

    def run(self) -> None:
        _enable_line_editing()
        output.print(f"Kitbash, {self.asker.mode} mode. Ask something; /help lists the commands.")
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                output.print()
                return
            if line == "/quit":
                return
            if line:
                self._do(line)

    def _do(self, line: str) -> None:
        commands = {"/why": self._why, "/feed": self._feed, "/layers": self._layers, "/new": self._new, "/help": self._help}
        try:
            if line.startswith("/"):
                commands.get(line, self._unknown)()
            else:
                self._ask(line)
        except KitbashError as error:
            output.print(f"[red]{escape(str(error))}[/]")
        except KeyboardInterrupt:
            output.print("[dim]stopped[/]")

    def _ask(self, text: str) -> None:
        self._events = []
        for event in self.asker.events(Query(text, history=tuple(self._history[-REMEMBERED:]))):
            self._events.append(event)
            self._show(event)
            self._last = event.answer or self._last
        self._history.append(Turn("user", text))
        if self._last and self._last.answer:
            self._history.append(Turn("assistant", self._last.answer))

    def _show(self, event: Event) -> None:
        if event.kind == "layer.delta" and event.text:
            output.print(escape(event.text), end="", style="dim")
        elif event.kind == "layer.finished" and event.result:
            result = event.result
            sure = (
                f" [dim]confidence[/] {percent(result.confidence)}"
                if result.outcome == "answered"
                else f" [dim]{escape(result.reason or '')}[/]"
            )
            output.print(f"  [bold]{result.layer:<10}[/]{MARKS[result.outcome]}{sure} [dim]{result.latency_ms:.2f} ms[/]")
        elif event.answer:
            if event.answer.answer:
                output.print(f"{escape(event.answer.answer)}", style="bold")
            else:
                guess = best_guess(event.answer)
                shown = f" Best guess: {escape(guess)}" if guess else ""
                output.print(f"I am not sure enough to answer.{shown}", style="yellow")

    def _why(self) -> None:
        output.print(answer_panel(self._last) if self._last else "Nothing was asked yet.")

    def _feed(self) -> None:
        output.print(events_table(self._events) if self._events else "Nothing was asked yet.")

    def _layers(self) -> None:
        output.print(layers_table(self.asker.layers()))

    def _new(self) -> None:
        self._history.clear()
        output.print("[dim]forgotten[/]")

    def _help(self) -> None:
        output.print(HELP)

    def _unknown(self) -> None:
        output.print(f"No such command.\n{HELP}")


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401 - importing it gives input() its line editing
    except ImportError:  # Windows, or a Python built without it
        return
