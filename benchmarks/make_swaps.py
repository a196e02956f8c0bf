"""Propose near-miss swaps: ways to ask for shipped facts with one thing exchanged, for a person to review.

A proposal is not a question of benchmarks/data/swaps yet: many read badly or are answered by a fact
after all. `--nearest FILE` prints beside each question of FILE the facts nearest to it in meaning,
which is what a reviewer reads. Same cartridges and seed, same proposals.

    python -m benchmarks.make_swaps [--each N] [--seed N]
    python -m benchmarks.make_swaps --nearest benchmarks/data/swaps/questions.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from pathlib import Path

from benchmarks.swaps import KINDS
from kitbash_ray.config import PROJECT, load_settings
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.documents import read_jsonl
from kitbash_ray.knowledge.embedder import open_embedder
from kitbash_ray.knowledge.library import Library
from kitbash_ray.knowledge.text import NUMBER_WORDS, OPPOSITE_PAIRS, normalize
from kitbash_ray.knowledge.vectors import VectorStore

#: Proposals for each kind in each cartridge.
EACH = 3
#: Facts shown beside a question with --nearest.
SHOWN = 5
#: Parts and the wholes that have them.
PARTS = """nucleus/atom atom/molecule electron/atom cell/organ organ/body tissue/organ star/galaxy planet/star moon/planet
crust/Earth mantle/Earth core/Earth file/directory row/table column/table table/database database/server commit/branch
branch/repository line/file letter/word word/string element/list key/dictionary item/tuple function/module method/class
module/package bit/byte byte/packet packet/connection frame/packet neuron/layer layer/network weight/model token/prompt
term/series digit/number edge/graph node/tree leaf/tree vertex/triangle side/triangle radius/circle premise/argument
statement/proof sample/population country/continent atrium/heart ventricle/heart gene/chromosome chromosome/genome codon/gene
leaf/plant root/plant lens/eye retina/eye partition/disk process/system thread/process core/processor pin/board
resistor/circuit cell/battery node/cluster key/database actor/cluster character/string exon/gene strand/DNA"""
#: Quantities that are asked for in the same way; each stands for any other of its line.
QUANTITIES = (
    ("how long does", "how much energy does", "how much memory does", "how much does"),
    ("how hot is", "how old is", "how heavy is", "how dense is", "how far away is", "how wide is"),
    ("how heavy", "how deep", "how old", "how wide", "how loud", "how hot"),
    ("mass", "density", "volume", "diameter", "temperature", "age", "pressure"),
    ("boiling point", "melting point", "density", "specific heat"),
    ("seconds", "metres", "kilograms", "degrees", "joules", "volts"),
    ("bits", "bytes", "characters"),
    ("voltage", "current", "resistance", "power", "capacitance", "frequency"),
    ("area", "volume", "perimeter", "circumference", "surface"),
    ("variance", "median", "standard deviation", "range", "mode"),
    ("time complexity", "space complexity"),
    ("how many", "how big are the", "how old are the"),
)
#: Properties of one thing; each stands for any other of its line.
PROPERTIES = (
    ("who invented", "who paid for", "who named"),
    ("who discovered", "who named", "who first photographed", "who disproved"),
    ("when was", "where was", "why was", "by whom was"),
    ("what causes", "what cures", "who discovered", "how common is"),
    ("when did", "where did", "why did", "how did"),
    ("cause", "symptom", "treatment", "incubation period", "frequency"),
    ("default", "maximum", "minimum", "recommended"),
    ("what does", "who wrote", "how fast does"),
    ("what is", "who came up with", "what is the opposite of", "how common is"),
    ("which", "how many"),
)
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])")
_NUMBER_WORD = re.compile(rf"\b({'|'.join(word for word in NUMBER_WORDS if word not in ('one', 'zero'))})\b", re.IGNORECASE)
_ASKED = re.compile(
    r"^((?:which|what|who)\b.*? (?:is|are|was|were|can|should|may|must)|how (?:do|can) I|what (?:is|are))\b", re.IGNORECASE
)
_DOES = re.compile(r"^((?:which|what) (?:\w+ )?\w+) (\w{3,}?)s\b(?= )", re.IGNORECASE)
_NOT = re.compile(r"\b(not|never|without|no)\b ?", re.IGNORECASE)


def opposite(ask: str) -> Iterator[str]:
    for pair in OPPOSITE_PAIRS.split():
        yield from exchange(ask, *pair.split("/"))


def subset(ask: str) -> Iterator[str]:
    """A part for the whole."""
    for pair in PARTS.split():
        part, whole = pair.split("/")
        if not re.search(rf"\b{part}", ask, re.IGNORECASE):
            yield from replace_word(ask, whole, part)


def superset(ask: str) -> Iterator[str]:
    """The whole for a part."""
    for pair in PARTS.split():
        part, whole = pair.split("/")
        if not re.search(rf"\b{whole}", ask, re.IGNORECASE):
            yield from replace_word(ask, part, whole)


def unit(ask: str) -> Iterator[str]:
    """Another quantity than was asked for."""
    yield from other_of(QUANTITIES, ask)


def asked_property(ask: str) -> Iterator[str]:
    """Another property of the same thing."""
    yield from other_of(PROPERTIES, ask)


def other_of(lines: Sequence[Sequence[str]], ask: str) -> Iterator[str]:
    """`ask` with what it says of any line replaced by each other entry of that line."""
    for line in lines:
        for said, other in permutations(line, 2):
            yield from replace_word(ask, said, other)


def number(ask: str) -> Iterator[str]:
    for match in _NUMBER.finditer(ask):
        value = match.group().replace(",", "")
        if "." in value:
            others = [f"{float(value) + 1:g}", f"{float(value) * 2:g}"]
        else:
            others = [str(int(value) + step) for step in (1, 2, 11)] + [str(int(value) * 2)]
        yield from (ask[: match.start()] + other + ask[match.end() :] for other in others)
    words = list(NUMBER_WORDS)
    for match in _NUMBER_WORD.finditer(ask):
        at = words.index(match.group().lower())
        yield from (ask[: match.start()] + words[other] + ask[match.end() :] for other in (at + 1, at + 2) if other < 21)


def negation(ask: str) -> Iterator[str]:
    """ "Which X does ...?" becomes "Which X does not ...?", and the other way round."""
    if _NOT.search(ask):
        yield _NOT.sub("", ask, count=1)
    elif match := _ASKED.match(ask):
        yield ask[: match.end()] + " not" + ask[match.end() :]
    elif match := _DOES.match(ask):
        yield f"{match.group(1)} does not {match.group(2)}{ask[match.end() :]}"


def exchange(ask: str, first: str, second: str) -> Iterator[str]:
    yield from replace_word(ask, first, second)
    yield from replace_word(ask, second, first)


def replace_word(ask: str, said: str, other: str) -> Iterator[str]:
    """`ask` with `other` for `said`, in the same case and number."""

    def in_its_place(match: re.Match[str]) -> str:
        return (other[0].upper() + other[1:] if match.group()[0].isupper() else other) + match.group(1)

    changed, count = re.subn(rf"\b{re.escape(said)}(s?)\b", in_its_place, ask, count=1, flags=re.IGNORECASE)
    if count:
        yield changed


SWAPS: dict[str, Callable[[str], Iterator[str]]] = {
    "number": number,
    "negation": negation,
    "opposite": opposite,
    "unit": unit,
    "subset": subset,
    "superset": superset,
    "property": asked_property,
}


def entity_swaps(facts: list[Fact]) -> Iterator[tuple[str, str]]:
    """Two things that are asked for in the same words are of a kind; what is asked of the one is asked of the other.

    Yields a question and the id of the fact that it was made from.
    """
    fillers: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for fact in facts:
        for ask in fact.asks:
            words = ask.rstrip("?").split()
            for start in range(1, len(words)):
                for end in range(start + 1, min(start + 3, len(words)) + 1):
                    frame = " ".join(words[:start]), " ".join(words[end:])
                    if sum(len(part.split()) for part in frame) >= 3:
                        fillers[frame].setdefault(" ".join(words[start:end]), fact.id)
    alike: dict[str, set[str]] = defaultdict(set)
    for filled in fillers.values():
        for thing in filled:
            alike[thing] |= filled.keys() - {thing}
    for (before, after), filled in fillers.items():
        for thing, origin in filled.items():
            for other in sorted(alike[thing] - filled.keys()):
                yield f"{before} {other} {after}".strip() + "?", origin


def proposals(facts: list[Fact], taken: set[str], each: int, chance: random.Random) -> Iterator[dict[str, object]]:
    """`each` swaps of each kind among the facts of one cartridge; none that is a way to ask already."""
    for kind in KINDS:
        if kind == "entity":
            made = list(entity_swaps(facts))
        else:
            made = [(text, fact.id) for fact in facts for ask in fact.asks for text in SWAPS[kind](ask)]
        chance.shuffle(made)
        used: set[str] = set()
        for text, origin in made:
            if normalize(text) in taken or origin in used or len(used) == each:
                continue
            taken.add(normalize(text))
            used.add(origin)
            yield {"query": text, "expected": [], "kind": kind, "of": origin}


def print_nearest(file: Path, facts: list[Fact]) -> None:
    """Each question of `file` with the fact that it was made from and those nearest in meaning."""
    settings = load_settings()
    store = VectorStore(open_embedder(settings), settings.cache_dir)
    questions = [raw for _, raw in read_jsonl(file)]
    texts = [(text, fact) for fact in facts for text in (fact.text, *fact.asks)]
    cosines = store.vectors([raw["query"] for raw in questions]) @ store.vectors([text for text, _ in texts]).T
    for raw, row in zip(questions, cosines, strict=True):
        nearest: dict[str, Fact] = {fact.id: fact for _, fact in texts if fact.id == raw["of"]}
        for at in (-row).argsort():
            nearest.setdefault(texts[at][1].id, texts[at][1])
            if len(nearest) > SHOWN:
                break
        print(f"\n{raw['kind']}: {raw['query']}")
        for fact in nearest.values():
            print(f"    {fact.id}: {fact.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=EACH, help="proposals for each kind in each cartridge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nearest", type=Path, metavar="FILE", help="print the facts nearest to the questions of FILE")
    options = parser.parse_args()
    general = [c for c in Library(PROJECT / "cartridges").load().cartridges if c.manifest.faction == "general"]
    if options.nearest:
        print_nearest(options.nearest, [fact for cartridge in general for fact in cartridge.facts])
        return
    chance = random.Random(options.seed)
    taken = {normalize(ask) for cartridge in general for fact in cartridge.facts for ask in fact.asks}
    for cartridge in general:
        for proposal in proposals(list(cartridge.facts), taken, options.each, chance):
            print(json.dumps(proposal, ensure_ascii=False))


if __name__ == "__main__":
    main()
