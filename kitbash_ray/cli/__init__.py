"""The `kitbash` command: parse, call, print. One file per group of commands.

Results go to standard output, progress and remarks to standard error. Exit codes are in
exits.py; an error that is meant for people is one line, whatever raised it.
"""

from __future__ import annotations

import sys

import typer

from kitbash_ray.cli import (
    ask,
    calibrate,
    cartridge,
    chat,
    cluster,
    demo,
    distil,
    doctor,
    evaluate,
    exits,
    key,
    models,
    node,
    queue,
    record,
    worker,
)
from kitbash_ray.cli.console import errors
from kitbash_ray.errors import KitbashError

app = typer.Typer(
    name="kitbash",
    help="Ask questions that fall through layers, the cheapest first. Every answer says where it came "
    "from, how sure it is and which path it took.",
    epilog='Begin with `kitbash up`, then `kitbash ask "What is ATP?"`. Without a cluster: `kitbash ask --mode direct ...`.',
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(cluster.up)
app.command()(cluster.down)
app.command()(cluster.status)
app.command()(doctor.doctor)
app.command()(ask.ask)
app.command()(queue.result)
app.command()(chat.chat)
app.command()(cluster.feed)
app.command()(record.why)
app.command()(record.replay)
app.command()(record.feedback)
app.command("report")(record.show_report)
app.command("eval")(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(distil.distil)
app.command()(demo.demo)
app.command()(worker.worker)
app.add_typer(cartridge.app, name="cartridge")
app.add_typer(key.app, name="key")
app.add_typer(models.app, name="models")
app.add_typer(node.app, name="node")
app.add_typer(queue.app, name="queue")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from kitbash_ray import __version__

        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; a KitbashError becomes one line on standard error and its exit code."""
    try:
        app()
    except KitbashError as error:
        errors.print(f"[bold red]kitbash:[/] {_plain(error)}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(exits.INTERRUPTED)
    except BrokenPipeError:  # `kitbash feed | head`
        sys.stderr.close()
        sys.exit(exits.OK)


def _plain(error: KitbashError) -> str:
    return str(error).replace("[", r"\[")
