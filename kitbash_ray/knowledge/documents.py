"""Reading text files that people wrote: UTF-8, lines of a sane length, errors with file and line.

Not here: what the lines mean (cartridge.py, importers.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kitbash_ray.errors import CartridgeError

#: A longer line is no text that a person wrote, and would cost memory in every reader.
MAX_LINE_BYTES = 1 << 20
#: Dropped from the beginning of a file; Windows programs put it there.
BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of `path` without their ends, numbered from 1.

    Raises CartridgeError when the file cannot be read, is not UTF-8 or has an endless line.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(raw) > MAX_LINE_BYTES:
                    raise CartridgeError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; break it up.")
                yield number, _decoded(path, number, raw).rstrip("\r\n")
    except OSError as error:
        raise CartridgeError(f"{path}: cannot be read: {error.strerror}.") from error


def read_text(path: Path) -> str:
    """The whole file, under the same conditions."""
    return "\n".join(line for _, line in read_lines(path))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their line numbers; empty lines are passed over."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        yield number, parse_object(path, number, line)


def parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The JSON object on one line. Raises CartridgeError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CartridgeError(f"{path}:{number}: this is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CartridgeError(f'{path}:{number}: expected an object like {{"id": ..., "text": ...}}.')
    return value


def _decoded(path: Path, number: int, raw: bytes) -> str:
    if number == 1:
        raw = raw.removeprefix(BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CartridgeError(
            f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8."
        ) from error
    if "\x00" in text:
        raise CartridgeError(f"{path}:{number}: the line holds a NUL byte, so this is no text file.")
    return text
