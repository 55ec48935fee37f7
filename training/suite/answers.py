"""Answers and truths as classes of closed sets; an answer that can't be read is wrong, and counted.

Read is the sentence that closes the last round, ``Answer: …``, by the parsers that inference uses for TNM and organs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Final

from tumorchain_agent.tools.organs import mentioned_organs
from tumorchain_agent.tools.tnm import parse_tnm
from tumorchain_agent.training.phantom import wording as W
from tumorchain_agent.training.phantom.lesions import BOUNDARIES, DENSITIES, SECTIONS, SHAPES
from tumorchain_agent.training.phantom.patient import ORGANS, Truth

NONE: Final = "no tumor"
"""The class of every field where there is no tumor."""
ABSENT: Final = "not assessed"
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "organ": ("organ",),
    "tumor_position": ("present",),
    "segment": ("section",),
    "shape": ("shape",),
    "boundary": ("boundary",),
    "density": ("density",),
    "count": ("count",),
    "others": ("size",),
    "tumor": ("t",),
    "node": ("n",),
    "metastasis": ("m",),
    "report": ("organ", "size", "t", "n", "m"),
}
"""Subtask → what its answer states. A report's nodes and distant metastases are its N and M."""
WORDS: Final[dict[str, tuple[str, ...]]] = {
    "shape": SHAPES,
    "boundary": BOUNDARIES,
    "density": DENSITIES,
    "count": ("solitary", "multiple"),
    "size": ("under 2 cm", "2 to 4 cm", "over 4 cm"),
}
"""Field → its classes, by their canonical words."""
_ANSWER: Final = re.compile(r"answer\s*:(?!.*answer\s*:)\s*(.*?)[\s.]*$", re.IGNORECASE | re.DOTALL)
_DENIED: Final = re.compile(r"no (?:malignant )?(?:tumor|tumour|malignancy|mass|lesion)", re.IGNORECASE)


def true_fields(
    truth: Truth, subtask: str, asked: str | None = None, present: Collection[str] = ORGANS
) -> dict[str, str]:
    """The right class of each of a subtask's fields; ``present`` are the organs that the scan holds."""
    if subtask == "tumor_position":
        if asked not in present:
            return {"present": ABSENT}
        return {"present": "yes" if asked in truth.abnormal_organs else "no"}
    if truth.organ is None:
        return dict.fromkeys(FIELDS[subtask], NONE)
    known = {
        "organ": truth.organ,
        "section": f"{truth.organ}:{truth.substructure}",
        "shape": truth.shape,
        "boundary": truth.boundary,
        "density": truth.density,
        "count": W.count_word(truth),
        "size": W.size_phrase(truth.size_mm),
        "t": truth.t,
        "n": truth.n,
        "m": truth.m,
    }
    return {field: str(known[field]) for field in FIELDS[subtask]}


def read_fields(text: str, subtask: str, asked: str | None = None) -> dict[str, str] | None:
    """The classes that a reply's answer states; a field that it doesn't is left out.

    ``None`` when the reply has no answer, or one that states none of the subtask's fields.
    """
    answer = answer_in(text)
    if answer is None:
        return None
    if subtask == "tumor_position":
        found = {"present": _present(answer, asked)}
    elif _DENIED.fullmatch(answer):
        return dict.fromkeys(FIELDS[subtask], NONE)
    else:
        found = {field: _READ[field](answer, subtask) for field in FIELDS[subtask]}
    read = {field: value for field, value in found.items() if value is not None}
    return read or None


def answer_in(text: str) -> str | None:
    """What stands behind the last ``Answer:``, without its full stop."""
    found = _ANSWER.search(text)
    return found.group(1) if found and found.group(1) else None


def score(truth: Mapping[str, str], read: Mapping[str, str] | None) -> float:
    """Share of the fields that are right."""
    return sum((read or {}).get(field) == value for field, value in truth.items()) / len(truth)


def _present(answer: str, asked: str | None) -> str | None:
    """Yes or no only about the organ that was asked about."""
    organs = mentioned_organs(answer)
    if organs and organs != [asked]:
        return "another organ"
    if answer.endswith(ABSENT):
        return ABSENT
    if re.match(r"yes\b", answer, re.IGNORECASE):
        return "yes"
    return "no" if re.match(r"no\b", answer, re.IGNORECASE) else None


def _organ(answer: str, _: str) -> str | None:
    organs = mentioned_organs(answer)
    return organs[0] if len(organs) == 1 and organs[0] in ORGANS else None


def _section(answer: str, _: str) -> str | None:
    return _sections().get(answer.lower())


@cache
def _sections() -> dict[str, str]:
    """How the part of an organ is called → ``organ:part``."""
    return {
        phrase: f"{organ}:{name}"
        for organ, parts in SECTIONS.items()
        for name, _, _ in parts
        for phrase in W.section_phrases(organ, name)
    }


def _word(field: str) -> Callable[[str, str], str | None]:
    """A class by its own or another word; in a report the word may stand among others."""
    words = {each: name for name in WORDS[field] for each in (name, *W.SAME.get(name, ()))}

    def read(answer: str, subtask: str) -> str | None:
        if subtask != "report":
            return words.get(answer.lower())
        found = {name for each, name in words.items() if re.search(rf"\b{each}\b", answer, re.IGNORECASE)}
        return found.pop() if len(found) == 1 else None

    return read


def _category(axis: str) -> Callable[[str, str], str | None]:
    def read(answer: str, _: str) -> str | None:
        value = str(getattr(parse_tnm(answer), axis))
        return None if value.endswith("X") else value

    return read


_READ: Final[dict[str, Callable[[str, str], str | None]]] = {
    "organ": _organ,
    "section": _section,
    **{field: _word(field) for field in WORDS},
    **{axis: _category(axis) for axis in ("t", "n", "m")},
}
