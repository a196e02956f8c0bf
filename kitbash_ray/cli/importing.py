"""`kitbash cartridge import|remove|propose`: people's own documents as cartridges.

The work is done in knowledge/importers.py and knowledge/proposals.py; here it is asked for and told.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kitbash_ray.cli.console import count, errors, progress_bar
from kitbash_ray.config import load_settings
from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.importers import Imported, import_path, is_document, is_document_folder, remove_cartridge
from kitbash_ray.knowledge.proposals import PROPOSALS, propose_grains, write_proposals

Cartridges = Annotated[
    Path | None,
    typer.Option("--cartridges", metavar="DIR", help="Folder that holds the cartridges; default: the setting CARTRIDGES_DIR."),
]


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A file, or a folder of them: Markdown, text, HTML, PDF, Word (.docx), Jupyter (.ipynb), CSV, TSV, JSON Lines.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the cartridge to make or, if it was imported before, to renew.")],
    cartridges: Cartridges = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and import again whenever a file changes. Ctrl-C ends it.")
    ] = False,
) -> None:
    """Turn a file or a folder into a cartridge of passages.

    Documents are cut into passages at their headings and paragraphs; an answer cites the file and the section. JSON Lines:
    an object a line with text and, if you like, id, asks and source. CSV and TSV: a header row with the columns text, id,
    asks (separated by a bar) and source. Importing a folder again reads only the files that changed and drops those
    that are gone. A fault is named by file and line; in a folder that file is left out.

    Example: kitbash cartridge import ~/notes --name notes --watch
    """
    library = load_settings(cartridges_dir=cartridges).cartridges_dir
    imported = _import(source, name, library)
    where = f"--cartridges {shlex.quote(str(cartridges))} " if cartridges else ""
    print(f"Ask next: kitbash ask {where}{shlex.quote(imported.example or f'a question that {source.name} answers')}")
    if watch:
        print(f"Watching {source}; Ctrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):
            _keep_in_step(source, name, library)
        print("Stopped watching.")


def _keep_in_step(source: Path, name: str, library: Path) -> None:
    for _ in _changes(source, library):
        try:
            _import(source, name, library)
        except CartridgeError as error:  # a half-written file; the next change may mend it
            errors.print(f"[yellow]not imported:[/] {escape(str(error))}", soft_wrap=True)


def remove(
    name: Annotated[str, typer.Argument(help="Name of an imported cartridge.")],
    cartridges: Cartridges = None,
) -> None:
    """Remove an imported cartridge; the documents it came from stay where they are.

    One that was written by hand (it has a facts.yaml) is refused.

    Example: kitbash cartridge remove notes
    """
    library = load_settings(cartridges_dir=cartridges).cartridges_dir
    print(f"Removed {library / name} with {count(remove_cartridge(name, library), 'passage')}.")


def propose(
    name: Annotated[str, typer.Argument(help="Name of an imported cartridge.")],
    cartridges: Cartridges = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Proposals to write, the most definite first.")] = 50,
) -> None:
    """Propose facts for layer 0 from the sentences of imported documents.

    A sentence that defines something or states a number becomes an entry with ways to ask, in proposals.yaml beside the
    passages. Nothing reads that file: review each entry, and move what is right to facts.yaml.

    Example: kitbash cartridge propose notes
    """
    folder = load_settings(cartridges_dir=cartridges).cartridges_dir / name
    proposals = propose_grains(folder, most)
    write_proposals(folder, proposals)
    print(f"Wrote {count(proposals, 'proposal')} to {folder / PROPOSALS}.")
    print(f"Review them, move what is right to {folder / 'facts.yaml'}, then run: kitbash cartridge check {name}")


def _import(source: Path, name: str, library: Path) -> Imported:
    with progress_bar(escape(source.name)) as progress:
        imported = import_path(source, name, library, progress)
    for problem in imported.left_out:
        errors.print(f"[yellow]left out:[/] {escape(problem)}", soft_wrap=True)
    print(f"Imported {count(imported.passages, 'passage')} from {source} into {imported.folder}.{_files(imported)}", flush=True)
    if imported.skipped:
        print(f"Skipped as word-for-word repetitions: {imported.skipped:,}.")
    if imported.renamed:
        print(f"Ids changed because of characters that an id cannot have: {imported.renamed:,}.")
    return imported


def _files(imported: Imported) -> str:
    told = {"read": len(imported.read), "unchanged": imported.kept, "gone": len(imported.gone)}
    if sum(told.values()) <= 1:
        return ""
    return " Files: " + ", ".join(f"{number:,} {what}" for what, number in told.items() if number) + "."


def _changes(source: Path, library: Path) -> Iterator[object]:
    """Once for each burst of changes to what an import reads; ends with Ctrl-C."""
    from watchfiles import watch

    root = source if source.is_dir() else source.parent  # editors replace a file, so its folder is watched

    def counts(_: object, changed: str) -> bool:
        path = Path(changed)
        if root != source:
            return path.name == source.name
        folders = [folder for folder in path.parents if root in folder.parents]
        return is_document(path) and all(is_document_folder(folder, library) for folder in folders)

    yield from watch(root, watch_filter=counts)
