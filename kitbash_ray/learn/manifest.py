"""What is written down beside a student: what it was made of, how, and how good it is. Needs no PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from kitbash_ray.errors import ModelError
from kitbash_ray.learn.recipe import Recipe

MODEL, ANSWERS, MANIFEST = "student.gguf", "answers.jsonl", "manifest.json"


class Scores(Struct, frozen=True):
    """What a student alone says to held-out questions, whatever its confidence.

    `right`, `wrong` and `declined` count the answerable ones; `refused` and `answered` the others.
    """

    right: int
    wrong: int
    declined: int
    refused: int
    answered: int


class Manifest(Struct, frozen=True):
    """`data` is the hash of the corpus, `facts` the ids that were taught, in the order of answers.jsonl."""

    model: str
    data: str
    recipe: Recipe
    scores: Scores
    facts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The model's name with a hash of what it was taught and how: another student has another calibration."""
        made_of = self.data.encode() + msgspec.json.encode(self.recipe)
        return f"student-{hashlib.blake2b(made_of, digest_size=4).hexdigest()}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest.json of a student's folder."""
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a student's folder. Raises ModelError when there is none that can be read."""
    path = folder / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"{str(path)!r} is no student's manifest; run `kitbash distil` again.") from error
