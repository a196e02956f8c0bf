"""Words, numbers, negations and names of a text: what can be checked without a model.

Deterministic and free of any model; English rules. Not here: meaning (embedder.py) and the
judgement whether a text answers a question (evidence.py).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import snowballstemmer

#: Words that say nothing about the topic. Question words are here too: `question_kind` reads them.
STOP_WORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being below
    between both but by can could did do does doing done down during each else ever few for from further
    get gets getting give given go goes going gonna got had has have having he her here hers him his how i
    if in into is it its itself just kind know known let like lot made make makes me mean means mine more
    most much my myself of off often on one ones only onto or other our out over own please put really
    said same say says see she should show so some something sort stuff such sure take takes tell than
    that the their them then there these they thing things think this those through to too under until up
    upon us use used uses using usually very want was way we well were what when where which while who
    whom whose why will with within would yet you your yours vs happen happens happened called call
    exactly actually basically explain describe define definition meaning difference does
    work works working need needs needed look looks looking come comes become becomes bring brings turn turns
    person people everyone everybody able possible still really around inside actually kinda usually typically
    anyone anybody someone somebody whats hows whos wheres thats im ive dont isnt
    """.split()
)
#: Words that turn a statement round.
NEGATIONS = frozenset(
    "no not never none nor neither cannot without isn't aren't wasn't weren't don't doesn't didn't "
    "can't couldn't won't wouldn't shouldn't hasn't haven't hadn't false untrue impossible".split()
)
#: Words that lean on something said before.
ANAPHORA = frozenset(
    "it its it's itself they them their theirs themselves he him his she her hers this that these those "
    "one ones former latter there".split()
)
#: Openings that continue a conversation rather than start one.
CONTINUATIONS = re.compile(
    r"^\s*(and|but|so|or|then|also|ok(ay)?|what about|how about|what if|why( not)?\s*\??$|how( so)?\s*\??$|really)\b",
    re.IGNORECASE,
)
#: Words that exclude each other, so that sharing everything else makes a near-miss.
OPPOSITE_PAIRS = """
increase/decrease increase/reduce raise/lower rise/fall high/low higher/lower highest/lowest hot/cold hottest/coldest
warm/cool fast/slow faster/slower fastest/slowest begin/end start/stop start/end first/last maximum/minimum max/min
deep/shallow deepest/shallowest large/small larger/smaller largest/smallest big/small biggest/smallest long/short
longer/shorter longest/shortest heavy/light heaviest/lightest heavier/lighter tallest/shortest oldest/youngest old/new
early/late earliest/latest near/far nearest/farthest best/worst cheapest/dearest
simplest/hardest easiest/hardest easy/hard simple/complex largest/least most/least newest/oldest strong/weak strongest/weakest strong/mild thick/thin wide/narrow inside/outside
internal/external input/output import/export encode/decode encrypt/decrypt compress/decompress open/close enable/disable
acid/base acidic/basic acidic/alkaline positive/negative oxidation/reduction oxidize/reduce exothermic/endothermic
synchronous/asynchronous male/female north/south east/west northern/southern eastern/western parallel/series push/pull
add/remove insert/delete create/delete read/write upload/download client/server public/private local/remote
exporter/importer winner/loser win/lose birth/death born/died parent/child ancestor/descendant upper/lower top/bottom
front/back left/right clockwise/counterclockwise summer/winter spring/autumn day/night sunrise/sunset dry/wet hard/soft
active/passive dominant/recessive excitatory/inhibitory sensory/motor afferent/efferent systolic/diastolic artery/vein
anode/cathode proton/electron dc/ac major/minor sharp/flat convex/concave even/odd numerator/denominator
sympathetic/parasympathetic prokaryote/eukaryote prokaryotic/eukaryotic saturated/unsaturated aerobic/anaerobic
catabolic/anabolic monocot/dicot predator/prey liquid/gas solid/liquid boiling/melting boiling/freezing buy/sell
lock/unlock mount/unmount install/uninstall attach/detach connect/disconnect visible/invisible mutable/immutable
"""
#: Words that say how much of something is meant: a part, the whole, the extreme, one of a row.
SCOPE_WORDS = frozenset(
    """all any both each entire every everything nothing only whole total sum altogether together part parts half some
    most least less more fewer fewest first last next previous final earlier later before after until since except
    besides other another instead else always sometimes average mean median per minimum maximum single several
    exactly without within during""".split()
)
#: Prefixes that turn a word into its opposite.
OPPOSING_PREFIXES = ("non", "un", "in", "dis", "anti", "de")
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split()
    )
} | {"thirty": "30", "forty": "40", "fifty": "50", "hundred": "100", "thousand": "1000"}

_ORDINALS = {
    word: str(number)
    for number, word in enumerate(
        "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth".split(), 3
    )
} | {"twentieth": "20", "hundredth": "100", "thousandth": "1000"}
_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?|[^\W\d_]+(?:['’][^\W\d_]+)*[+#]*|\d+")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_LETTER, _DIGIT = re.compile(r"[^\W\d_]"), re.compile(r"\d")
_WORD = re.compile(r"[^\W_][\w+#'-]*")
#: Mathematical signs beyond ASCII: arrows, quantifiers, roots, operators.
_SIGNS = "".join(char for char in map(chr, range(0x80, 0x3000)) if unicodedata.category(char) == "Sm")
_PUNCTUATION = re.compile(rf"[^\w+#%.'/*<>=&$^~|{_SIGNS}-]|(?<!\d)\.|\.(?!\d)|(?<!\w)['/]|['/](?!\w)|(?<!^)-$")
_OPERATOR = re.compile(r"\$[?!@*$#]|[|~^@:\\]|[-+*/%&|^~<>=!:@$#\\\[\]{}]{2,3}")
_stem = lru_cache(maxsize=65536)(snowballstemmer.stemmer("english").stemWord)


@dataclass(frozen=True, slots=True)
class Words:
    """What `read` finds in a text. `content` are stems in order, without stop words and numbers.

    `numbers` are written in digits or words, and signs such as ∀ and √ count among them.
    """

    content: tuple[str, ...]
    numbers: frozenset[str]
    negated: bool
    texts: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        """Stems of proper names. Looked for only where they are asked for: of all that is read they take longest."""
        return frozenset().union(*map(_names, self.texts))


def normalize(text: str) -> str:
    """The form in which two askings are the same: case, punctuation, spacing and width do not count.

    Signs that carry meaning (`C++`, `C#`, `-5`, `3.5`, `%`, `2^8`, `∀`, and alone `:=`, `//` or `|`) stay.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = _THOUSANDS.sub("", text)
    return " ".join(" ".join(word if word.isalnum() else _plain(word) for word in text.split()).split())


def _plain(word: str) -> str:
    """A word without punctuation; one that is nothing but an operator is left as it is."""
    for bare in (word, word.strip("?!.,;\"'`()“”")):
        if _OPERATOR.fullmatch(bare):
            return bare
    return _PUNCTUATION.sub(" ", word)


def tokens(text: str) -> list[str]:
    """Lower-case words and numbers in order."""
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    return [token.casefold() for token in _TOKEN.findall(text)]


def stem(word: str) -> str:
    """A word's English stem."""
    return str(_stem(word.removesuffix("'s")))


@lru_cache(maxsize=65536)
def read(text: str) -> Words:
    """The checkable parts of `text`."""
    words = tokens(text)
    numbers = frozenset(_canonical(word) for word in words if word[0].isdigit())
    spelled = frozenset(NUMBER_WORDS[word] for word in words if word in NUMBER_WORDS and word != "one")
    content = tuple(
        stem(word)
        for word in words
        if not word[0].isdigit() and word not in STOP_WORDS and word not in NEGATIONS and word not in NUMBER_WORDS
    )
    signs = frozenset() if text.isascii() else frozenset(char for char in text if char in _SIGNS)
    return Words(content, numbers | spelled | signs, any(word in NEGATIONS for word in words), (text,))


@lru_cache(maxsize=65536)
def scope_words(text: str) -> frozenset[str]:
    """Of `text`, the words that say how much of something is meant, and ordinals."""
    return frozenset(word for word in tokens(text) if word in SCOPE_WORDS or word in _ORDINALS)


@lru_cache(maxsize=65536)
def opposites(stem_: str) -> frozenset[str]:
    """Stems that exclude `stem_`: listed pairs, and the same word with or without `non-`, `un-`, ..."""
    built = {prefix + stem_ for prefix in OPPOSING_PREFIXES}
    bare = {
        stem_.removeprefix(prefix) for prefix in OPPOSING_PREFIXES if stem_.startswith(prefix) and len(stem_) > len(prefix) + 3
    }
    return frozenset(_listed_opposites().get(stem_, set()) | built | bare)


@lru_cache(maxsize=1)
def _listed_opposites() -> dict[str, set[str]]:
    listed: dict[str, set[str]] = {}
    for pair in OPPOSITE_PAIRS.split():
        first, second = map(stem, pair.split("/"))
        listed.setdefault(first, set()).add(second)
        listed.setdefault(second, set()).add(first)
    return listed


def stands_alone(text: str) -> bool:
    """Whether a question can be understood without what was said before it.

    "Why?", "and in yeast?" and "what is it made of?" cannot.
    """
    if CONTINUATIONS.match(text):
        return False
    words = tokens(text)
    if any(word in ANAPHORA for word in words):
        return False
    return bool(read(text).content or read(text).numbers)


@lru_cache(maxsize=65536)
def question_kind(text: str) -> str:
    """What the answer must be: who, when, where, why, count, yesno or what."""
    lowered = " " + normalize(text) + " "
    for kind, pattern in _KINDS:
        if pattern.search(lowered):
            return kind
    return "what"


_KINDS = (
    # "How do I see how many ...?" asks for a way, and "when does it ...?" for a condition.
    ("what", re.compile(r"^ how (do|can|could|would|should|to) ")),
    ("count", re.compile(r" how (many|much|large|long|far|heavy|hot|cold|old|tall|high|deep|often) ")),
    ("when", re.compile(r"^ (when (did|was|were)|since when)\b| (what|which) (year|date|century|decade) ")),
    ("who", re.compile(r"^ (who|by whom)\b(?! cares)")),
    ("where", re.compile(r"^ where\b| in (what|which) (country|city|place) ")),
    ("why", re.compile(r"\b(why|how come)\b|\bwhat (causes?|reason) ")),
    ("yesno", re.compile(r"^ (is|are|was|were|do|does|did|can|could|will|would|should|has|have|had) ")),
)


def _canonical(number: str) -> str:
    value = number.replace(",", "")
    return value.rstrip("0").rstrip(".") if "." in value else value.lstrip("0") or "0"


@lru_cache(maxsize=65536)
def _names(text: str) -> frozenset[str]:
    """Capitals inside a sentence, acronyms, letters mixed with digits."""
    found = set()
    for match in _WORD.finditer(text):
        word = match.group()
        if word.isalpha() and word.islower():  # most words: no capital, no digit
            continue
        if not _LETTER.search(word) or word == word.swapcase():  # digits, or a script without capitals
            continue
        mixed = bool(_DIGIT.search(word)) or word[1:] != word[1:].lower()
        if mixed or (word[0].isupper() and len(word) > 1 and not _begins_sentence(text, match.start())):
            found.add(stem(word.casefold()))
    return frozenset(found)


def _begins_sentence(text: str, at: int) -> bool:
    before = text[:at].rstrip(" \t\"'(“‘")
    return not before or before[-1] in ".!?:"
