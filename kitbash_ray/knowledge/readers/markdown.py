"""Markdown, cut at its headings and paragraphs; it loses its markup but for lists and code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from kitbash_ray.knowledge.documents import read_lines
from kitbash_ray.knowledge.readers.prose import PASSAGE_CHARS, Raw, fit, says_something

#: Code is kept whole up to what a passage may hold at all.
CODE_CHARS = 4000

#: Of HTML inside Markdown: what is not for readers, and what stands within a line.
HIDDEN = frozenset({"script", "style", "template"})
IN_LINE = frozenset("a abbr b big code del em font i img ins kbd mark q s samp small span strong sub sup tt u var".split())

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_FRONT_MATTER = {"---": ("---", "..."), "+++": ("+++",)}
_FRONT_KEY = re.compile(r"""["']?[A-Za-z][\w "'.-]*\s*[:=]|#""")


def read_markdown(source: Path) -> Iterator[Raw]:
    return passages_of([line for _, line in read_lines(source)])


def passages_of(lines: list[str]) -> Iterator[Raw]:
    """The passages of a Markdown text, each with its headings as section."""
    tokens = _MARKDOWN.parse(_without_front_matter(lines))
    titles: dict[int, str] = {}
    section: list[list[Token]] = []
    for block in (*_blocks(tokens), None):
        if block and block[0].type != "heading_open":
            section.append(block)
            continue
        title = " > ".join(titles[level] for level in sorted(titles))
        for line, text in _packed(section):
            if says_something(text):
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
        yield from fit("\n".join(_plain(block)), CODE_CHARS)
    elif kind in ("bullet_list_open", "ordered_list_open"):
        for item in _blocks(block[1:-1]):
            yield from fit("\n".join(_plain(item)))
    elif kind == "table_open":
        for row in _plain(block):
            yield from fit(row)
    elif kind == "html_block":
        yield from fit(_text_of_html(block[0].content))
    else:
        yield from fit("\n".join(_plain(block)))


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


class _Text(HTMLParser):
    """Collects what is read of HTML, with a new line where a tag begins or ends one."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in HIDDEN
        self._mark(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in HIDDEN))
        self._mark(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)

    def _mark(self, tag: str) -> None:
        if tag not in IN_LINE:
            self.parts.append("\n")


def _text_of_html(html: str) -> str:
    reader = _Text()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return "\n".join(line for line in lines if line)


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
