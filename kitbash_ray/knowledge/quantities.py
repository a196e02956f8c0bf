"""What a question wants measured, and what a text measures: time, length, mass, money and the like.

English words only; pure. "How heavy is it?" is not answered by a fact that tells a length.
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Of each dimension: words and signs of its units in a text, and how a question asks for it.
_DIMENSIONS = {
    "time": (
        r"(milli|micro|nano)?seconds?|ms|minutes?|mins?|hours?|hrs?|days?|weeks?|months?|years?|yrs?|decades?|centur(y|ies)|"
        r"instant(ly)?|immediately|o\([^)]*\)|overnight",
        r"how long (does|do|did|will|would|is it until|until|ago|can|should|must|may)|how (quickly|soon|often|old)|what age",
    ),
    "length": (
        r"(kilo|centi|milli|micro|nano)?met(er|re)s?|[kcmnµ]?m|miles?|feet|foot|ft|inch(es)?|light[- ]years?|au|parsecs?|"
        r"astronomical units?",
        r"how (tall|high|deep|wide|far|thick)|(height|diameter|radius|circumference|wingspan|depth|altitude) ",
    ),
    "mass": (
        r"(kilo|milli|micro)?gram(me)?s?|[kmµ]?g|tonn?es?|tons?|pounds?|lbs?|ounces?|solar mass(es)?|daltons?|k?da",
        r"how (heavy|massive)|how much does .* weigh|(mass|weight) of|weigh",
    ),
    "temperature": (r"°\s?[cf]?|degrees?|kelvins?|celsius|fahrenheit|[\d ]k", r"how (hot|cold|warm)|temperature|(boiling|melting|freezing) point"),
    "money": (r"dollars?|euros?|pounds?|cents?|[$€£]|usd|free|cheap(er)?|expensive", r"how (expensive|cheap)|how much (does .* cost|money)|price of|cost of"),
    "memory": (r"[kmgtp]i?b|bytes?|bits?|(kilo|mega|giga|tera)(bytes?|bits?)|o\([^)]*\)", r"how (many|much) (bytes|bits|memory|ram|storage|disk)|space complexity"),
    "speed": (
        r"(k?m|kilomet(er|re)s?|met(er|re)s?|miles?)( ?/ ?|( an| a)? per | an? )(s|h|hr|second|hour)|mph|km/h|knots?|mach|[kmg]?hz|hertz|[kmg]b(it)?(/s|ps)|"
        r"speed of light|per second",
        r"how fast (does|do|is|can|are)|(speed|velocity) of",
    ),
    "share": (r"%|percent(age)?|per cent|half|third|quarter|fraction|ratio|all|none|most|one in", r"(what|which) (percentage|percent|share|fraction|proportion)|how (likely|probable)"),
}  # fmt: skip
_SAID = {name: re.compile(rf"(?<![a-z])({said})(?![a-z])", re.IGNORECASE) for name, (said, _) in _DIMENSIONS.items()}
_WANTED = {name: re.compile(rf"\b({wanted})", re.IGNORECASE) for name, (_, wanted) in _DIMENSIONS.items()}
#: A unit that a question itself names: "in how many seconds", "what is it in kilograms".
_NAMED = {
    "time": r"seconds|minutes|hours|days|weeks|months|years|milliseconds",
    "length": r"met(er|re)s|kilomet(er|re)s|miles|feet|inches|light[- ]years|centimet(er|re)s",
    "mass": r"grams|kilograms|kilos|kg|tonn?es|pounds",
    "temperature": r"degrees|kelvin|celsius|fahrenheit",
    "money": r"dollars|euros",
    "memory": r"bytes|bits|gigabytes|megabytes|gb|mb",
}
_UNITS = {name: re.compile(rf"\b(how many|in|number of) ({units})\b", re.IGNORECASE) for name, units in _NAMED.items()}


@lru_cache(maxsize=65536)
def wanted(question: str) -> frozenset[str]:
    """The dimensions that the answer must be in."""
    asked = {name for name, pattern in _WANTED.items() if pattern.search(question)}
    return frozenset(asked | {name for name, pattern in _UNITS.items() if pattern.search(question)})


@lru_cache(maxsize=65536)
def said(text: str) -> frozenset[str]:
    """The dimensions of which `text` names a unit."""
    return frozenset(name for name, pattern in _SAID.items() if pattern.search(text))


def quantity_unsaid(question: str, text: str) -> bool:
    """Whether the question wants a quantity of a dimension of which `text` says nothing."""
    dimensions = wanted(question)
    return bool(dimensions) and not dimensions & said(text)
