"""A measured answer in the form that a question wants: the letter of a choice, a number, yes or no, a short phrase."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tumorchain_agent.tools.organs import display_name, match_organs
from tumorchain_agent.tools.quantity_answers import Measured
from tumorchain_agent.tools.quantity_facts import NotMeasured

_NUMBER: Final = r"-?\d+(?:\.\d+)?"
_RANGE: Final = re.compile(rf"({_NUMBER})\s*(?:-|–|to|and)\s*({_NUMBER})")
_BOUND: Final = re.compile(
    rf"(<=|>=|<|>|≤|≥|less than|under|below|up to|more than|over|above|at least)\s*({_NUMBER})"
)
_BELOW: Final = frozenset({"<", "<=", "≤", "less than", "under", "below", "up to"})
_TO_ML: Final = {"mm3": 0.001, "cm3": 1.0, "cc": 1.0, "ml": 1.0, "l": 1000.0}
_TO_MM: Final = {"mm": 1.0, "cm": 10.0}
_UNIT: Final = re.compile(r"(?<=[\d\s])(mm3|cm3|cc|ml|l|mm|cm)\b")

_LABELS: Final[dict[str, str]] = {
    "yes": r"^\W*yes\b|^\W*(?:true|present|enlarged|abnormal)\b",
    "no": r"^\W*no\b|^\W*(?:false|absent|not\b|normal)\b|\bnot enlarged",
    "normal": r"\bnormal\b|no splenomegaly|\bnone\b|not enlarged|\bg(?:rade )?0\b|\bno (?:hepatic )?steatosis",
    "mild": r"\bmild|\bg(?:rade )?1\b", "moderate": r"\bmoderate|\bg(?:rade )?2\b",
    "severe": r"\bsevere|\bmassive|\bg(?:rade )?3\b",
    "hypo": r"hypo|lower|darker", "hyper": r"hyper|higher|brighter", "iso": r"\biso|similar|same|equal",
    "left": r"\bleft\b", "right": r"\bright\b",
    "equal": r"equal|same|similar|symmetric|\bboth\b|neither|no (?:significant )?(?:difference|asymmetry)|balanced",
    "tumor": r"tumou?r|solid|carcinoma|rcc|malignan", "cyst": r"cyst",
    "pdac": r"pdac|adenocarcinoma", "pnet": r"pnet|neuroendocrine",
    "simple cyst": r"simple|bosniak i\b", "hyperattenuating cyst": r"hyperattenuat|hyperdens|high[- ]dens",
    "indeterminate": r"indeterminate|solid|further",
    "highly clustered": r"highly|strongly", "somewhat clustered": r"somewhat|moderately|partial",
    "widely distributed": r"wide|diffuse|scattered|spread|evenly",
    "T1": r"\bt1\b", "T2": r"\bt2\b", "T3": r"\bt3\b", "T4": r"\bt4\b",
}  # fmt: skip
"""Label → how a choice says it, in lower case."""
_COMPARISONS: Final = frozenset({"compare_volume", "compare_hu", "burden_compare", "asymmetry"})
"""Kinds whose label is the one of two that a yes/no question may say has more."""
_NEGATED: Final = re.compile(r"\bno\b|\bnot\b|\bwithout\b|normal|negative|absent")

_PHRASES: Final[dict[tuple[str, str], str]] = {
    ("spleen_grade", "normal"): "Normal (no splenomegaly)",
    ("spleen_grade", "mild"): "Mild splenomegaly",
    ("spleen_grade", "moderate"): "Moderate splenomegaly",
    ("spleen_grade", "severe"): "Severe splenomegaly",
    ("fatty_liver", "yes"): "Fatty liver",
    ("fatty_liver", "no"): "Normal",
    ("lesion_attenuation", "hypo"): "Hypoattenuating",
    ("lesion_attenuation", "hyper"): "Hyperattenuating",
    ("lesion_attenuation", "iso"): "Isoattenuating",
    ("compare_volume", "kidney_left"): "Left kidney",
    ("compare_volume", "kidney_right"): "Right kidney",
    ("asymmetry", "left"): "Left kidney",
    ("asymmetry", "right"): "Right kidney",
    ("pdac_pnet", "pdac"): "PDAC",
    ("pdac_pnet", "pnet"): "PNET",
}
"""How a free answer is worded where the label itself isn't how people say it."""


def letter(measured: Measured, options: Mapping[str, str]) -> str | None:
    """The letter of the one choice that says what was measured, ``None`` when none or several do."""
    if measured.number is not None:
        return _nearest(measured.number, measured.unit, options)
    fitting = [key for key, text in options.items() if _says(measured, text.lower())]
    return fitting[0] if len(fitting) == 1 else None


def free_text(measured: Measured, *, yes_no: bool = False) -> str:
    """The number alone, yes or no (where that is what is wanted), or the short phrase.

    Raises NotMeasured where yes or no is wanted and what was measured says neither.
    """
    label = measured.label or ""
    if yes_no:
        if label in ("yes", "no"):
            return label
        if measured.query.kind not in _COMPARISONS:
            raise NotMeasured(f"what was measured says neither yes nor no ({measured.text})")
        return "yes" if _agrees(measured) else "no"
    if measured.number is not None:
        return plain_number(measured.number)
    known = _PHRASES.get((measured.query.kind, label))
    if known is not None or label in ("yes", "no"):
        return known or label
    return display_name(label).capitalize() if _is_organ(label) else label[:1].upper() + label[1:]


def plain_number(value: float) -> str:
    """Two decimals, four below 1, none for a whole number: ``1125.68``, ``0.0415``, ``3``."""
    if value == int(value):
        return str(int(value))
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def _agrees(measured: Measured) -> bool:
    """A comparison that is asked for yes or no: is what the question says first the one that has more (or less)?"""
    if measured.query.kind == "asymmetry":
        return measured.label != "equal"
    first = measured.query.organs[0] if measured.query.organs else ""
    return measured.label in (first, first.rpartition("_")[2])


def _is_organ(label: str) -> bool:
    return any(mention.organ == label for mention in match_organs(label.replace("_", " ")))


def _says(measured: Measured, text: str) -> bool:
    label = measured.label or ""
    opening = re.match(r"\W*(yes|no)\b", text)
    if label in ("yes", "no"):
        return bool(re.search(_LABELS[label], text)) or _condition(measured, label, text)
    if opening:
        return measured.query.kind in _COMPARISONS and (opening[1] == "yes") == _agrees(measured)
    if label.startswith("segment "):
        return bool(re.search(rf"\b(?:s|seg\.?|segment)?\s*{_numerals(label.split()[1])}\b", text))
    side = label.rpartition("_")[2]
    if side in ("left", "right"):
        other = "right" if side == "left" else "left"
        return bool(re.search(_LABELS[side], text)) and not re.search(_LABELS[other], text)
    if label == "cyst" and re.search(_LABELS["tumor"], text):
        return False
    if label in _LABELS:
        return bool(re.search(_LABELS[label], text))
    return [m.organ for m in match_organs(text)][:1] == [label] and not re.search(_LABELS["equal"], text)


def _condition(measured: Measured, label: str, text: str) -> bool:
    """Choices that name the condition: ``Fatty liver``, ``No fatty liver``, ``Mucinous cyst``."""
    words = {
        "fatty_liver": r"fatty|steatosis", "pancreas_steatosis": r"fatty|steatosis", "pseudocyst": r"pseudocyst",
        "enlarged": r"enlarged|megaly", "cyst_resect": r"resect|surg", "portal_hypertension": r"hypertension",
        "lesion_outlier": r"outlier",
    }.get(measured.query.kind)  # fmt: skip
    if words is None:
        return False
    if measured.query.kind == "pseudocyst" and label == "no":
        return "mucin" in text
    return bool(re.search(words, text)) and bool(_NEGATED.search(text)) == (label == "no")


def _numerals(number: str) -> str:
    roman = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")[int(number) - 1]
    return f"(?:{number}|{roman})"


def _nearest(number: float, unit: str, options: Mapping[str, str]) -> str | None:
    """The choice whose range holds the number, else the one whose number is nearest to it; ``None`` on a tie."""
    away = {
        key: found for key, text in options.items() if (found := _distance(number, unit, text)) is not None
    }
    if not away:
        return None
    best = min(away.values())
    chosen = [key for key, distance in away.items() if distance == best]
    return chosen[0] if len(chosen) == 1 else None


def _distance(number: float, unit: str, text: str) -> float | None:
    plain = text.lower().translate(str.maketrans("³²−", "32-")).replace("cm^3", "cm3").replace(",", "")
    value = _in_unit(number, unit, plain)
    plain = re.sub(r"(?:mm|cm)3", "", plain)
    if bounded := _BOUND.search(plain):
        limit = float(bounded[2])
        below = bounded[1] in _BELOW
        return 0.0 if (value <= limit) == below else abs(value - limit)
    if spanned := _RANGE.search(plain):
        low, high = float(spanned[1]), float(spanned[2])
        return 0.0 if low <= value <= high else min(abs(value - low), abs(value - high))
    found = re.search(_NUMBER, plain)
    return abs(value - float(found[0])) if found else None


def _in_unit(number: float, unit: str, text: str) -> float:
    """The number in the unit that a choice names, where it names another."""
    found = _UNIT.search(text)
    for table in (_TO_ML, _TO_MM):
        if found and found[1] in table and unit in table:
            return number * table[unit] / table[found[1]]
    return number
