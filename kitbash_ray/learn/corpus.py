"""What a student learns from: each taught fact with the ways to ask for it, and what to decline.

Every way to ask is changed a little each time it is read: words are left out, exchanged or misspelt,
phrases put before it. All of it follows from a seed. The held-out questions of a cartridge
(questions.jsonl) are never read here. Not here: tokens (tokenizer.py), batches (train.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from random import Random

from kitbash_ray.errors import CartridgeError
from kitbash_ray.knowledge.cartridge import Fact
from kitbash_ray.knowledge.library import Contents
from kitbash_ray.knowledge.text import read
from kitbash_ray.learn.recipe import Recipe
from kitbash_ray.learn.tokenizer import asked
from kitbash_ray.types import Source

#: What the student says to a question that it cannot answer.
DECLINE = "unknown"
#: The faction that is taught; what the others are asked is declined.
TAUGHT = "general"
BEFORE = (
    "hey, ", "hi, ", "please tell me ", "do you know ", "can you explain ", "can you tell me ", "tell me, ", "i wonder, ",
    "quick question: ", "so ", "just curious, ", "i want to know ", "could you say ", "remind me, ", "in short, ", "explain ",
)  # fmt: skip
AFTER = (" please", " exactly", " in short", " again", ", thanks", " then", " actually")
SAME = (
    ("what is", "what's"), ("what's", "what is"), ("who is", "who's"), ("where is", "where's"), ("do not", "don't"),
    ("does not", "doesn't"), ("how many", "what number of"), ("how much", "what amount of"), ("how does", "in what way does"),
    ("why", "for what reason"), ("why is", "how come"), ("when", "in which year"), ("which", "what"), ("what", "which"),
    ("what is", "what does it mean"), ("how do i", "how can i"), ("how do you", "how to"), ("how do i", "what is the way to"),
    ("called", "named"), ("happens", "occurs"), ("use", "employ"), ("big", "large"), ("kind of", "type of"),
)  # fmt: skip
STARTS = ("what", "which", "how", "why", "what about", "what is", "tell me about", "when", "does", "is it true that", "")

Alike = Callable[[Iterable[str]], Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Example:
    """A question and the number of the fact that answers it, None if it is to be declined.

    `meaning` is the text in `Corpus.meanings` that the question means, None if there is none.
    """

    question: str
    fact: int | None
    meaning: int | None


@dataclass(frozen=True)
class Corpus:
    """Everything that is taught. `alike` gives words of like meaning."""

    facts: tuple[Fact, ...]
    asks: tuple[tuple[str, int], ...]
    elsewhere: tuple[str, ...]
    alike: Mapping[str, Sequence[str]] = field(default_factory=dict)
    #: Which facts have a word stem, and each ask's rarest word.
    _holders: dict[str, set[int]] = field(init=False, repr=False, default_factory=dict)
    _rare: dict[str, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for number, fact in enumerate(self.facts):
            for stem in {stem for text in (fact.text, *fact.asks) for stem in read(text).content}:
                self._holders.setdefault(stem, set()).add(number)

    @property
    def meanings(self) -> list[str]:
        """The asks, the facts and what is to be declined, in this order."""
        return [ask for ask, _ in self.asks] + [fact.text for fact in self.facts] + list(self.elsewhere)

    @property
    def sources(self) -> list[Source]:
        """The facts as they are cited."""
        return [Source(fact.cartridge, fact.id, fact.text, 1.0, fact.source, fact.section) for fact in self.facts]

    @property
    def texts(self) -> list[str]:
        """What the vocabulary is learned from."""
        return [asked(ask) for ask, _ in self.asks] + [fact.text for fact in self.facts] + [DECLINE]

    @property
    def hash(self) -> str:
        """Changes with everything that is taught."""
        digest = hashlib.blake2b(digest_size=12)
        for text in (*(fact.id for fact in self.facts), *self.meanings, *self.alike):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def example(self, number: int, recipe: Recipe, rnd: Random) -> Example:
        """One made of the ask `number`, or one to be declined."""
        ask, fact = self.asks[number]
        if rnd.random() < recipe.declined:
            return self._declined(ask, recipe, rnd)
        if rnd.random() < recipe.worded:
            return Example(self._worded(ask, self.facts[fact], rnd), fact, len(self.asks) + fact)
        return Example(self._changed(ask, recipe, rnd), fact, number)

    def _declined(self, ask: str, recipe: Recipe, rnd: Random) -> Example:
        """One that no fact answers: near to `ask` but for its subject, or from elsewhere."""
        if rnd.random() < recipe.exchanged:
            other, _ = rnd.choice(self.asks)
            near = self.exchanged(ask, other)
            if near:
                return Example(self._changed(near, recipe, rnd), None, None)
        number = rnd.randrange(len(self.elsewhere))
        meaning = len(self.asks) + len(self.facts) + number
        return Example(self._changed(self.elsewhere[number], recipe, rnd), None, meaning)

    def exchanged(self, ask: str, other: str) -> str | None:
        """`ask` with its subject exchanged for that of `other`; None if some fact has all words of the result.

        The subject is the word that the fewest facts have.
        """
        ours, theirs = self._subject(ask), self._subject(other)
        if not ours or not theirs or ours == theirs:
            return None
        near = re.sub(rf"\b{re.escape(ours)}\b", lambda _: theirs, ask, count=1)
        stems = read(near).content
        holders = [self._holders.get(stem, set()) for stem in stems]
        return None if not holders or set.intersection(*holders) else near

    def _subject(self, ask: str) -> str:
        if ask not in self._rare:
            words = [
                (len(self._holders.get(stem, ())), word) for word in re.findall(r"[\w'-]+", ask) for stem in read(word).content
            ]
            self._rare[ask] = min(words)[1] if words else ""
        return self._rare[ask]

    def _worded(self, ask: str, fact: Fact, rnd: Random) -> str:
        """A question in the fact's own words: a piece of it, or some of its words among the ask's."""
        words = fact.text.rstrip(".").split()
        size = rnd.randint(4, 12)
        start = rnd.randrange(max(1, len(words) - size))
        piece = words[start : start + size]
        if rnd.random() < 0.5:
            own = ask.rstrip("?").split()
            piece = [word for word in own if rnd.random() < 0.6] + [word for word in piece if rnd.random() < 0.5]
        return f"{rnd.choice(STARTS)} {' '.join(piece)}".strip()

    def _changed(self, ask: str, recipe: Recipe, rnd: Random) -> str:
        """`ask` as somebody else might type it; one in eight stays as it is."""
        if rnd.random() < 0.125:
            return ask
        text = asked(ask)
        if rnd.random() < 0.3:
            text = _said_otherwise(text, rnd)
        words = [self._alike(word, rnd) if rnd.random() < recipe.alike else word for word in text.split()]
        if rnd.random() < 0.5:
            words = [word for word in words if rnd.random() > 0.12] or words
        if len(words) > 2 and rnd.random() < 0.12:
            at = rnd.randrange(len(words) - 1)
            words[at : at + 2] = words[at + 1], words[at]
        if rnd.random() < 0.15:
            at = rnd.randrange(len(words))
            words[at] = misspelt(words[at], rnd)
        text = " ".join(words)
        if rnd.random() < 0.2:
            text = rnd.choice(BEFORE) + text
        return text + rnd.choice(AFTER) if rnd.random() < 0.06 else text

    def _alike(self, word: str, rnd: Random) -> str:
        others = self.alike.get(word)
        return rnd.choice(others) if others else word


def load_corpus(contents: Contents, alike: Alike | None = None) -> Corpus:
    """The corpus of a library; `alike` finds words of like meaning. Raises CartridgeError when it has no fact with a way to ask."""
    texts: dict[str, Fact] = {}
    for fact in contents.facts:
        if fact.faction == TAUGHT and fact.asks:
            texts.setdefault(fact.text, fact)
    facts = tuple(texts.values())
    if not facts:
        raise CartridgeError("No cartridge of the faction general has a fact with ways to ask; a student needs some.")
    asks = tuple((ask, number) for number, fact in enumerate(facts) for ask in fact.asks)
    known = {asked(ask) for ask, _ in asks}
    others = [ask for fact in contents.facts if fact.faction != TAUGHT for ask in fact.asks]
    elsewhere = tuple(text for text in (*others, *shipped_elsewhere()) if asked(text) not in known)
    corpus = Corpus(facts, asks, elsewhere)
    return replace(corpus, alike=alike(corpus.meanings)) if alike else corpus


def shipped_elsewhere() -> list[str]:
    """Questions that no shipped cartridge answers."""
    text = files("kitbash_ray.learn").joinpath("elsewhere.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def misspelt(word: str, rnd: Random) -> str:
    """`word` with one letter left out, doubled or exchanged with the next; short words stay."""
    if len(word) < 4:
        return word
    at = rnd.randrange(1, len(word) - 1)
    return rnd.choice(
        (word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], word[:at] + word[at + 1] + word[at] + word[at + 2 :])
    )


def _said_otherwise(text: str, rnd: Random) -> str:
    """`text` with one of the phrases in SAME, if it has any."""
    there = [(ours, other) for ours, other in SAME if re.search(rf"\b{ours}\b", text)]
    if not there:
        return text
    ours, other = rnd.choice(there)
    return re.sub(rf"\b{ours}\b", other, text, count=1)
