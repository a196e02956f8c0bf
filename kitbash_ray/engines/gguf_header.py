"""What the header of a GGUF says of its model, without loading it.

gguf's own GGUFReader makes an object of each of some 300,000 tokens and merges, which takes seconds for a usual
model; here what is not asked for is skipped, and reading ends with the last value that is.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kitbash_ray.errors import ModelError

GGUF_MAGIC = b"GGUF"
#: Formats of struct for GGUF's numbers of types; 8 is a string, 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
#: More of a kind than any file has; a damaged one must not keep us reading.
MOST = 10_000_000

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Header:
    """The facts that people choose a model by; "" and None where the file does not say."""

    architecture: str = ""
    quantization: str = ""
    context: int | None = None


def is_gguf(path: Path) -> bool:
    """Whether the file says by its first bytes that it is one."""
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def read_header(path: Path) -> Header:
    """Raises ModelError when the file is no GGUF or its header is damaged."""
    try:
        with path.open("rb") as file:
            return _header(file)
    except (struct.error, UnicodeDecodeError, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{str(path)!r} is no whole GGUF file; remove it and pull it again.") from error
    except OSError as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error.strerror}.") from error


def _header(file: BinaryIO) -> Header:
    if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
        raise ValueError("no magic")
    _, _, pairs = (_number(file, "I"), _number(file, "Q"), _number(file, "Q"))
    values: dict[str, Value] = {}
    for _ in range(min(pairs, MOST)):
        key = _string(file)
        values[key] = _value(file, _number(file, "I"))
        architecture = values.get("general.architecture")
        context = f"{architecture}.context_length"
        if architecture and context in values and "general.file_type" in values:
            break
    else:
        context = f"{values.get('general.architecture')}.context_length"
    length = values.get(context)
    return Header(
        str(values.get("general.architecture") or ""),
        _quantization(values.get("general.file_type")),
        length if isinstance(length, int) else None,
    )


def _quantization(kind: Value) -> str:
    """As people write it: Q4_K_M, not MOSTLY_Q4_K_M."""
    import gguf

    if not isinstance(kind, int):
        return ""
    try:
        return str(gguf.LlamaFileType(kind).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:  # newer than our gguf
        return f"type {kind}"


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        scalar = struct.unpack("<" + SCALARS[kind], _bytes(file, struct.calcsize("<" + SCALARS[kind])))[0]
        return scalar if isinstance(scalar, (bool, int)) else float(scalar)
    kind, length = _number(file, "I"), _number(file, "Q")
    if length > MOST:
        raise ValueError("an array of that length")
    if kind in SCALARS:
        file.seek(length * struct.calcsize("<" + SCALARS[kind]), 1)
    else:
        for _ in range(length):
            _skip(file, kind)
    return None


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == STRING:
        file.seek(_number(file, "Q"), 1)
    else:
        _value(file, kind)


def _string(file: BinaryIO) -> str:
    length = _number(file, "Q")
    if length > MOST:
        raise ValueError("a string of that length")
    return _bytes(file, length).decode(errors="replace")


def _number(file: BinaryIO, code: str) -> int:
    return int(struct.unpack("<" + code, _bytes(file, struct.calcsize("<" + code)))[0])


def _bytes(file: BinaryIO, size: int) -> bytes:
    read = file.read(size)
    if len(read) != size:
        raise ValueError("the file ends in its header")
    return read
