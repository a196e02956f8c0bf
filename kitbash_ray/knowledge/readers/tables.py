"""JSON Lines, CSV and TSV: one passage a line, with what its author says of it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.documents import read_jsonl, read_lines
from kitbash_ray.knowledge.readers.prose import Raw

#: Columns of a table; one of the first two holds the text.
COLUMNS = ("text", "fact", "id", "asks", "source")


def read_objects(source: Path) -> Iterator[Raw]:
    for line, raw in read_jsonl(source):
        asks = raw.get("asks")
        if asks is None or isinstance(asks, str):
            raw["asks"] = [asks] if asks else []
        yield line, raw


def read_table(source: Path, *, delimiter: str) -> Iterator[Raw]:
    # csv wants the ends of lines back: a quoted cell may go over several lines.
    rows = csv.reader((line + "\n" for _, line in read_lines(source)), delimiter=delimiter, strict=True)
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
        raise CartridgeError(f"{source}:{line}: this is not {'CSV' if delimiter == ',' else 'TSV'}: {error}.") from error


def _columns(row: Sequence[str], source: Path, line: int) -> list[str]:
    columns = [cell.strip().lower() for cell in row]
    unknown = [column for column in columns if column not in COLUMNS]
    if not {"text", "fact"} & set(columns):
        raise CartridgeError(
            f"{source}:{line}: there is no column 'text'; the first row names the columns, as in: text,source."
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


read_csv = partial(read_table, delimiter=",")
read_tsv = partial(read_table, delimiter="\t")
