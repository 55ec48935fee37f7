"""Questions whose answer is a measurement: what they ask for, of which organs, in which unit.

Rules in order, the first that fits wins; a question that none fits is none of these. Wordings are those of people
and of DeepTumorVQA's 42 subtypes (which are given by name, so that each kind here tells which it serves).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tumorchain_agent.tools.organs import Mention, match_organs

Kind = Literal[
    "volume", "hu", "diameter", "volume_ratio", "hu_ratio", "compare_volume", "compare_hu", "enlarged", "small",
    "spleen_grade", "fatty_liver", "steatosis_grade", "pancreas_steatosis", "portal_hypertension",
    "lesion_exists", "lesion_volume", "lesion_hu", "lesion_diameter", "lesion_slice", "lesion_count",
    "lesion_location", "lesion_attenuation", "hu_difference", "burden", "burden_compare", "asymmetry",
    "lesion_outlier", "clustering", "segment_compare", "adjacent", "pdac_pnet", "cyst_resect", "pseudocyst",
    "renal_mass", "lesion_type", "pancreas_t",
]  # fmt: skip
ORGAN_KINDS: Final[frozenset[str]] = frozenset(
    {
        "volume", "hu", "diameter", "volume_ratio", "hu_ratio", "compare_volume", "compare_hu", "enlarged",
        "small", "spleen_grade", "fatty_liver", "steatosis_grade", "pancreas_steatosis",
    }
)  # fmt: skip
"""Kinds that an organ label map alone answers."""


@dataclass(frozen=True)
class Query:
    """What a question asks to be measured."""

    kind: Kind
    organs: tuple[str, ...] = ()
    """Table 10 names in order of mention; for a lesion's question the organs that hold it, none for any."""
    parts: tuple[str, ...] = ()
    """Sub-structures named, e.g. ``segment 4``, ``head``."""
    lesion: str | None = None
    """``lesion`` for any, else ``tumor``, ``cyst``, ``pdac``, ``pnet``, ``metastasis``."""
    unit: str | None = None
    """As the question names it: ``cm3``, ``ml``, ``mm3``, ``cm``, ``mm``."""
    largest: bool = False
    """Of lesions: the largest one's, not all of them together."""
    mean: bool = False
    """Of several: their mean, not their sum."""
    less: bool = False
    """Asks which is smaller or lower."""


_LESION: Final = (
    r"lesions?|tumou?rs?|mass(?:es)?|cysts?|nodules?|metasta\w+|malignan\w+|cancers?|pdac|pnet|neoplasms?"
)
_HU: Final = r"\bhu\b|hounsfield|attenuation|densit|\bct numbers?\b"
_BIG: Final = (
    r"larger|bigger|smaller|largest|biggest|smallest|same size|compar\w+.*(?:volume|size)|(?:volume|size).*compar"
    r"|(?:greater|more|less|lower|higher) (?:in )?(?:volume|size)"
)
_ASKS: Final = r"^(?:is|are|does|do|did|has|have|can|was|were)\b"
_LEVEL: Final = r"grad(?:e|ing)|sever|degree|classif|categor|stage|extent of"

Test = Callable[[str], bool]


def _all(*patterns: str, but: str | None = None) -> Test:
    """Every pattern is found, and ``but`` is not."""
    needed = [re.compile(p) for p in patterns]
    barred = re.compile(but) if but else None
    return lambda text: all(p.search(text) for p in needed) and not (barred and barred.search(text))


_MANY: Final = r"how many|number of|\bcount\b"
_RULES: Final[tuple[tuple[Kind, Test, bool], ...]] = (
    ("portal_hypertension", _all(r"portal(?:\w|\s)*hypertension"), False),
    (
        "pancreas_steatosis",
        _all(r"steatosis|fatty|fat infiltrat", r"pancrea|\bp/s\b", but=r"\bliver|hepatic"),
        False,
    ),
    ("steatosis_grade", _all(r"steatosis|fatty", _LEVEL), False),
    ("fatty_liver", _all(r"fatty|steatosis|fat infiltrat", r"liver|hepatic|steatosis"), False),
    ("pseudocyst", _all(r"pseudocyst"), True),
    ("pdac_pnet", _all(r"pdac|adenocarcinoma", r"pnet|neuroendocrine"), True),
    ("cyst_resect", _all(r"cyst", r"resect|surg|remov|excis|operat", r"pancrea"), True),
    ("pancreas_t", _all(r"pancrea", r"\bt[- ]?(?:stag|categor)|\bstag(?:e|ing)\b"), True),
    (
        "renal_mass",
        _all(r"bosniak|(?:renal|kidney) mass", r"character|classif|bosniak|type|best describe|nature"),
        True,
    ),
    (
        "lesion_type",
        _all(r"kidney|renal", _LESION, r"classif|\btype|cyst or|cystic or|solid|tumou?r or"),
        True,
    ),
    ("spleen_grade", _all(r"splenomegaly|splenic|spleen", _LEVEL, r"enlarge|megaly"), False),
    ("small", _all(r"atroph|shrunken|abnormally small"), False),
    ("enlarged", _all(r"enlarge|megaly", but=_LESION), False),
    (
        "burden_compare",
        _all(r"burden|percentage|proportion", r"which|compare|higher|greater|heavi|more"),
        True,
    ),
    ("burden", _all(r"burden|percent|fraction|proportion|occup|%", rf"burden|{_LESION}"), True),
    (
        "asymmetry",
        _all(r"kidney|renal", r"asymmetr|which (?:kidney|side)|bilateral", rf"{_LESION}|burden|disease"),
        True,
    ),
    ("asymmetry", _all(r"kidney|renal", r"asymmetr"), True),
    ("adjacent", _all(_LESION, r"adjacent|closest|nearest|neighbou?r|next to|abut"), True),
    (
        "lesion_outlier",
        _all(_LESION, r"outlier|(?:substantially|significantly|much|markedly|disproportion\w*|times) larger"),
        True,
    ),
    ("clustering", _all(_LESION, r"cluster|distribut|scattered|dispers"), True),
    (
        "segment_compare",
        _all(
            _LESION,
            r"\bsegments?\b",
            r"compare|\bmore\b|most|fewer|greater|highest",
            but=r"largest|biggest|\bwhere\b|most likely",
        ),
        True,
    ),
    ("hu_difference", _all(_LESION, r"differ", _HU), True),
    ("lesion_slice", _all(_LESION, r"\bslices?\b|z[- ]?index"), True),
    (
        "lesion_attenuation",
        _all(
            _LESION,
            r"hypo|hyper|iso(?:att|dens)|attenuation|enhanc|darker|brighter",
            but=rf"\bhu\b|hounsfield|{_MANY}",
        ),
        True,
    ),
    ("lesion_count", _all(_LESION, _MANY), True),
    (
        "lesion_location",
        _all(
            _LESION,
            r"\bwhere\b|locat|\blies?\b|which (?:\w+ )?(?:segment|part|kidney|side|portion|lobe|region|section|organ)",
        ),
        True,
    ),
    ("lesion_volume", _all(_LESION, r"volume"), True),
    ("lesion_diameter", _all(_LESION, r"diameter|how (?:large|big|long)|\bsize\b|longest|dimension"), True),
    ("lesion_hu", _all(_LESION, _HU, but=r"describe|how is|what is the density of"), True),
    ("lesion_exists", _all(_LESION, rf"{_ASKS}|evidence|presen|visible|exist|contain|detect|show"), True),
    ("volume_ratio", _all(r"ratio", r"volume|size"), False),
    ("hu_ratio", _all(r"ratio|\bl/s\b|\bp/s\b"), False),
    ("compare_hu", _all(rf"{_HU}|dense", r"higher|lower|greater|denser|compare|brighter|darker|than"), False),
    ("compare_volume", _all(_BIG), False),
    ("hu", _all(_HU), False),
    ("diameter", _all(r"diameter|how (?:long|wide)\b|longest extent"), False),
    ("volume", _all(r"volume|how (?:large|big)\b|\bsize of\b|\bml\b|\bcc\b|cm3"), False),
)
"""Kind, its test on the lower-case question, whether it is about lesions."""

_DEFAULT_ORGANS: Final[dict[str, tuple[str, ...]]] = {
    "portal_hypertension": ("spleen",),
    "spleen_grade": ("spleen",),
    "fatty_liver": ("liver", "spleen"),
    "steatosis_grade": ("liver", "spleen"),
    "pancreas_steatosis": ("pancreas", "spleen"),
    "asymmetry": ("kidney_left", "kidney_right"),
    "clustering": ("liver",),
    "segment_compare": ("liver",),
    **dict.fromkeys(("pseudocyst", "pdac_pnet", "cyst_resect", "pancreas_t"), ("pancreas",)),
    **dict.fromkeys(("renal_mass", "lesion_type"), ("kidney_left", "kidney_right")),
}
"""Organs of kinds that are of these, whatever else the question names."""
_TWO: Final = frozenset({"hu_ratio", "volume_ratio", "compare_volume", "compare_hu", "burden_compare"})
_UNITS: Final = (
    ("mm3", r"mm3|cubic mill|mm\^3"), ("ml", r"\bmls?\b|millilit"), ("cm3", r"cm3|cm\^3|\bcc\b|cubic cent"),
    ("mm", r"\bmm\b|millimet"), ("cm", r"\bcm\b|centimet"),
)  # fmt: skip


def parse_question(question: str) -> Query | None:
    """What the question wants measured, or ``None`` when that isn't what it asks.

    >>> parse_question("What is the mean HU of the spleen?")
    Query(kind='hu', organs=('spleen',), parts=(), lesion=None, unit=None, largest=False, mean=True, less=False)
    """
    text = " ".join(question.lower().translate(str.maketrans("³²", "32")).split())
    mentions = match_organs(question)
    about = bool(re.search(rf"\b(?:{_LESION})\b", text))
    for kind, fits, of_lesions in _RULES:
        if fits(text) and (about or not of_lesions or kind in ("burden", "burden_compare", "asymmetry")):
            organs = _organs(kind, text, mentions)
            if _plausible(kind, organs):
                return _query(kind, text, mentions, organs)
    return None


def _plausible(kind: str, organs: tuple[str, ...]) -> bool:
    if kind in _TWO and kind != "burden_compare":
        return len(organs) == 2
    return bool(organs) or kind not in ORGAN_KINDS


def _query(kind: Kind, text: str, mentions: list[Mention], organs: tuple[str, ...]) -> Query:
    return Query(
        kind=kind,
        organs=organs,
        parts=tuple(dict.fromkeys(m.substructure for m in mentions if m.substructure)),
        lesion=_lesion(text) if kind not in ORGAN_KINDS else None,
        unit=next((unit for unit, pattern in _UNITS if re.search(pattern, text)), None),
        largest=bool(re.search(r"largest|biggest|dominant|main lesion", text)),
        mean=bool(re.search(r"\b(?:mean|average)\b", text)),
        less=bool(re.search(r"smaller|smallest|lower|lowest|fewer|fewest|darker|less\b", text)),
    )


def _organs(kind: str, text: str, mentions: list[Mention]) -> tuple[str, ...]:
    if kind in _DEFAULT_ORGANS:
        return _DEFAULT_ORGANS[kind]
    found = list(dict.fromkeys(m.organ for m in mentions))
    if "kidney_cyst" in found:
        found.remove("kidney_cyst")
        sides = [side for side in ("left", "right") if re.search(rf"\b{side}\b", text)]
        found += [f"kidney_{side}" for side in sides or ("right", "left") if f"kidney_{side}" not in found]
    for ratio, organs in (("l/s", ["liver", "spleen"]), ("p/s", ["pancreas", "spleen"])):
        if kind == "hu_ratio" and re.search(rf"\b{ratio}\b", text):
            found = organs
    if len(found) == 1 and kind in _TWO and re.fullmatch(r".*_(left|right)", found[0]):
        other = "left" if found[0].endswith("right") else "right"
        if re.search(rf"\b{other}\b", text):
            found.append(re.sub(r"(left|right)$", other, found[0]))
    return tuple(found)


def _lesion(text: str) -> str:
    """Which lesions: the one kind that is named, else any."""
    if "pdac" in text and "pnet" not in text:
        return "pdac"
    if re.search(r"pnet|neuroendocrine", text) and "pdac" not in text:
        return "pnet"
    if re.search(r"\bcysts?\b", text) and not re.search(r"tumou?r|lesion|mass", text):
        return "cyst"
    if re.search(r"metasta", text) and not re.search(r"tumou?r|lesion|mass", text):
        return "metastasis"
    return "tumor" if re.search(r"tumou?r", text) and not re.search(r"lesion|cyst|burden", text) else "lesion"
