"""Thresholds in questions: "larger than 4 cm", "at least 3", "between 40 and 100 cm³"."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Operator = Literal["more", "at least", "less", "at most", "exactly", "between"]
Dimension = Literal["volume", "length", "hu", "percent", "none"]

_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_UNITS: Final[tuple[tuple[str, Dimension, float], ...]] = (
    (r"mm3|cubic mill\w+", "volume", 0.001),
    (r"cm3|mls?|ccs?|cubic cent\w+|millilit\w+", "volume", 1.0),
    (r"l|lit(?:er|re)s?", "volume", 1000.0),
    (r"mm|millimet\w+", "length", 1.0),
    (r"cms?|centimet\w+", "length", 10.0),
    (r"hu|hounsfield(?: units?)?", "hu", 1.0),
    (r"%|percent", "percent", 1.0),
)
"""Wording, what it measures, and its size in ml, mm, HU or percent."""
_NUMBER: Final = rf"(-?\d+(?:,\d{{3}})*(?:\.\d+)?|{'|'.join(_WORDS)})"
_UNIT: Final = rf"(?:[ -]?({'|'.join(pattern for pattern, _, _ in _UNITS)})(?!\w))?"
_VALUE: Final = rf"(?:(?:the|a|an|about|around|approximately) )?{_NUMBER}{_UNIT}(?![\w.]*\d)"
_MORE: Final = r"(?:larger|bigger|greater|more|higher|longer|wider|denser)"
_LESS: Final = r"(?:smaller|less|fewer|lower|shorter)"
_THAN: Final = r"(?: in (?:size|volume|diameter))? than"
_PATTERNS: Final[tuple[tuple[Operator, str], ...]] = (
    ("between", rf"\b(?:between|from|(?:in|within) (?:the|a) range(?: of)?) {_VALUE} ?(?:and|to|-|–) ?{_VALUE}"),
    ("at least", rf"(?:\b{_MORE}{_THAN} or equal to|\bat least|\ba minimum of|≥|>=) ?{_VALUE}"),
    ("at least", rf"\b{_VALUE} or (?:more|larger|bigger|greater|higher|above|longer)\b"),
    ("at most", rf"(?:\b{_LESS}{_THAN} or equal to|\bat most|\bup to|\ba maximum of|≤|<=) ?{_VALUE}"),
    ("at most", rf"\b{_VALUE} or (?:less|fewer|smaller|lower|below|shorter)\b"),
    ("more", rf"(?:\b{_MORE}{_THAN}|\babove|\bover|\bbeyond|\bexceed(?:s|ing)?|>) ?{_VALUE}"),
    ("less", rf"(?:\b{_LESS}{_THAN}|\bbelow|\bunder|<) ?{_VALUE}"),
    ("exactly", rf"\b(?:exactly|only|precisely|equal to) {_VALUE}"),
)  # fmt: skip
_OPPOSITE: Final[dict[Operator, Operator]] = {
    "more": "at most", "at least": "less", "less": "at least", "at most": "more",
}  # fmt: skip
_FEW: Final[tuple[tuple[str, Operator], ...]] = (
    (r"\b(?:multiple|several)\b", "more"),
    (r"\b(?:a )?single\b|\ba solitary\b", "exactly"),
)
_EPSILON: Final = 1e-9


@dataclass(frozen=True)
class Limit:
    """A threshold in ml, mm, HU, percent or, of dimension ``none``, a count or ratio."""

    operator: Operator
    value: float
    dimension: Dimension
    high: float | None = None
    """The upper end of ``between``."""

    def met(self, number: float) -> bool:
        """Both ends of ``between`` count as inside."""
        tests: dict[Operator, Callable[[], bool]] = {
            "more": lambda: number > self.value,
            "at least": lambda: number >= self.value,
            "less": lambda: number < self.value,
            "at most": lambda: number <= self.value,
            "exactly": lambda: abs(number - self.value) < _EPSILON,
            "between": lambda: self.value <= number <= (self.value if self.high is None else self.high),
        }
        return tests[self.operator]()

    def __str__(self) -> str:
        unit = {"volume": " cm³", "length": " mm", "hu": " HU", "percent": " %", "none": ""}[self.dimension]
        words = {"more": "more than", "less": "less than"}.get(self.operator, self.operator)
        return f"{words} {self.value:g}{'' if self.high is None else f' and {self.high:g}'}{unit}"


def find_limits(text: str) -> tuple[list[Limit], str]:
    """The thresholds of a question in lower case, and its text without them."""
    found: list[Limit] = []
    for operator, pattern in _PATTERNS:
        negatable = rf"(?:\b(not?) )?{pattern}" if operator in _OPPOSITE else rf"(\A\B)?{pattern}"
        while match := re.search(negatable, text):
            found.append(_limit(_OPPOSITE[operator] if match[1] else operator, match.groups()[1:]))
            text = f"{text[: match.start()]} {text[match.end() :]}"
    return found, text


def few_or_many(text: str, lesions: str) -> tuple[Limit | None, str]:
    """``multiple lesions`` is more than one, ``a single lesion`` exactly one. ``lesions``: a pattern of their names."""
    for words, operator in _FEW:
        match = re.search(rf"(?:{words})(?= (?:\w+ ){{0,2}}(?:{lesions})\b)", text)
        if match:
            return Limit(operator, 1.0, "none"), f"{text[: match.start()]} {text[match.end() :]}"
    return None, text


def _limit(operator: Operator, groups: tuple[str | None, ...]) -> Limit:
    numbers, units = groups[::2], groups[1::2]
    dimension, size = _unit(units[-1] or units[0])
    low, *high = (_number(number or "") * size for number in numbers)
    return Limit(operator, low, dimension, high[0] if high else None)


def _number(text: str) -> float:
    return float(_WORDS.index(text)) if text in _WORDS else float(text.replace(",", ""))


def _unit(text: str | None) -> tuple[Dimension, float]:
    for pattern, dimension, size in _UNITS:
        if text and re.fullmatch(pattern, text):
            return dimension, size
    return "none", 1.0
