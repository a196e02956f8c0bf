"""PDF: the text of each page under the headings of its outline, read by PDFium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.readers.converted import library
from kitbash_ray.knowledge.readers.prose import Raw, fit, says_something

#: A word that is broken at the end of a line; PDFium marks it so.
_HYPHEN = re.compile(r"(?<=\w)(\ufffe|\u00ad|-\r?\n(?=[a-z]))\r?\n?")


def read_pdf(source: Path) -> Iterator[Raw]:
    """The passages of each page; the line is the number of the page."""
    pdfium = library("pypdfium2", source)
    try:
        document = pdfium.PdfDocument(source)
    except (pdfium.PdfiumError, OSError) as error:
        raise CartridgeError(f"{source}: this is not a PDF that can be read (is it damaged or locked?): {error}.") from error
    try:
        titles = _titles(document)
        said = False
        for number in range(len(document)):
            page = document[number]
            textpage = page.get_textpage()
            section = " > ".join([*titles.get(number, ()), f"page {number + 1}"])
            for text in _passages(textpage.get_text_bounded()):
                said = True
                yield number + 1, {"text": text, "section": section[-400:]}
            textpage.close()
            page.close()
        if not said:
            raise CartridgeError(f"{source}: its pages hold no text, only pictures of it; run it through OCR first (ocrmypdf).")
    finally:
        document.close()


def _passages(text: str) -> Iterator[str]:
    joined = _HYPHEN.sub("", text)
    for paragraph in re.split(r"(?:\r?\n\s*){2,}", joined):
        for piece in fit(" ".join(paragraph.split())):
            if says_something(piece):
                yield piece


def _titles(document: Any) -> dict[int, tuple[str, ...]]:
    """The headings above each page, by the outline: those that begin on it or before it."""
    begins: list[tuple[int, int, str]] = []
    for entry in document.get_toc():
        target = entry.get_dest()
        page = target.get_index() if target else None
        title = " ".join((entry.get_title() or "").split())[:120]
        if page is not None and title:
            begins.append((page, entry.level, title))
    titles: dict[int, tuple[str, ...]] = {}
    stack: list[tuple[int, str]] = []
    begins.sort(key=lambda item: item[0])
    at = 0
    for number in range(len(document)):
        while at < len(begins) and begins[at][0] <= number:
            _, level, title = begins[at]
            stack = [(above, kept) for above, kept in stack if above < level] + [(level, title)]
            at += 1
        titles[number] = tuple(title for _, title in stack)
    return titles
