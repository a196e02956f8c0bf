"""Other people's files as the passages of a cartridge: JSON Lines, CSV, Markdown and plain text.

A file becomes `<cartridges>/<name>/` with cartridge.toml and passages.jsonl, complete or not at
all. What a file holds is readers.py's affair. Not here: facts.yaml, which only people write, and PDF, HTML or office documents.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import FACTS, MANIFEST, NAME, PASSAGES, FactId, PassageEntry, validated
from kitbash_ray.knowledge.readers import READERS, Raw

#: Lines between two calls of `progress`.
PROGRESS_LINES = 500
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_file` made.

    `skipped` passages repeated an earlier one word for word, `renamed` ids held characters
    that an id cannot have, and `example` is something to ask, if the file says.
    """

    folder: Path
    passages: int
    skipped: int = 0
    renamed: int = 0
    example: str | None = None


class _Passage(PassageEntry):
    """A passage whose id may be missing until its content is known."""

    id: FactId = ""


def import_file(source: Path, name: str, cartridges_dir: Path, progress: Callable[[int, int], None] | None = None) -> Imported:
    """Make the cartridge `name` of the file `source`; one that was imported before is replaced.

    `progress` is called with (lines done, lines in all). Raises CartridgeError, and then
    nothing has changed.
    """
    read = READERS.get(source.suffix.lower())
    if read is None:
        raise CartridgeError(
            f"{source}: cannot import {source.suffix or 'a file without a suffix'}; there are {', '.join(READERS)}."
        )
    if not source.is_file():
        raise CartridgeError(f"{source}: there is no such file.")
    target = cartridges_dir / name
    _refuse_target(name, target)
    entries = _watched(read(source), source, progress)
    try:
        cartridges_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import-", dir=cartridges_dir) as temporary:
            # One level down, where a library that is read meanwhile does not take it for a cartridge.
            folder = Path(temporary) / name
            folder.mkdir()
            imported = _write(entries, source, folder, target)
            _publish(folder, target)
    except OSError as error:
        raise CartridgeError(f"{target}: cannot be written: {error.strerror or error}.") from error
    return imported


def _refuse_target(name: str, target: Path) -> None:
    if not NAME.fullmatch(name):
        raise CartridgeError(f"{name!r} is no cartridge name; use up to 64 of a-z, 0-9, - and _, with a letter or digit first.")
    if (target / FACTS).exists():
        raise CartridgeError(
            f"{target / FACTS}:1: this cartridge was written by hand and is not replaced; choose another name."
        )
    if target.exists() and not target.is_dir():
        raise CartridgeError(f"{target}: this is a file; choose another name.")


def _write(entries: Iterable[Raw], source: Path, folder: Path, target: Path) -> Imported:
    """Fill `folder`, holding of the passages only their ids."""
    label = "".join(char if char.isprintable() else "?" for char in source.name)
    lines: dict[str, int] = {}
    skipped = renamed = 0
    example: str | None = None
    with (folder / PASSAGES).open("w", encoding="utf-8", newline="\n") as file:
        for line, raw in entries:
            given = _given_id(raw.pop("id", None), source, line)
            if given:
                raw["id"] = _clean_id(given, source, line)
            if raw.get("source") in (None, ""):
                raw["source"] = label
            entry: PassageEntry = validated(_Passage, raw, source, line, {})
            if not given:
                entry = entry.model_copy(update={"id": _made_id(entry)})
            renamed += bool(given) and entry.id != given
            if entry.id in lines:
                if not given:
                    skipped += 1
                    continue
                raise CartridgeError(f"{source}:{line}: the id {entry.id!r} is taken by line {lines[entry.id]}.")
            lines[entry.id] = line
            example = example or _example(entry)
            file.write(entry.model_dump_json(exclude_defaults=True) + "\n")
    if not lines:
        raise CartridgeError(f"{source}:1: there is nothing in this file to import.")
    (folder / MANIFEST).write_text(_manifest(target.name, label), encoding="utf-8", newline="\n")
    return Imported(target, len(lines), skipped, renamed, example)


def _publish(folder: Path, target: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    # File by file, so that the cartridge is never absent and its questions stay.
    for made in (PASSAGES, MANIFEST):
        (folder / made).replace(target / made)


def _manifest(name: str, label: str) -> str:
    # A JSON string without control characters is a TOML string too.
    description = json.dumps(f"Imported from {label}", ensure_ascii=False)
    return f'name = "{name}"\nversion = "1.0.0"\nfaction = "general"\nlicence = "unknown"\ndescription = {description}\n'


def _watched(entries: Iterator[Raw], source: Path, progress: Callable[[int, int], None] | None) -> Iterator[Raw]:
    if progress is None:
        yield from entries
        return
    total = _count_lines(source)
    reported = 0
    for line, raw in entries:
        if line >= reported + PROGRESS_LINES:
            progress(min(line, total), total)
            reported = line
        yield line, raw
    progress(total, total)


def _count_lines(source: Path) -> int:
    try:
        with source.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")) or 1
    except OSError as error:
        raise CartridgeError(f"{source}: cannot be read: {error.strerror}.") from error


# Ids


def _given_id(value: object, source: Path, line: int) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CartridgeError(f"{source}:{line}: 'id' is neither a string nor a number; leave it out and one is made.")
    return str(value).strip() or None


def _clean_id(given: str, source: Path, line: int) -> str:
    cleaned = _slug(given)[:128]
    if not cleaned:
        raise CartridgeError(
            f"{source}:{line}: the id {given[:40]!r} has no letter or digit of A-Z and 0-9; leave it out and one is made."
        )
    return cleaned


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode() if not text.isascii() else text
    return _NOT_ID.sub("-", plain).lstrip("._-").rstrip("-")


def _made_id(entry: PassageEntry) -> str:
    """The same for the same content, so that importing an edited file again keeps the ids of the rest."""
    title = _slug((entry.section or "").rpartition(" > ")[2]).lower()[:40].rstrip("-")
    content = json.dumps([entry.section, entry.text, entry.asks])
    return f"{title or 'text'}-{hashlib.blake2b(content.encode(), digest_size=8).hexdigest()}"


def _example(entry: PassageEntry) -> str | None:
    if entry.asks:
        return entry.asks[0]
    return f"What about {entry.section.rpartition(' > ')[2]}?" if entry.section else None
