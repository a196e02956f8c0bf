"""HTML, Word documents and Jupyter notebooks: turned into Markdown by libraries, and then cut like it.

The libraries come with `pip install kitbash-ray[documents]`. Lines are those of the Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.documents import read_text
from kitbash_ray.knowledge.readers.markdown import passages_of
from kitbash_ray.knowledge.readers.prose import Raw

#: Parts of a page that say nothing of its subject.
NOT_CONTENT = ("script", "style", "noscript", "template", "nav", "header", "footer", "aside", "form", "svg", "iframe")


def library(name: str, source: Path) -> Any:
    """The module `name`. Raises CartridgeError that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise CartridgeError(
            f"{source}: reading {source.suffix} files takes the package {name}: pip install 'kitbash-ray[documents]'."
        ) from error


def read_html(source: Path) -> Iterator[Raw]:
    return _of_html(read_text(source), source)


def read_docx(source: Path) -> Iterator[Raw]:
    mammoth = library("mammoth", source)
    try:
        with source.open("rb") as file:
            html = mammoth.convert_to_html(file).value
    except OSError as error:
        raise CartridgeError(f"{source}: cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # zipfile's, lxml's and mammoth's own, by what is broken
        raise CartridgeError(f"{source}: this is not a Word document (.docx): {error or type(error).__name__}.") from error
    return _of_html(html, source)


def read_notebook(source: Path) -> Iterator[Raw]:
    nbformat = library("nbformat", source)
    try:
        notebook = nbformat.reads(read_text(source), as_version=4)
    except CartridgeError:
        raise
    except Exception as error:  # nbformat raises jsonschema's errors, KeyError and more
        raise CartridgeError(f"{source}: this is not a Jupyter notebook: {str(error).splitlines()[0][:200]}.") from error
    language = notebook.metadata.get("kernelspec", {}).get("language", "")
    lines: list[str] = []
    for cell in notebook.cells:
        text = cell.source.splitlines()
        if cell.cell_type == "code" and cell.source.strip():
            text = [f"````{language}", *text, "````"]
        if cell.cell_type in ("markdown", "code"):
            lines += [*text, ""]
    return passages_of(lines or [""])


def _of_html(html: str, source: Path) -> Iterator[Raw]:
    soup = library("bs4", source).BeautifulSoup(html, "html.parser")
    main = soup.find("main") or soup.find("article") or soup.find("body") or soup
    for part in main.find_all(NOT_CONTENT):
        part.decompose()
    converter = library("markdownify", source).MarkdownConverter(heading_style="ATX", strip=["img"])
    text = converter.convert_soup(main)
    title = soup.title.get_text().strip() if soup.title else ""
    if title and not main.find("h1"):
        text = f"# {' '.join(title.split())}\n\n{text}"
    return passages_of(text.splitlines() or [""])
