"""Other people's formats: what each kind of file holds, as the members of passages with their lines.

JSON Lines and CSV bring one passage a line. Markdown and plain text are cut at the ends of
sentences into passages of at most PASSAGE_CHARS; Markdown loses its markup but for lists and code.
Not here: ids, validation and where it all goes (importers.py).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.documents import read_jsonl, read_lines

#: A passage that is cut from running text is no longer than this; MiniLM reads about as much.
PASSAGE_CHARS = 800
#: Code is kept whole up to what a passage may hold at all.
CODE_CHARS = 4000
#: A paragraph of plain text is cut here, so that a file without empty lines does not fill memory.
PARAGRAPH_CHARS = 100_000
#: Columns of a CSV file; one of the first two holds the text.
COLUMNS = ("text", "fact", "id", "asks", "source")

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_FRONT_MATTER = {"---": ("---", "..."), "+++": ("+++",)}
_FRONT_KEY = re.compile(r"""["']?[A-Za-z][\w "'.-]*\s*[:=]|#""")
_CUT = re.compile(r"[.!?…][\"'”’)\]]*\s|[。！？]|\n")

#: A line number, and the members of a PassageEntry as the file has them.
Raw = tuple[int, dict[str, Any]]


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
        raise CartridgeError(
            f"{source}:{line}: there is no column 'text'; the first row names the columns, with commas between them."
        )
    if unknown:
        raise CartridgeError(f"{source}:{line}: the column {unknown[0]!r} is unknown; there are {', '.join(COLUMNS)}.")
    if len(set(columns)) < len(columns) or {"text", "fact"} <= set(columns):
        raise CartridgeError(f"{source}:{line}: a column stands twice ('text' and 'fact' are the same).")
    return columns


def _cells(row: Sequence[str], columns: Sequence[str], source: Path, line: int) -> dict[str, Any]:
    if len(row) != len(columns):
        raise CartridgeError(
            f"{source}:{line}: {len(row)} cells for {len(columns)} columns; put a text with commas in double quotes."
        )
    cells: dict[str, Any] = {
        "text" if column == "fact" else column: cell.strip() for column, cell in zip(columns, row, strict=True)
    }
    cells["asks"] = [ask for ask in cells.get("asks", "").split("|") if ask.strip()]
    return cells


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


#: How a file is read, by its suffix.
READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".txt": _read_text,
}
