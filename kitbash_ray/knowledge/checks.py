"""Everything that is wrong with a cartridge at once, for the person who writes it.

Loading stops at the first fault and looks at each fact by itself. `check_cartridge` goes on, and
compares questions with facts; `compare` compares facts with each other, over all cartridges. A
cartridge without an error here can be loaded. Not here: whether the facts are true, or found.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import (
    FACTS,
    MANIFEST,
    PASSAGES,
    QUESTIONS,
    FactEntry,
    PassageEntry,
    QuestionEntry,
    load_cartridge,
    load_manifest,
    validated,
    yaml_entries,
)
from kitbash_ray.knowledge.consistency import doubts
from kitbash_ray.knowledge.documents import parse_object, read_lines
from kitbash_ray.knowledge.library import Library
from kitbash_ray.knowledge.text import normalize

Severity = Literal["error", "warning"]

_LINE = re.compile(r":(\d+)$")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `where` is `file:line`; only an error keeps a cartridge from use."""

    where: str
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {'warning: ' if self.severity == 'warning' else ''}{self.message}"


@dataclass(slots=True)
class _Report:
    """What was found so far, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    def error(self, where: str, message: str) -> None:
        self.findings.append(Finding(where, "error", message))

    def warning(self, where: str, message: str) -> None:
        self.findings.append(Finding(where, "warning", message))

    def refused(self, error: CartridgeError, path: Path) -> None:
        """The loader's sentence about `path`, which begins with file and line or with neither."""
        text = str(error)
        found = re.match(rf"{re.escape(str(path))}(:\d+)?: ", text)
        line = (found[1] if found else None) or ":1"
        self.error(f"{path}{line}", text[found.end() :] if found else text)


@dataclass(slots=True)
class _Known:
    """A fact as far as it could be read."""

    where: str
    asks: tuple[str, ...] = ()
    asks_where: str = ""
    valid_from: date = date.min
    valid_until: date = date.max

    def meets(self, other: _Known) -> bool:
        """Whether there is a day on which both are valid."""
        return self.valid_from <= other.valid_until and other.valid_from <= self.valid_until


@dataclass(slots=True)
class _Facts:
    """The facts of one cartridge by id. `complete` is False when a file could not be read to its end."""

    known: dict[str, _Known] = field(default_factory=dict)
    complete: bool = True


def check_cartridge(folder: Path) -> list[Finding]:
    """What is wrong with the cartridge in `folder`, by file and line; empty when nothing is."""
    report = _Report()
    try:
        load_manifest(folder)
    except CartridgeError as error:
        report.refused(error, folder / MANIFEST)
    facts = _read_facts(folder, report)
    if not facts.known and not report.findings:
        report.error(f"{folder / FACTS}:1", "there is no fact; write one or use `kitbash cartridge import`.")
    askers = _askers(facts, report)
    _check_dates(facts, report)
    _check_questions(folder, facts, askers, report)
    if not any(finding.severity == "error" for finding in report.findings):
        try:
            load_cartridge(folder)
        except CartridgeError as error:
            report.refused(error, folder / MANIFEST)
    return sorted(report.findings, key=_place)


def compare(library: Library, names: Collection[str]) -> list[Finding]:
    """Warnings about the facts of the cartridges `names` beside all facts that can be loaded.

    What was cut from documents is left out: they repeat themselves, and nobody wrote them as facts.
    """
    found = []
    for doubt in doubts([fact for fact in library.load().facts if not fact.excerpt]):
        if doubt.fact.cartridge not in names and not (doubt.other and doubt.other.cartridge in names):
            continue
        found.append(Finding(f"{doubt.fact.file}:{doubt.fact.line}", "warning", f"fact {doubt.fact.id!r} {doubt.message}"))
    return sorted(found, key=_place)


def _place(finding: Finding) -> tuple[str, int]:
    line = _LINE.search(finding.where)
    return finding.where[: line.start()] if line else finding.where, int(line[1]) if line else 0


# Facts


def _read_facts(folder: Path, report: _Report) -> _Facts:
    facts = _Facts()
    if (path := folder / FACTS).is_file():
        _read_entries(_yaml(path), path, facts, report)
    if (path := folder / PASSAGES).is_file():
        _read_entries(_jsonl(path, facts, report), path, facts, report)
    return facts


#: An entry with its line and the lines of its keys.
Entry = tuple[int, Any, dict[str, int]]


def _yaml(path: Path) -> Iterator[Entry]:
    yield from yaml_entries(path)


def _jsonl(path: Path, facts: _Facts, report: _Report) -> Iterator[Entry]:
    """The objects of a JSON Lines file; a line that is none is reported and passed over."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            yield number, parse_object(path, number, line), {}
        except CartridgeError as error:
            facts.complete = False
            report.error(f"{path}:{number}", str(error).removeprefix(f"{path}:{number}: "))


def _read_entries(entries: Iterator[Entry], path: Path, facts: _Facts, report: _Report) -> None:
    kind = FactEntry if path.name == FACTS else PassageEntry
    try:
        for line, raw, key_lines in entries:
            where = f"{path}:{line}"
            known = _Known(where)
            try:
                entry = validated(kind, raw, path, line, key_lines)
            except CartridgeError as error:
                report.refused(error, path)
            else:
                known = _known(entry, where, f"{path}:{key_lines.get('asks', line)}", report)
            _remember(raw, known, facts, report)
    except CartridgeError as error:
        facts.complete = False
        report.refused(error, path)


def _known(entry: FactEntry | PassageEntry, where: str, asks_where: str, report: _Report) -> _Known:
    begins = (isinstance(entry, FactEntry) and entry.valid_from) or date.min
    ends = (isinstance(entry, FactEntry) and entry.valid_until) or date.max
    if ends < begins:
        report.error(where, f"fact {entry.id!r} ends (valid_until) before it begins (valid_from).")
    return _Known(where, entry.asks, asks_where, begins, ends)


def _remember(raw: object, known: _Known, facts: _Facts, report: _Report) -> None:
    """Keep a fact, even a faulty one, under the id that its author gave it."""
    given = raw.get("id") if isinstance(raw, dict) else None
    if not isinstance(given, str):
        facts.complete = False
        return
    name = given.strip()
    if name in facts.known:
        report.error(known.where, f"the id {name!r} is taken by {_short(facts.known[name].where)}.")
    else:
        facts.known[name] = known


def _askers(facts: _Facts, report: _Report) -> dict[str, str]:
    """Which fact each normalized asking belongs to; two that are valid on one day cannot share one."""
    askers: dict[str, str] = {}
    for name, known in facts.known.items():
        for ask in known.asks:
            first = askers.setdefault(normalize(ask), name)
            if first != name and known.meets(facts.known[first]):
                where = _short(facts.known[first].asks_where)
                report.error(
                    known.asks_where,
                    f"{ask!r} asks for {name!r} and also for {first!r} ({where}); one question has one answer.",
                )
    return askers


def _check_dates(facts: _Facts, report: _Report) -> None:
    today = date.today()
    for name, known in facts.known.items():
        if known.valid_until < today:
            report.warning(
                known.where, f"fact {name!r} was valid until {known.valid_until} and is no longer given as an answer."
            )


# Questions


def _check_questions(folder: Path, facts: _Facts, askers: dict[str, str], report: _Report) -> None:
    path = folder / QUESTIONS
    if not path.is_file():
        return
    libraries = {folder.name: facts}
    try:
        for line, raw, _ in _jsonl(path, _Facts(), report):
            try:
                question = validated(QuestionEntry, raw, path, line, {})
            except CartridgeError as error:
                report.refused(error, path)
            else:
                _check_question(question, f"{path}:{line}", folder, libraries, report)
                if asked := askers.get(normalize(question.query)):
                    report.error(
                        f"{path}:{line}", f"this is an asking of fact {asked!r}, so it measures nothing; word it differently."
                    )
    except CartridgeError as error:
        report.refused(error, path)


def _check_question(question: QuestionEntry, where: str, folder: Path, libraries: dict[str, _Facts], report: _Report) -> None:
    if question.kind == "paraphrase" and not question.expected:
        report.error(where, "a paraphrase must say in 'expected' which fact answers it.")
    if question.kind != "paraphrase" and question.expected:
        report.error(where, f"a question of kind {question.kind!r} has no answer, so 'expected' must be [].")
    for expected in question.expected:
        cartridge, colon, name = expected.partition(":")
        if not colon:
            report.error(where, f"the expected id {expected!r} is not namespaced; write {folder.name + ':' + expected!r}.")
            continue
        if cartridge not in libraries:
            # A sibling's own faults are found when it is checked itself.
            libraries[cartridge] = _sibling(folder, cartridge)
        facts = libraries[cartridge]
        if facts.complete and name not in facts.known:
            report.error(where, f"there is no fact {expected!r}.")


def _sibling(folder: Path, name: str) -> _Facts:
    if "/" in name or "\\" in name or name in ("", ".", ".."):
        return _Facts()
    return _read_facts(folder.parent / name, _Report())


def _short(where: str) -> str:
    """`line N of FILE`."""
    path, _, line = where.rpartition(":")
    return f"line {line} of {Path(path).name}"
