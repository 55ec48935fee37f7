"""TNM statements read from text and checked against AJCC 8.

Nothing is corrected silently: what the text states is kept, and what can't be right is flagged.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tumorchain_agent.records import TNM
from tumorchain_agent.tools.ajcc import (
    AXES,
    Axis,
    Basis,
    agree,
    applies_to,
    check,
    criteria,
    has_table,
    main_group,
    possible_stages,
    stage_group,
)
from tumorchain_agent.tools.organs import FIVE, display_name, match_organs

__all__ = ["check", "criteria", "parse_tnm", "primary_organ", "stage_group"]

_PREFIX = r"(?P<prefix>[cpyar]{0,3})"
_START = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"
_VALUE = {
    "T": r"(?:[Xx]|[Ii]s|0|[1-9][a-d]?)",
    "N": r"(?:[Xx]|0|[1-9][a-c]?)",
    "M": r"(?:[Xx]|0|[1-9][a-d]?)",
}
_NEXT = {"T": r"|(?=[cpyar]{0,3}[Nn][0-9Xx])", "N": r"|(?=[cpyar]{0,3}[Mm][0-9Xx])", "M": ""}
_SEPARATOR: Final = r"[\s,;/]*(?:and\s+)?"
_CHOICE: Final = re.compile(r"\s*(?:or|to|and|versus|vs\.?|/)\s*")
"""Between two T categories: neither is stated for certain."""


def _category(axis: Axis) -> str:
    upper_to = rf"\s?[-–/]\s?{axis}?(?P<upper_to>\d[a-d]?)(?!\s*(?:[cm]m|\.\d))"
    return rf"{_PREFIX}[{axis}{axis.lower()}](?P<value>{_VALUE[axis]})(?:(?:{upper_to})?{_END}{_NEXT[axis]})"


_GLUED: Final = {axis: re.compile(_category(axis)) for axis in AXES}
_FREE: Final = {axis: re.compile(_START + _category(axis)) for axis in AXES}
_FOLLOWED_BY_N: Final = re.compile(_SEPARATOR + r"[cpyar]{0,3}[Nn][0-9Xx]")
_NOT_TNM: Final = re.compile(
    r"(?:-?\s*(?:and|or|/|,)\s*T[12])?[-\s]*(?:w\b|weighted|hyper|hypo|iso|signal|sequence|image|imaging|shine|vertebra|level|spine|rib)",
    re.I,
)
_SAME_PREFIX: Final = (
    re.compile(_START + r"(y?[cp])T(\d[ab]?|is|X)\1(N\w+?)\1(?=M)"),
    re.compile(_START + r"(y?[cp])T([02-9][ab]?)\1(?=N)()"),
)
"""In "cT1cN0cM0" the second c is a prefix; in "cT1cN0M0" it is the sub-letter of T1c."""
_SPELLED: Final = re.compile(
    r"\b([TNM])[- ](?:stage|category|status)(?:\s+is)?\s*[:=]?\s*(?:(?i:\1))?(\d[a-d]?|is|X)(?![A-Za-z0-9])"
)
_STAGE: Final = re.compile(
    r"\bstaged?\s*(?:group(?:ing)?\s*)?(?:(?:is|as|of|at)\s+)?[:=]?\s*"
    r"(?P<main>IV|III|II|I|[0-4])\s?(?P<letter>[A-D]?)(?![A-Za-z0-9])"
    r"|M[01X][a-d]?\s*\((?:AJCC\s*)?(?P<main2>IV|III|II|I|0)(?P<letter2>[A-D]?)\)",
    re.I,
)
_ROMAN: Final = {"1": "I", "2": "II", "3": "III", "4": "IV"}
_SENTENCE: Final = re.compile(r"(?<=[.;!?])\s+|\n+")
_DENIED: Final = re.compile(
    r"\b(?:no|not|none|without|absent|absence|negative|neither|nor|free of|exclud\w+|ruled? out"
    r"|(?:un|less )likely)\b",
    re.I,
)
_UNSURE: Final = re.compile(
    r"\b(?:possibl[ey]|suspect\w*|suspicious|probabl[ey]|may|might|could|cannot|question\w*|versus|vs|if|or)\b|\?",
    re.I,
)
_SITES: Final = {
    "liver": r"liver|hepatic",
    "lung": r"lung|pulmonary",
    "bone": r"bone|osseous|skeletal|vertebral",
    "peritoneal": r"peritone\w+|omental",
    "brain": r"brain|cerebral",
    "adrenal": r"adrenal",
    "distant": r"distant",
}
_CANCER: Final = r"(?:adeno)?(?:carcinoma|cancer|malignancy|tumou?r|neoplasm)"
_CANCER_AFTER: Final = re.compile(rf"[\s-]*(?:(?!metast)\w+[\s-]+){{0,2}}{_CANCER}\b", re.I)
_CANCER_BEFORE: Final = re.compile(
    rf"\b(?:{_CANCER}|primary)\s+(?:(?:of|in|from|is|site)\s+){{0,2}}(?:the\s+)?$", re.I
)
_CANCER_NAME: Final = re.compile(r"hepatocellular|hcc|hepatoma|pdac|crc", re.I)


@dataclass(frozen=True)
class _Found:
    """One category as written; ``in_range`` for either end of "T1-2"."""

    axis: Axis
    value: str
    prefix: str
    start: int
    end: int
    in_range: bool


def _categories(text: str) -> list[_Found]:
    """Categories in text order; not spine levels (T4) and not magnetic resonance weightings (T1)."""
    spine = [(each.start, each.end) for each in match_organs(text) if each.organ.endswith("_vertebrae")]
    found: list[_Found] = []
    ends: list[int] = []
    for axis in AXES:
        matches = list(_FREE[axis].finditer(text))
        matches += filter(None, (_GLUED[axis].match(text, end) for end in ends))
        if axis == "T":
            matches = [match for match in matches if _is_t(text, match, spine)]
        for match in matches:
            values = list(filter(None, (match["value"], match["upper_to"])))
            for value in values:
                category = axis + ("X" if value in "Xx" else value.lower())
                found.append(_Found(axis, category, match["prefix"], *match.span(), len(values) > 1))
        ends = [match.end() for match in matches]
    return sorted(found, key=lambda each: each.start)


def _is_t(text: str, match: re.Match[str], spine: list[tuple[int, int]]) -> bool:
    if _NOT_TNM.match(text, match.end()):
        return False
    in_spine = any(start <= match.start() < end for start, end in spine)
    return not in_spine or _FOLLOWED_BY_N.match(text, match.end()) is not None


def _full_statements(text: str, found: list[_Found]) -> Iterator[_Found]:
    """The categories of full statements: T, N and M with nothing but separators between them."""
    for index, three in enumerate(zip(found, found[1:], found[2:], strict=False)):
        gaps = [text[a.end : b.start] for a, b in itertools.pairwise(three)]
        plain = tuple(each.axis for each in three) == AXES and not any(each.in_range for each in three)
        before = found[index - 1] if index else None
        choice = before is not None and _CHOICE.fullmatch(text[before.end : three[0].start])
        if plain and not choice and all(re.fullmatch(_SEPARATOR, gap) for gap in gaps):
            yield from three


def _distinct(values: Iterable[str]) -> list[str]:
    """Values in text order, without those that another makes more precise (T1 beside T1a)."""
    unique = list(dict.fromkeys(values))
    return [one for one in unique if not any(other != one and other.startswith(one) for other in unique)]


def _sentences(text: str) -> list[str]:
    return _SENTENCE.split(text)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


class _Reading:
    """What a text states, with its reasons and flags."""

    def __init__(self, text: str, organ: str | None) -> None:
        for pattern in _SAME_PREFIX:
            text = pattern.sub(r"\1T\2 \3 ", text)
        self.text = _SPELLED.sub(r"\1\2", text)
        self.organ = organ
        self.found = _categories(self.text)
        self.full = list(_full_statements(self.text, self.found))
        self.reasons: list[str] = []
        self.flags: list[str] = []

    def value(self, axis: Axis) -> str:
        values = _distinct(each.value for each in self.found if each.axis == axis)
        unknown = f"{axis}X"
        if not values:
            self.reasons.append(f"{unknown}: the text states no {axis} category.")
            return unknown
        if len(values) == 1:
            if values == [unknown]:
                self.reasons.append(f"{unknown}: so stated in the text.")
            return values[0]
        stated = f"The text states {', '.join(values[:-1])} and {values[-1]}"
        full = _distinct(each.value for each in self.full if each.axis == axis)
        if len(full) == 1:
            self.flags.append(f"{stated}; {full[0]} is taken, from its full T N M statement.")
            return full[0]
        self.flags.append(f"{stated}.")
        self.reasons.append(f"{unknown}: the text contradicts itself.")
        return unknown

    def basis(self) -> Basis:
        """Clinical unless the T is written pT."""
        prefixes = {each.prefix for each in self.found if each.axis == "T" and each.prefix}
        if len({"p" in prefix for prefix in prefixes}) > 1:
            self.flags.append("The text mixes clinical (c) and pathological (p) categories.")
            return "clinical"
        return "pathological" if any("p" in prefix for prefix in prefixes) else "clinical"

    def after_treatment(self) -> bool:
        return any("y" in each.prefix for each in self.found)

    def histology(self) -> str | None:
        named = [name for name in ("squamous", "adenocarcinoma") if re.search(name, self.text, re.I)]
        return named[0] if len(named) == 1 else None

    def stated_stage(self) -> str | None:
        stages: list[str] = []
        for match in _STAGE.finditer(self.text):
            main, letter = (match["main"] or match["main2"]), (match["letter"] or match["letter2"] or "")
            stages.append(_ROMAN.get(main, main.upper()) + letter.upper())
        unique = list(dict.fromkeys(stages))
        unique = [
            one for one in unique if not any(other != one and main_group(other) == one for other in unique)
        ]
        if len(unique) > 1:
            self.flags.append(f"The text states stage {' and stage '.join(unique)}.")
            return None
        return unique[0] if unique else None

    def metastases(self, m: str) -> str:
        """M after statements such as "multiple liver metastases", which are M1 of any other primary."""
        sites, unsure = _metastatic_sites(self.text)
        if self.organ == "liver" and "liver" in sites:
            self.flags.append(
                "The text calls liver lesions metastases; those are M1 of another primary, "
                "and the liver table is for hepatocellular carcinoma."
            )
        if self.organ in ("liver", None):
            sites, unsure = sites - {"liver"}, unsure - {"liver"}
        if sites and m == "M0":
            self.flags.append(f"The text states M0 and {_listed(sites)} metastases.")
        elif sites and not any(each.axis == "M" for each in self.found):
            self._because("M1", f"the text states {_listed(sites)} metastases.")
            return "M1"
        elif unsure and m == "MX":
            self._because("MX", f"{_listed(unsure)} metastases are named as possible only.")
        return m

    def _because(self, m: str, reason: str) -> None:
        self.reasons = [each for each in self.reasons if not each.startswith("MX")] + [f"{m}: {reason}"]

    def other_disease(self) -> None:
        if self.organ not in FIVE:
            return
        disease, others = applies_to(self.organ)
        for name in others:
            named = re.compile(rf"\b{name}\w*", re.I)
            said = (sentence for sentence in _sentences(self.text) if named.search(sentence))
            if any(not _DENIED.search(sentence) and not _UNSURE.search(sentence) for sentence in said):
                self.flags.append(f"The text names {name}; the AJCC 8 table used is for {disease}.")

    def stage(self, t: str, n: str, m: str) -> str | None:
        """The stated stage, checked; else the one that follows from the table."""
        stated, organ = self.stated_stage(), self.organ
        if organ is None or not has_table(organ):
            what = (
                f"there is no AJCC 8 table here for the {display_name(organ)}"
                if organ
                else "no primary organ"
            )
            self.reasons.append(f"Not checked: {what}.")
            return stated
        basis, histology = self.basis(), self.histology()
        self.flags += check(organ, t, n, m, stated, histology=histology, basis=basis)
        if self.after_treatment() or not has_table(organ, basis):
            self.reasons.append(
                "Stage not checked: no table here for these pathological or post-treatment categories."
            )
            return stated
        stages = possible_stages(organ, t, n, m, histology=histology, basis=basis)
        derived = stage_group(organ, t, n, m, histology=histology, basis=basis)
        if derived and (stated is None or (stated != derived and agree(stated, derived))):
            open_letter = f", {' or '.join(stages)}" if len(stages) > 1 else ""
            self.reasons.append(
                f"Stage {derived}{open_letter}: from {t} {n} {m}, {display_name(organ)}, AJCC 8."
            )
            return derived
        if derived is None and stated is None:
            left = f"leaves {' or '.join(stages)} open" if len(stages) < 5 else "doesn't determine it"
            self.reasons.append(f"No stage: {t} {n} {m} {left if stages else 'is not in the table'}.")
        return stated


def _metastatic_sites(text: str) -> tuple[set[str], set[str]]:
    """Sites of metastases that the text asserts, and those it names as possible only."""
    sure: set[str] = set()
    unsure: set[str] = set()
    for sentence in _sentences(text):
        if "metasta" not in sentence.lower() or _DENIED.search(sentence):
            continue
        for site, words in _SITES.items():
            near = rf"\b(?:{words})\b[^.;]{{0,40}}\bmetasta|\bmetasta\w*[^.;]{{0,40}}\b(?:{words})\b"
            if re.search(near, sentence, re.I):
                (unsure if _UNSURE.search(sentence) else sure).add(site)
    return sure, unsure - sure


def primary_organ(text: str) -> str | None:
    """The one of the five organs that the text names as the seat of a cancer; None for none or several."""
    organs: set[str] = set()
    for sentence in _sentences(text):
        if _DENIED.search(sentence):
            continue
        for each in match_organs(sentence):
            named = _CANCER_AFTER.match(sentence, each.end) or _CANCER_BEFORE.search(sentence[: each.start])
            if each.organ in FIVE and (named or _CANCER_NAME.fullmatch(each.text)):
                organs.add(each.organ)
    return organs.pop() if len(organs) == 1 else None


def parse_tnm(text: str, organ: str | None = None) -> TNM:
    """Read "cT2 N0 M0", "T4aN2M1b", "stage IIB" … and check them against the primary organ's AJCC 8 table.

    ``organ`` is a Table 10 name; without it the text must name one cancer of the five organs. A part that
    isn't stated is TX/NX/MX with its reason. A stated stage is kept as stated, and flagged where it disagrees
    with the table; without one it follows from the table.
    """
    organ = organ or primary_organ(text)
    reading = _Reading(text, organ)
    t, n, m = (reading.value(axis) for axis in AXES)
    m = reading.metastases(m)
    stage = reading.stage(t, n, m)
    reading.other_disease()
    return TNM(
        primary_organ=organ,
        t=t,
        n=n,
        m=m,
        stage=stage,
        reasons=tuple(reading.reasons),
        flags=tuple(reading.flags),
    )
