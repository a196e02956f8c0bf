"""Facts proposed from the passages of an import, for a person to review.

A sentence is proposed when it stands alone and is definite: it defines something, or it says of
something a number. The ways to ask follow from its form. Nothing here is ever an answer: the
proposals lie in a file that no other module reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import PASSAGES, Fact, load_cartridge
from kitbash_ray.knowledge.text import read

PROPOSALS = "proposals.yaml"
#: Characters of a sentence that can be a fact.
SHORTEST, LONGEST = 30, 300

_HEAD = """\
# Proposed from the imported passages by `kitbash cartridge propose`, the most definite first. Nothing reads this
# file. For each entry: is it true, does it stand alone, does it answer every ask? Put it right, add the asks
# that people would type, and move it to facts.yaml. docs/cartridges.md says what makes a good fact.
"""
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")
#: Subject, verb and rest of a sentence that begins with what it is about.
_FORM = re.compile(
    r"^(?P<subject>(?:The |An? )?[A-Z0-9`][^.,;:!?()]{1,60}?) "
    r"(?P<verb>is|are|was|were|means|stands for|refers to|has|have|takes|costs|uses|listens on|runs on|defaults to|"
    r"holds|contains|draws|consumes|needs|requires|weighs|measures|lasts|reaches|covers|produces|delivers|supports|"
    r"expires after|opens at|closes at|starts at|ends at) "
    r"(?P<rest>.+[.!])$"
)
#: What leans on the sentence before it, or speaks to the reader.
_LEANS = re.compile(
    r"^(It|This|That|These|Those|They|He|She|We|You|I|There|Here|If|When|While|However|But|And|So|Also|Then|For example|"
    r"Note|Please|See|To|In this|Both|Each|Such|Another|Other|One|Some|Many|Most|All|What|Which|The (following|above|same|latter|"
    r"former|other|first|second|next|last))\b",
    re.IGNORECASE,
)
#: A number of things or units, which is what people ask for.
_COUNTED = re.compile(r"^(?:about |around |up to |at (?:most|least) )?\d[\d.,]* (?P<unit>[a-z]{2,}s)\b")
_DEFINES = re.compile(r"^(an?|the|one of|short for|any|every)\b")


@dataclass(frozen=True, slots=True)
class Proposal:
    """A fact to review. `definite` orders them: a definition and a number count most."""

    id: str
    fact: str
    asks: tuple[str, ...]
    source: str
    definite: int


def propose_grains(folder: Path, most: int) -> list[Proposal]:
    """Up to `most` proposals from the passages in `folder`. Raises CartridgeError when there are none to read."""
    if not (folder / PASSAGES).is_file():
        raise CartridgeError(f"There is no imported cartridge in {folder}; `kitbash cartridge import` makes one.")
    facts = load_cartridge(folder).facts
    known = {ask.casefold() for fact in facts for ask in fact.asks}
    found: dict[str, Proposal] = {}
    for fact in facts:
        for proposal in _of_passage(fact):
            # Of two sentences that one question could ask for, neither can be chosen here.
            if not known & {ask.casefold() for ask in proposal.asks}:
                found.setdefault(proposal.asks[0].casefold(), proposal)
    return sorted(found.values(), key=lambda proposal: -proposal.definite)[:most]


def write_proposals(folder: Path, proposals: Sequence[Proposal]) -> None:
    entries = [
        {"id": one.id, "fact": one.fact, "asks": list(one.asks), "source": one.source, "level": "empirical"}
        for one in proposals
    ]
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120) if entries else "[]\n"
    (folder / PROPOSALS).write_text(_HEAD + text, encoding="utf-8")


def _of_passage(fact: Fact) -> Iterator[Proposal]:
    for at, sentence in enumerate(_SENTENCE.split(" ".join(fact.text.split()))):
        form = _FORM.match(sentence)
        if not form or _LEANS.match(sentence) or not SHORTEST <= len(sentence) <= LONGEST or "```" in sentence:
            continue
        definite = (
            2 * bool(_DEFINES.match(form["rest"]))
            + bool(read(form["rest"]).numbers)
            + (form["verb"] in ("means", "stands for"))
        )
        if definite and len(form["subject"].split()) <= 6:
            where = f"{fact.source}, {fact.section}" if fact.section else str(fact.source)
            short = fact.id.partition(":")[2][:100]
            yield Proposal(f"{short}-{at}", sentence, _asks(form), where, definite)


def _asks(form: re.Match[str]) -> tuple[str, ...]:
    """Two ways to ask for a sentence of this form; people will have better ones."""
    subject = re.sub(r"^(The|An?) ", lambda article: article[0].lower(), form["subject"])
    bare = re.sub(r"^(the|an?) ", "", subject)
    verb, rest = form["verb"], form["rest"]
    if verb in ("is", "are", "was", "were"):
        return (f"What {verb} {subject}?", f"{bare} meaning" if _DEFINES.match(rest) else f"{bare}")
    if verb in ("means", "stands for", "refers to"):
        return (
            f"What does {subject} {verb.replace('means', 'mean').replace('stands', 'stand').replace('refers', 'refer')}?",
            f"{bare} meaning",
        )
    do, base = ("do", verb) if verb == "have" else ("does", _base(verb))
    counted = _COUNTED.match(rest)
    how_many = (f"How many {counted['unit']} {do} {subject} {base}?",) if counted else ()
    return (f"What {do} {subject} {base}?", f"{bare} {verb} what", *how_many)


def _base(verb: str) -> str:
    """The bare form of a verb in the third person, with the preposition that follows it."""
    first, *rest = verb.split(" ")
    bare = "have" if first == "has" else first.removesuffix("es") if first.endswith("ches") else first.removesuffix("s")
    return " ".join((bare, *rest))
