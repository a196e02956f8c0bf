"""Other people's formats: what each kind of file holds, as the members of passages with their lines.

`tables` a passage a line · `prose` `markdown` `pdf` `converted` text that is cut into passages
Not here: ids, validation and where it all goes (importers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kitbash_ray.knowledge.readers.converted import read_docx, read_html, read_notebook
from kitbash_ray.knowledge.readers.markdown import read_markdown
from kitbash_ray.knowledge.readers.pdf import read_pdf
from kitbash_ray.knowledge.readers.prose import Raw, read_prose
from kitbash_ray.knowledge.readers.tables import read_csv, read_objects, read_tsv

#: How a file is read, by its suffix.
READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {
    ".jsonl": read_objects,
    ".ndjson": read_objects,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_prose,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".ipynb": read_notebook,
}
#: Files of rows that their author wrote one by one; all others are cut from running text.
TABLES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv"})
