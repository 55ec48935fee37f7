"""Which words ask for which measurement: rules in order, the first that fits wins.

Wordings are those of people and of DeepTumorVQA's 42 subtypes (which are given by name, so that each kind here tells
which it serves).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

from tumorchain_agent.tools.quantity_scope import LESION

Kind = Literal[
    "volume", "hu", "diameter", "volume_difference", "volume_ratio", "hu_ratio", "compare_volume", "compare_hu",
    "enlarged", "small", "spleen_grade", "fatty_liver", "steatosis_grade", "pancreas_steatosis", "portal_hypertension",
    "lesion_exists", "lesion_volume", "lesion_hu", "lesion_diameter", "lesion_slice", "lesion_count",
    "lesion_location", "lesion_attenuation", "hu_difference", "burden", "burden_compare", "asymmetry",
    "lesion_outlier", "clustering", "segment_compare", "adjacent", "pdac_pnet", "cyst_resect", "pseudocyst",
    "renal_mass", "lesion_type", "pancreas_t",
]  # fmt: skip
ORGAN_KINDS: Final[frozenset[str]] = frozenset(
    {
        "volume", "hu", "diameter", "volume_difference", "volume_ratio", "hu_ratio", "compare_volume", "compare_hu",
        "enlarged", "small", "spleen_grade", "fatty_liver", "steatosis_grade", "pancreas_steatosis",
    }
)  # fmt: skip
"""Kinds that an organ label map alone answers."""
CONDITIONS: Final[frozenset[str]] = frozenset(
    {
        "portal_hypertension", "pancreas_steatosis", "steatosis_grade", "fatty_liver", "pseudocyst", "pdac_pnet",
        "cyst_resect", "pancreas_t", "renal_mass", "lesion_type", "spleen_grade", "lesion_outlier",
    }
)  # fmt: skip
"""Kinds whose words name a condition or a grade, and the thresholds of it where they give any."""
GRADES: Final[frozenset[str]] = frozenset({"steatosis_grade", "spleen_grade", "renal_mass", "pancreas_t"})
"""Conditions of several grades, of which a question may list one that says no."""
NUMBERS: Final[frozenset[str]] = frozenset(
    {
        "volume", "hu", "diameter", "volume_difference", "volume_ratio", "hu_ratio", "lesion_volume", "lesion_hu",
        "lesion_diameter", "lesion_slice", "lesion_count", "hu_difference", "burden",
    }
)  # fmt: skip

HU: Final = r"\bhu\b|hounsfield|attenuation|densit|\bct numbers?\b"
_BIG: Final = (
    r"larger|bigger|smaller|largest|biggest|smallest|same size|compar\w+.*(?:volume|size)|(?:volume|size).*compar"
    r"|(?:greater|more|less|lower|higher) (?:in )?(?:volume|size)"
)
_LEVEL: Final = r"grad(?:e|ing)|sever|degree|classif|categor|stage|extent of"

_OTHER: Final = r"which (?:organs?|one|of)\b|\brelative|\btimes\b|\btwice\b"
"""Asks which organ, or how many times another, where a number is known."""

Test = Callable[[str], bool]


def _all(*patterns: str, but: str | None = None) -> Test:
    """Every pattern is found, and ``but`` is not."""
    needed = [re.compile(p) for p in patterns]
    barred = re.compile(but) if but else None
    return lambda text: all(p.search(text) for p in needed) and not (barred and barred.search(text))


_MEASURED: Final = (
    r"how (?:large|big|many)|volume of|diameter|\bwhere\b"
    r"|what is the (?:mean |average )?(?:hu\b|atten|densit)"
)
_MANY: Final = r"how many|number of|\bcount\b"
RULES: Final[tuple[tuple[Kind, Test, bool], ...]] = (
    ("portal_hypertension", _all(r"portal(?:\w|\s)*hypertension"), False),
    (
        "pancreas_steatosis",
        _all(r"steatosis|fatty|fat infiltrat", r"pancrea|\bp/s\b", but=r"\bliver|hepatic"),
        False,
    ),
    ("steatosis_grade", _all(r"steatosis|fatty", _LEVEL), False),
    ("fatty_liver", _all(r"fatty|steatosis|fat infiltrat", r"liver|hepatic|steatosis", but=_MEASURED), False),
    ("pseudocyst", _all(r"pseudocyst", but=_MEASURED), True),
    ("pdac_pnet", _all(r"pdac|adenocarcinoma", r"pnet|neuroendocrine"), True),
    ("cyst_resect", _all(r"cyst", r"resect|surg|remov|excis|operat", r"pancrea"), True),
    (
        "pancreas_t",
        _all(
            r"pancrea",
            r"\bt[- ]?(?:stag|categor|classif)|\bstag(?:e|ing)\b.*(?:\bsize|\bt[1-4]\b)|\bsize.*\bstag(?:e|ing)\b",
            but=r"\b[nm][- ]?(?:stag|categor)|\btnm\b|overall|\bgroup",
        ),
        True,
    ),
    (
        "renal_mass",
        _all(r"bosniak|(?:renal|kidney) mass", r"character|classif|bosniak|type|best describe|nature"),
        True,
    ),
    (
        "lesion_type",
        _all(r"kidney|renal", LESION, r"classif|\btype|cyst or|cystic or|solid|tumou?r or"),
        True,
    ),
    ("spleen_grade", _all(r"splenomegaly|splenic|spleen", _LEVEL, r"enlarge|megaly"), False),
    ("small", _all(r"atroph|shrunken|abnormally small"), False),
    ("enlarged", _all(r"enlarge|megaly", but=LESION), False),
    (
        "burden_compare",
        _all(r"burden|percentage|proportion", r"which|compare|higher|greater|heavi|more"),
        True,
    ),
    (
        "burden",
        _all(
            r"burden|percent|fraction|proportion|occup|%",
            rf"burden|{LESION}",
            but=rf"(?:percentage|fraction|proportion|share) of (?:\w+ ){{0,2}}(?:{LESION})\b",
        ),
        True,
    ),
    (
        "asymmetry",
        _all(
            r"kidney|renal",
            r"asymmetr|which (?:kidney|side)|^(?!is |are |does |do |has |have ).*bilateral",
            rf"{LESION}|burden|disease",
        ),
        True,
    ),
    ("asymmetry", _all(r"kidney|renal", r"asymmetr"), True),
    ("adjacent", _all(LESION, r"adjacent|closest|nearest|neighbou?r|next to|abut"), True),
    (
        "lesion_outlier",
        _all(LESION, r"outlier|(?:substantially|significantly|much|markedly|disproportion\w*|times) larger"),
        True,
    ),
    ("clustering", _all(LESION, r"cluster|distribut|scattered|dispers"), True),
    (
        "segment_compare",
        _all(
            LESION,
            r"\bsegments?\b",
            r"compare|\bmore\b|most|fewer|greater|highest",
            but=r"largest|biggest|\bwhere\b|most likely",
        ),
        True,
    ),
    ("hu_difference", _all(LESION, r"differ", HU), True),
    ("lesion_slice", _all(LESION, r"\bslices?\b|z[- ]?index", but=rf"{_MANY}|\bspan|thickness"), True),
    (
        "lesion_attenuation",
        _all(
            LESION,
            r"hypo|hyper|iso(?:att|dens)|attenuation|enhanc|darker|brighter",
            but=rf"\bhu\b|hounsfield|{_MANY}",
        ),
        True,
    ),
    ("lesion_count", _all(LESION, _MANY), True),
    (
        "lesion_location",
        _all(
            LESION,
            r"\bwhere\b|locat|\blies?\b|which (?:\w+ )?(?:segment|part|kidney|side|portion|lobe|region|section|organ)",
        ),
        True,
    ),
    ("lesion_volume", _all(LESION, r"volume"), True),
    ("lesion_diameter", _all(LESION, r"diameter|how (?:large|big|long)|\bsize\b|longest|dimension"), True),
    ("lesion_hu", _all(LESION, HU, but=r"describe|how is|what is the density of"), True),
    ("lesion_exists", _all(LESION, but=r"\b(?:what|which|where|how|describe)\b"), True),
    (
        "volume_difference",
        _all(r"differ|\bhow much\b", r"volume|larger|bigger|smaller", but=rf"{HU}|percent|%|relative"),
        False,
    ),
    ("volume_ratio", _all(r"ratio", r"volume|size"), False),
    ("hu_ratio", _all(r"ratio|\bl/s\b|\bp/s\b", but=r"diameter|length|width|weight|aspect"), False),
    ("compare_hu", _all(rf"{HU}|dense", r"higher|lower|greater|denser|compare|brighter|darker|than"), False),
    ("compare_volume", _all(_BIG, but=r"diameter|\blong|\bwide"), False),
    ("hu", _all(HU, but=rf"differ|how much|{_OTHER}"), False),
    ("diameter", _all(r"diameter|how (?:long|wide)\b|longest extent"), False),
    (
        "volume",
        _all(
            r"volume|how (?:large|big)\b|\bsize of\b|\bml\b|\bcc\b|cm3",
            but=rf"differ|how much|percent|%|{_BIG}|{_OTHER}",
        ),
        False,
    ),
)
"""Kind, its test on the lower-case question, whether it is about lesions."""
