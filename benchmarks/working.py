"""What can be checked in the working of an answer to a question about quantities.

Sums are computed again, and numbers are followed from the question through the steps to the final
answer. Pure: two texts in, FEATURES out; English rules. It says how an answer hangs together, not
whether it is right: a fit over the features turns them into a confidence.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kitbash_ray.knowledge.text import NUMBER_WORDS, tokens

FEATURES = (
    "no_final",  # no line says which number is the answer
    "final_fraction",  # the final answer is no whole number
    "final_differs",  # the text ends with another number than the final answer
    "shrinks",  # orders of magnitude that the final answer lies below the question's largest number
    "negative",  # a result is below zero
    "fractions",  # share of the results that are no whole numbers
    "wrong_sum",  # a sum does not come out
    "no_sums",  # no sum is worked out
    "words_a_sum",  # words of the answer for each sum, of twenty
    "unworked",  # share of the numbers in the text that belong to no sum
    "unused_given",  # share of the question's numbers that no sum uses
    "unnamed_given",  # share of them that the text does not name at all
    "repeated_given",  # numbers that the question has more than once, of three
    "reused_given",  # times that sums use a number more often than the question has it, of five
    "dangling",  # results that no later sum uses, of three
    "foreign",  # terms that neither the question nor an earlier step gives, of three
    "against",  # "3 fewer than" added, or "3 more than" taken away, of two
    "unheeded",  # twice, half, a third, a dozen, ...: said by the question, used by no sum, of two
    "doubts",  # words of doubt or of a new start, of two
    "rounds",  # words of rounding, of two
    "question_words",  # logarithm of the words of the question
)

#: Longest sum that is read: what is longer is no arithmetic, and this bounds how deep the parser goes.
MAX_SUM = 200
#: What a word of the question lets a sum use beside the numbers that are written there.
IMPLIED = (
    (r"\b(twice|doubles?|doubled|half|halves|halved)\b", (2.0, 0.5, 50.0, 1.5, 200.0)),
    (r"\b(triples?|tripled|thrice|thirds?)\b", (3.0, 1 / 3, 2 / 3)),
    (r"\b(quarters?|fourths?)\b", (4.0, 0.25, 25.0, 0.75)),
    (r"\bfifths?\b", (5.0, 0.2)),
    (r"\bdozens?\b", (12.0, 6.0, 24.0, 36.0)),
    # A unit of time need not be converted; only the words above are owed a number.
    (r"\b(pairs?|couple|second)\b", (2.0,)),
    (r"\bweek\w*", (7.0, 52.0, 4.0)),
    (r"\b(month|year)\w*", (12.0, 4.0, 30.0, 31.0, 52.0, 365.0)),
    (r"\b(days?|daily)\b", (7.0, 24.0, 30.0, 365.0)),
    (r"\b(hour|minute)\w*", (60.0,)),
)
OWED = 5  #: so many of them, from the first, have to be used
#: These need no explanation anywhere.
CUSTOMARY = frozenset({1.0, 100.0})

_NUMBER = r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_NUMBERS = re.compile(_NUMBER)
_TERM = rf"[(\s]*-?{_NUMBER}%?[)\s]*"
_BEFORE_EQUALS = re.compile(rf"{_TERM}(?:[-+*/]{_TERM})+$")
_AFTER_EQUALS = re.compile(rf"\s*(?:approximately|about)?({_TERM}(?:[-+*/]{_TERM})*)")
_FINAL = re.compile(rf"####[^\d\n-]*(-?{_NUMBER})")
_NOTE = re.compile(r"<<[^<>]*>>")
_DOUBT = re.compile(
    r"\b(however|mistake|correct(ed|ion)?|actually|wait|but (this|that|we)|not possible|impossible|cannot|assum\w+|"
    r"seems?|unclear|sorry|apologi\w+|instead|approximately|about)\b",
    re.IGNORECASE,
)
_ROUNDING = re.compile(r"\b(round\w*|whole number|fraction of|nearest|approximately|about)\b", re.IGNORECASE)
_MORE = r"more|older|taller|longer|heavier|greater|higher|bigger|larger|faster|extra|additional|further"
_LESS = r"less|fewer|younger|shorter|lighter|lower|smaller|slower|cheaper"
_COMPARED = re.compile(
    rf"({_NUMBER}|\b(?:{'|'.join(NUMBER_WORDS)})\b)%?(?: \w+){{0,3}}? (?:({_MORE})|({_LESS}))\b", re.IGNORECASE
)
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True, slots=True)
class Sum:
    """One step: the numbers in it, the operator before each, what it comes to and what the text says it comes to.

    `unit` is one in the last place that the text gives: what rounding may change.
    """

    terms: tuple[float, ...]
    signs: tuple[str, ...]
    value: float
    stated: float
    unit: float

    @property
    def holds(self) -> bool:
        return abs(self.value - self.stated) <= self.unit * (1 + 1e-9)


def measure(question: str, answer: str) -> tuple[float, ...]:
    """The FEATURES of an answer with its working, beside the question."""
    steps, last = sums(answer), final(answer)
    given = _given(question)
    terms = [term for step in steps for term in step.terms]
    said = _numbers(_NOTE.sub(" ", answer.partition("####")[0]))
    unused = [number for number in given if not _any_near(_readings(number), terms)]
    words = len(answer.split())
    return (
        *_of_final(steps, last, said, max(given, default=0.0)),
        float(any(not step.holds for step in steps)),
        float(not steps),
        min(words / max(1, len(steps)) / 20, 3.0),
        _share(said, lambda number: not _any_near((number,), [*terms, *(step.stated for step in steps)])),
        len(unused) / max(1, len(given)),
        _share(given, lambda number: not _any_near((number,), _numbers(answer))),
        *_of_use(question, steps, given),
        _capped(len(_DOUBT.findall(answer)), 2),
        _capped(len(_ROUNDING.findall(answer)), 2),
        math.log(1 + len(question.split())),
    )


def sums(answer: str) -> tuple[Sum, ...]:
    """The sums that an answer works out, in order, whether noted as <<2*3=6>> or written in a sentence."""
    found = []
    parts = _plain(answer).split("=")
    for before, after in pairwise(parts):
        sum_, result = _BEFORE_EQUALS.search(before[-MAX_SUM:]), _AFTER_EQUALS.match(after)
        if sum_ is None or result is None:
            continue
        text, said = _balanced(sum_.group()), _balanced(result.group(1))
        value, whole = evaluate(text), evaluate(said)
        if value is None or whole is None:
            continue
        # "45 - 5 = 40 / 2 = 20" goes on from its result; "3 * 5 = 10 + 5" says it in another way.
        first = _NUMBERS.findall(said)[0]
        stated = min(_number(first) * (-1 if said.strip().startswith("-") else 1), whole, key=lambda it: abs(it - value))
        terms, signs = _terms(text)
        found.append(Sum(terms, signs, value, stated, 10.0 ** -len(first.partition(".")[2])))
    return tuple(found)


def final(answer: str) -> float | None:
    """The number after the last ####, the mark of a final answer."""
    found = _FINAL.findall(answer)
    return _number(found[-1]) if found else None


def evaluate(text: str) -> float | None:
    """What a sum of plain numbers comes to; None for anything else, and for a division by zero."""
    if len(text) > MAX_SUM:
        return None
    try:
        return _value(ast.parse(text.replace(",", "").replace("%", "/100").strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError):
        return None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("no sum")


def _plain(answer: str) -> str:
    """The answer with one sign for each operation and no units between numbers; a note takes the place of its result."""
    text = answer.replace("\\", "").replace("×", "*").replace("÷", "/").replace("−", "-").replace("$", "")
    text = re.sub(r"(?:=\s*)?<<([^<>]*)>>\s*-?[\d,.]*\d", r";\1 ", text)
    text = re.sub(r"(?<=[\d)\s])[xX](?=[\d(\s])", "*", text)
    text = re.sub(r"\([^()\d]*[A-Za-z][^()]*\)", " ", text)
    return re.sub(r"(?<=[\d%)])\s*[A-Za-z][A-Za-z' ]*(?=\s*[-+*/=])", " ", text)


def _balanced(sum_: str) -> str:
    """The sum without the parentheses of the sentence around it."""
    while sum_.count(")") > sum_.count("(") and sum_.rstrip().endswith(")"):
        sum_ = sum_.rstrip()[:-1]
    while sum_.count("(") > sum_.count(")") and sum_.lstrip().startswith("("):
        sum_ = sum_.lstrip()[1:]
    return sum_


def _terms(sum_: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The numbers of a sum, and before each of them its operator."""
    found = re.findall(rf"([-+*/]?)[(\s]*({_NUMBER})", sum_)
    return tuple(_number(number) for _, number in found), tuple(sign for sign, _ in found)


def _of_final(steps: Sequence[Sum], last: float | None, said: Sequence[float], largest: float) -> tuple[float, ...]:
    """The features `no_final` to `fractions`."""
    results = [step.stated for step in steps]
    if last is None:
        of_last = (1.0, 0.0, 0.0, 0.0)
    else:
        size = math.log10(1 + largest) - math.log10(1 + abs(last))
        of_last = (
            0.0,
            float(not _whole(last)),
            float(bool(said) and not _near(said[-1], abs(last))),
            min(max(size, -4.0), 4.0),
        )
    below = any(result < 0 for result in [*results, last or 0.0])
    return (*of_last, float(below), _share(results, lambda result: not _whole(result)))


def _of_use(question: str, steps: Sequence[Sum], given: Sequence[float]) -> tuple[float, ...]:
    """The features `repeated_given` to `unheeded`."""
    terms = [term for step in steps for term in step.terms]
    implied = [numbers if re.search(word, question, re.IGNORECASE) else () for word, numbers in IMPLIED]
    allowed = {
        *CUSTOMARY,
        *(reading for number in given for reading in _readings(number)),
        *(n for own in implied for n in own),
    }
    there, used = Counter(given), Counter(terms)
    taken: set[int] = set()
    foreign = 0
    for at, step in enumerate(steps):
        for term in step.terms:
            earlier = [before for before in range(at) if _near(steps[before].stated, term)]
            taken.update(earlier[-1:])
            foreign += not earlier and not _any_near((term,), allowed)
    return (
        _capped(len(given) - len(there), 3),
        _capped(sum(max(0, used[number] - times) for number, times in there.items()), 5),
        _capped(sum(at not in taken for at in range(len(steps) - 1)), 3),
        _capped(foreign, 3),
        _capped(_against(question, steps), 2),
        _capped(sum(bool(own) and not _any_near(own, terms) for own in implied[:OWED]), 2),
    )


def _against(question: str, steps: Sequence[Sum]) -> int:
    """How many differences that the question tells are only used the other way round."""
    signs: dict[float, set[str]] = {}
    for step in steps:
        for term, sign in zip(step.terms, step.signs, strict=True):
            signs.setdefault(term, set()).add(sign)
    count = 0
    for number, more, _ in _COMPARED.findall(question):
        used = signs.get(_number(NUMBER_WORDS.get(number.casefold(), number)), set())
        with_it, against_it = ("+", "-") if more else ("-", "+")
        count += against_it in used and with_it not in used
    return count


def _given(question: str) -> list[float]:
    """The question's numbers in order, written in digits or words; "one" is mostly no quantity."""
    numbers = (NUMBER_WORDS.get(word, word) for word in tokens(question) if word != "one")
    return [_number(number) for number in numbers if number[0].isdecimal()]


def _readings(number: float) -> tuple[float, ...]:
    """The forms in which a sum may use a number of the question: itself, and as percents."""
    return number, number / 100, 1 - number / 100, 1 + number / 100, 100 - number, 100 + number


def _numbers(text: str) -> list[float]:
    return [_number(number) for number in _NUMBERS.findall(text)]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6


def _near(one: float, other: float) -> bool:
    """The same number, but for what rounding to two places does."""
    return abs(one - other) <= 0.005 * max(1.0, abs(one))


def _any_near(numbers: Iterable[float], others: Collection[float]) -> bool:
    return any(abs(number - other) < 1e-6 for number in numbers for other in others)


def _share(numbers: Sequence[float], holds: Callable[[float], bool]) -> float:
    return sum(map(holds, numbers)) / max(1, len(numbers))


def _capped(count: int, most: int) -> float:
    return min(count, most) / most
