"""A cartridge: a folder with knowledge that a person can read and edit.

    cartridge.toml    name, version, faction, licence, description
    facts.yaml        what it knows: facts with ways to ask, source and epistemic level
    passages.jsonl    what `kitbash cartridge import` brought in (asks and source optional)
    questions.jsonl   held-out questions, for measuring; never part of the index

Loading refuses whatever is wrong with one sentence that names file and line.
Not here: judgements that need more than one fact (checks.py).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.documents import read_jsonl, read_lines, read_text
from kitbash_ray.types import Faction, Level

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST, FACTS, PASSAGES, QUESTIONS = "cartridge.toml", "facts.yaml", "passages.jsonl", "questions.jsonl"
#: A fact's asks lie three levels deep.
MAX_YAML_DEPTH = 8
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
Ask = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
FactId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Manifest(_Strict):
    """cartridge.toml."""

    name: Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
    version: Line
    faction: Faction = "general"
    licence: Line
    description: Line


class FactEntry(_Strict):
    """One entry of facts.yaml."""

    id: FactId
    fact: Line
    asks: Annotated[tuple[Ask, ...], Field(min_length=2)]
    source: Line
    level: Level
    valid_from: date | None = None
    valid_until: date | None = None


class PassageEntry(_Strict):
    """One line of passages.jsonl. `document` is the file when `source` is not; an excerpt was cut from running text."""

    id: FactId
    text: Line
    asks: tuple[Ask, ...] = ()
    source: Line | None = None
    section: Line | None = None
    document: Line | None = None
    excerpt: bool = False


class QuestionEntry(_Strict):
    """One line of questions.jsonl; `expected` empty means that abstaining is right."""

    query: Ask
    expected: tuple[str, ...]
    kind: Literal["paraphrase", "near_miss", "out_of_scope"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact in memory. `id` is namespaced: `<cartridge>:<id in the file>`. Dates are inclusive."""

    id: str
    cartridge: str
    faction: Faction
    text: str
    asks: tuple[str, ...]
    source: str | None
    level: Level | None = None
    section: str | None = None
    excerpt: bool = False
    valid_from: date | None = None
    valid_until: date | None = None
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Cartridge:
    """A loaded cartridge."""

    manifest: Manifest
    facts: tuple[Fact, ...]
    questions: tuple[QuestionEntry, ...]
    folder: Path

    @property
    def name(self) -> str:
        return self.manifest.name


def load_cartridge(folder: Path) -> Cartridge:
    """Read and validate the cartridge in `folder`. Raises CartridgeError."""
    manifest = load_manifest(folder)
    facts = tuple(_unique(_load_facts(folder, manifest)))
    if not facts:
        raise CartridgeError(f"{folder}: the cartridge has no fact; write {FACTS} or use `kitbash cartridge import`.")
    return Cartridge(manifest, facts, tuple(_load_questions(folder)), folder)


def load_manifest(folder: Path) -> Manifest:
    """The cartridge.toml of `folder`. Raises CartridgeError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CartridgeError(f"{folder} is no cartridge: it has no {MANIFEST}; `kitbash cartridge new` makes one.")
    try:
        manifest = Manifest.model_validate(tomllib.loads(read_text(path)))
    except tomllib.TOMLDecodeError as error:
        raise CartridgeError(f"{path}: this is not TOML: {error}.") from error
    except ValidationError as error:
        raise CartridgeError(f"{path}: {_what(error)}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets without end
        raise CartridgeError(f"{path}: this is not TOML that can be read: {type(error).__name__}.") from error
    if manifest.name != folder.name:
        raise CartridgeError(
            f"{path}: name is {manifest.name!r}, but the folder is called {folder.name!r}; make them the same."
        )
    return manifest


def _load_facts(folder: Path, manifest: Manifest) -> Iterator[Fact]:
    facts, passages = folder / FACTS, folder / PASSAGES
    if not facts.is_file() and not passages.is_file():
        raise CartridgeError(f"{folder}: there is neither {FACTS} nor {PASSAGES}.")
    if facts.is_file():
        for line, raw, lines in yaml_entries(facts):
            entry = validated(FactEntry, raw, facts, line, lines)
            if entry.valid_from and entry.valid_until and entry.valid_until < entry.valid_from:
                raise CartridgeError(f"{facts}:{line}: fact {entry.id!r} ends (valid_until) before it begins (valid_from).")
            yield Fact(
                id=f"{manifest.name}:{entry.id}", cartridge=manifest.name, faction=manifest.faction, text=entry.fact,
                asks=entry.asks, source=entry.source, level=entry.level, valid_from=entry.valid_from,
                valid_until=entry.valid_until, file=str(facts), line=line,
            )  # fmt: skip
    if passages.is_file():
        for line, raw in read_jsonl(passages):
            passage = validated(PassageEntry, raw, passages, line, {})
            yield Fact(
                id=f"{manifest.name}:{passage.id}", cartridge=manifest.name, faction=manifest.faction, text=passage.text,
                asks=passage.asks, source=passage.source, section=passage.section, excerpt=passage.excerpt,
                file=str(passages), line=line,
            )  # fmt: skip


def yaml_entries(path: Path) -> Iterator[tuple[int, Any, dict[str, int]]]:
    """Each entry of a YAML list with its line and the line of each of its keys. Raises CartridgeError."""
    text = "\n".join(line for _, line in read_lines(path))
    kind = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    try:
        _refuse_wild_yaml(path, text, kind)
        loader = cast(Any, kind(text))
        root = loader.get_single_node()
        if root is not None and not isinstance(root, yaml.SequenceNode):
            raise CartridgeError(f"{path}:1: expected a list of facts, each beginning with `- id:`.")
        for node in root.value if root else ():
            line = node.start_mark.line + 1
            keys = (
                {str(key.value): key.start_mark.line + 1 for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {}
            )
            if keys and len(keys) < len(node.value):
                raise CartridgeError(f"{path}:{line}: a key stands twice in this fact.")
            yield line, _constructed(path, loader, node), keys
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise CartridgeError(f"{where}: this is not YAML: {getattr(error, 'problem', None) or error}.") from error


def _constructed(path: Path, loader: Any, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except ValueError as error:  # 2024-13-45 has the form of a date
        raise CartridgeError(f"{path}:{node.start_mark.line + 1}: a value of this fact cannot be read: {error}.") from error


def _refuse_wild_yaml(path: Path, text: str, kind: type[Any]) -> None:
    """Aliases can grow a small file without bound, and libyaml crashes on endless nesting."""
    depth = 0
    for event in yaml.parse(text, Loader=kind):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise CartridgeError(f"{path}:{line}: anchors and aliases (& and *) are not allowed; write the text out.")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise CartridgeError(f"{path}:{line}: lists and maps are nested too deeply.")


def _load_questions(folder: Path) -> Iterator[QuestionEntry]:
    path = folder / QUESTIONS
    if path.is_file():
        for line, raw in read_jsonl(path):
            yield validated(QuestionEntry, raw, path, line, {})


def validated(kind: type[Any], raw: object, path: Path, line: int, key_lines: dict[str, int]) -> Any:
    """`raw` as a `kind`; key_lines tells on which line each key stands. Raises CartridgeError."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else ""
        known = raw.get("id") if isinstance(raw, dict) else None
        name = f"fact {known[:80]!r}: " if isinstance(known, str) else ""
        raise CartridgeError(f"{path}:{key_lines.get(first, line)}: {name}{_what(error)}") from error


def _what(error: ValidationError) -> str:
    """The first thing that pydantic found, as a clause."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    kind = first["type"]
    if kind == "missing":
        return f"{where!r} is missing."
    if kind == "extra_forbidden":
        return f"{where!r} is not a known key."
    if kind == "string_too_short":
        return f"{where!r} is empty."
    if kind == "too_short":
        return f"{where!r} needs at least {first['ctx']['min_length']} entries."
    return f"{where!r}: {first['msg']}."


def _unique(facts: Iterable[Fact]) -> Iterator[Fact]:
    seen: dict[str, Fact] = {}
    for fact in facts:
        if fact.id in seen:
            first = seen[fact.id]
            raise CartridgeError(
                f"{fact.file}:{fact.line}: the id of {fact.id!r} is taken by line {first.line} of {Path(first.file).name}."
            )
        seen[fact.id] = fact
        yield fact
