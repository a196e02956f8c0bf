"""Other people's files as the passages of a cartridge: JSON Lines, CSV, Markdown and plain text.

A file becomes `<cartridges>/<name>/` with cartridge.toml and passages.jsonl, complete or not at
all. JSON Lines and CSV bring one passage a line; Markdown and text are cut into passages of at
most PASSAGE_CHARS, at the ends of sentences. Markdown loses its markup except lists and code.
Not here: facts.yaml, which only people write, and PDF, HTML or office documents.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import FACTS, MANIFEST, NAME, PASSAGES, FactId, PassageEntry, validated
from kitbash_ray.knowledge.documents import read_jsonl, read_lines

#: A passage that is cut from running text is no longer than this; MiniLM reads about as much.
PASSAGE_CHARS = 800
#: Code is kept whole up to what a passage may hold at all.
CODE_CHARS = 4000
#: A paragraph of plain text is cut here, so that a file without empty lines does not fill memory.
PARAGRAPH_CHARS = 100_000
#: Lines between two calls of `progress`.
PROGRESS_LINES = 500
#: Columns of a CSV file; one of the first two holds the text.
COLUMNS = ("text", "fact", "id", "asks", "source")

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_FRONT_MATTER = {"---": ("---", "..."), "+++": ("+++",)}
_FRONT_KEY = re.compile(r"""["']?[A-Za-z][\w "'.-]*\s*[:=]|#""")
_CUT = re.compile(r"[.!?…][\"'”’)\]]*\s|[。！？]|\n")
_NOT_ID = re.compile(r"[^A-Za-z0-9._-]+")

#: A line number, and the members of a PassageEntry as the file has them.
Raw = tuple[int, dict[str, Any]]


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


def import_file(
    source: Path, name: str, cartridges_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Imported:
    """Make the cartridge `name` of the file `source`; one that was imported before is replaced.

    `progress` is called with (lines done, lines in all). Raises CartridgeError, and then
    nothing has changed.
    """
    read = _READERS.get(source.suffix.lower())
    if read is None:
        raise CartridgeError(f"{source}: cannot import {source.suffix or 'a file without a suffix'}; there are {', '.join(_READERS)}.")
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
        raise CartridgeError(f"{target / FACTS}:1: this cartridge was written by hand and is not replaced; choose another name.")
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
        raise CartridgeError(f"{source}:{line}: the id {given[:40]!r} has no letter or digit of A-Z and 0-9; leave it out and one is made.")
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


# JSON Lines and CSV


def _read_jsonl(source: Path) -> Iterator[Raw]:
    for line, raw in read_jsonl(source):
        asks = raw.get("asks")
        if asks is None or isinstance(asks, str):
            raw["asks"] = [asks] if asks else []
        yield line, raw


def _read_csv(source: Path) -> Iterator[Raw]:
    # csv wants the ends of lines back: a quoted cell may go over several lines.
    rows = csv.reader((line + "\n" for _, line in read_lines(source)), strict=True)
    columns: list[str] = []
    line = 1
    try:
        for row in rows:
            if not columns and any(row):
                columns = _columns(row, source, line)
            elif any(row):
                yield line, _cells(row, columns, source, line)
            line = rows.line_num + 1
    except csv.Error as error:
        raise CartridgeError(f"{source}:{line}: this is not CSV: {error}.") from error


def _columns(row: Sequence[str], source: Path, line: int) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    unknown = [column for column in columns if column not in COLUMNS]
    if not {"text", "fact"} & set(columns):
        raise CartridgeError(f"{source}:{line}: there is no column 'text'; the first row names the columns, with commas between them.")
    if unknown:
        raise CartridgeError(f"{source}:{line}: the column {unknown[0]!r} is unknown; there are {', '.join(COLUMNS)}.")
    if len(set(columns)) < len(columns) or {"text", "fact"} <= set(columns):
        raise CartridgeError(f"{source}:{line}: a column stands twice ('text' and 'fact' are the same).")
    return columns


def _cells(row: Sequence[str], columns: Sequence[str], source: Path, line: int) -> dict[str, Any]:
    if len(row) != len(columns):
        raise CartridgeError(f"{source}:{line}: {len(row)} cells for {len(columns)} columns; put a text with commas in double quotes.")
    cells: dict[str, Any] = {"text" if column == "fact" else column: cell.strip() for column, cell in zip(columns, row, strict=True)}
    cells["asks"] = [ask for ask in cells.get("asks", "").split("|") if ask.strip()]
    return cells


# Markdown and plain text


def _read_text(source: Path) -> Iterator[Raw]:
    for line, paragraph in _paragraphs(source):
        for text in _fit(" ".join(paragraph.split())):
            if _says_something(text):
                yield line, {"text": text}


def _paragraphs(source: Path) -> Iterator[tuple[int, str]]:
    start, size, held = 1, 0, list[str]()
    for number, line in read_lines(source):
        if held and (not line.strip() or size > PARAGRAPH_CHARS):
            yield start, "\n".join(held)
            size, held = 0, []
        if line.strip():
            start = start if held else number
            size += len(line)
            held.append(line)
    if held:
        yield start, "\n".join(held)


def _read_markdown(source: Path) -> Iterator[Raw]:
    tokens = _MARKDOWN.parse(_without_front_matter([line for _, line in read_lines(source)]))
    titles: dict[int, str] = {}
    section: list[list[Token]] = []
    for block in (*_blocks(tokens), None):
        if block and block[0].type != "heading_open":
            section.append(block)
            continue
        title = " > ".join(titles[level] for level in sorted(titles))
        for line, text in _packed(section):
            if _says_something(text):
                yield line, {"text": text, "section": title or None}
        section = []
        if block:
            level = int(block[0].tag[1:])
            titles = {above: kept for above, kept in titles.items() if above < level}
            titles |= {level: words} if (words := _words(block[1])[:200]) else {}


def _without_front_matter(lines: list[str]) -> str:
    """The lines as one text, with a metadata head blanked so that line numbers stay."""
    ends = _FRONT_MATTER.get(lines[0].rstrip()) if len(lines) > 1 and _FRONT_KEY.match(lines[1]) else None
    if ends:
        closing = next((at for at, line in enumerate(lines[1:], 1) if line.rstrip() in ends), None)
        if closing:
            lines[: closing + 1] = [""] * (closing + 1)
    return "\n".join(lines)


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Runs of tokens from one that opens to the one that closes it."""
    block: list[Token] = []
    depth = 0
    for token in tokens:
        block.append(token)
        depth += token.nesting
        if depth == 0:
            yield block
            block = []


def _packed(section: Iterable[list[Token]]) -> Iterator[tuple[int, str]]:
    """Passages of one section: each paragraph begins one, lists and code join it where they fit."""
    start, passage = 1, ""
    for block in section:
        fresh = block[0].type in ("paragraph_open", "blockquote_open")
        for piece in _pieces(block):
            if passage and (fresh or len(passage) + 1 + len(piece) > PASSAGE_CHARS):
                yield start, passage
                passage = ""
            if not passage:
                start = (block[0].map or [0])[0] + 1
            passage = f"{passage}\n{piece}".strip("\n")
            fresh = False
    if passage:
        yield start, passage


def _pieces(block: Sequence[Token]) -> Iterator[str]:
    """What of a block must stay together: a sentence's worth of text, a list item, a row, a fence."""
    kind = block[0].type
    if kind in ("fence", "code_block"):
        yield from _fit("\n".join(_plain(block)), CODE_CHARS)
    elif kind in ("bullet_list_open", "ordered_list_open"):
        for item in _blocks(block[1:-1]):
            yield from _fit("\n".join(_plain(item)))
    elif kind == "table_open":
        for row in _plain(block):
            yield from _fit(row)
    elif kind != "html_block":
        yield from _fit("\n".join(_plain(block)))


def _plain(block: Sequence[Token]) -> Iterator[str]:
    """The lines of a block without markup, except the marks and the indentation of lists."""
    depth, mark = 0, ""
    cells: list[str] | None = None
    for token in block:
        if token.type in ("bullet_list_open", "ordered_list_open", "bullet_list_close", "ordered_list_close"):
            depth += token.nesting
        elif token.type == "list_item_open":
            mark = f"{token.info}. " if token.info else "- "
        elif token.type in ("fence", "code_block"):
            fence = token.markup or "```"
            yield f"{fence}{token.info.strip()}\n{token.content.rstrip()}\n{fence}"
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close" and cells is not None:
            yield " | ".join(cells)
            cells = None
        elif token.type == "inline" and cells is not None:
            cells.append(_words(token))
        elif token.type == "inline":
            yield "  " * depth + mark + _words(token)
            mark = ""


def _words(inline: Token) -> str:
    """The text of a line without its markup; a link keeps its words, an image its description."""
    parts = []
    for child in inline.children or ():
        if child.type == "code_inline":
            parts.append(f"`{child.content}`")
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type != "html_inline":
            parts.append(child.content)
    return " ".join("".join(parts).split())


def _fit(text: str, limit: int = PASSAGE_CHARS) -> Iterator[str]:
    """`text` in pieces of at most `limit`: cut after a sentence or line, else between words, else anywhere."""
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        cut = max((match.end() for match in _CUT.finditer(window)), default=0) or window.rfind(" ") + 1 or limit
        yield window[:cut].strip()
        start += cut
    if text[start:].strip():
        yield text[start:].strip()


def _says_something(text: str) -> bool:
    return any(char.isalnum() for char in text)


_READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".txt": _read_text,
}
