"""Standard terms of lesion attributes, what else is written for them, and how they are read from text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

Attribute = Literal["shape", "margin", "density", "count"]

TERMS: Final[dict[Attribute, dict[str, tuple[str, ...]]]] = {
    "shape": {
        "round": ("rounded", "spherical"),
        "oval": ("ovoid", "ellipsoid", "elliptical"),
        "lobulated": ("lobular", "lobed"),
        "irregular": ("irregularly shaped", "irregular in shape"),
    },
    "margin": {
        "well-defined": ("well defined", "sharply marginated", "well-circumscribed", "circumscribed", "sharp margin"),
        "ill-defined": ("ill defined", "poorly marginated", "poorly defined", "blurred", "indistinct"),
        "spiculated": ("spiculate",),
    },
    "density": {
        "hypodense": ("hypoattenuating", "low-density", "low density", "hypo-attenuating"),
        "isodense": ("isoattenuating", "iso-attenuating"),
        "hyperdense": ("hyperattenuating", "high-density", "high density", "hyper-attenuating"),
        "heterogeneous": ("mixed-density", "mixed density", "inhomogeneous"),
    },
    "count": {
        "solitary": ("single", "one lesion", "one mass", "one tumor"),
        "multiple": ("several", "numerous", "multifocal"),
    },
}  # fmt: skip
"""Attribute → standard term → others that mean the same. The terms are those that RadLex prefers."""

_OF_OTHERS: Final = re.compile(
    r"\b(?:metasta\w+|nod(?:e|es|al)|lymphaden\w+|cysts?|pseudocysts?|benign)\b", re.I
)
"""A clause about something else than the tumor: its terms are not the tumor's."""
_NEGATED: Final = re.compile(r"\b(?:not|no|without|rather than|instead of|never)\s+(?:\w+[\s-]+){0,2}$", re.I)
CLAUSE: Final = re.compile(r"(?<=[.;!?])\s+|\n+")
_SIZE: Final = re.compile(
    r"(?P<before>(?:<=?|>=?|≤|≥|\b(?:under|over|below|above|than|between|most|least|and|or|to|of size))\s*)?"
    r"(?<![\w.])(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>mm|cm)\b(?P<after>\s*(?:or (?:more|less)|at most))?"
)


@dataclass(frozen=True)
class Term:
    """A standard term that a text says, or denies."""

    attribute: Attribute
    value: str
    denied: bool


def standard(attribute: Attribute, text: str) -> str | None:
    """The standard term for what is written, ``None`` for a word that is none."""
    asked = " ".join(text.lower().split())
    for term, others in TERMS[attribute].items():
        if asked == term or asked in others:
            return term
    return None


@cache
def _pattern() -> tuple[re.Pattern[str], dict[str, tuple[Attribute, str]]]:
    meanings = {
        word: (attribute, term)
        for attribute, terms in TERMS.items()
        for term, others in terms.items()
        for word in (term, *others)
    }
    words = "|".join(re.escape(word) for word in sorted(meanings, key=len, reverse=True))
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.I), meanings


def read_terms(text: str) -> Iterator[Term]:
    """Terms said of the tumor, clause by clause; clauses about nodes, metastases and benign findings are left out."""
    pattern, meanings = _pattern()
    for clause in CLAUSE.split(text):
        other = _OF_OTHERS.search(clause)
        about = clause[: other.start()] if other else clause
        for found in pattern.finditer(about):
            attribute, term = meanings[found[0].lower()]
            yield Term(attribute, term, _NEGATED.search(about[: found.start()]) is not None)


def read_sizes(text: str) -> list[float]:
    """Lengths in mm that a text states as measured; limits such as "under 2 cm" or "2 to 4 cm" are not."""
    found = []
    for match in _SIZE.finditer(text):
        upper = match["before"] is not None and text[: match.start("value")].rstrip().lower().endswith(
            "up to"
        )
        ranged = re.match(r"\s*(?:to|and|-|–)\s*\d", text[match.end() :])
        if (match["before"] and not upper) or match["after"] or ranged:
            continue
        found.append(float(match["value"]) * (10 if match["unit"] == "cm" else 1))
    return found
