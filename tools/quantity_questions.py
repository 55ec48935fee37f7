"""Questions whose answer is a measurement: what they ask for, of which organs, in which unit."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from tumorchain_agent.tools.organs import Mention, match_organs
from tumorchain_agent.tools.quantity_limits import Limit, few_or_many, find_limits
from tumorchain_agent.tools.quantity_rules import CONDITIONS, GRADES, HU, NUMBERS, ORGAN_KINDS, RULES, Kind
from tumorchain_agent.tools.quantity_scope import (
    COMPARED,
    ENLARGED,
    LESION,
    SIZES,
    Scope,
    about_cause_or_time,
    asks_more,
    is_yes_no,
    names_other,
    negations,
    one_kind,
    plain,
    says_only,
    scope_of,
    without_organs,
)

__all__ = ["ORGAN_KINDS", "Kind", "Query", "parse_question"]


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
    limit: Limit | None = None
    """Asks whether the number is within it, for yes or no; of lesions also how many are."""
    scope: Scope = "any"
    """Of several lesions or organs: those that a yes or no is about."""
    negated: bool = False
    """Asks for the opposite: yes means that it isn't so."""


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
_TWO: Final = frozenset(
    {"hu_ratio", "volume_ratio", "volume_difference", "compare_volume", "compare_hu", "burden_compare"}
)
_EITHER: Final = frozenset(
    {"burden", "burden_compare", "asymmetry", *CONDITIONS & ORGAN_KINDS, "portal_hypertension"}
)
"""Kinds of questions that may name lesions or not."""
_NEVER_YES_NO: Final = NUMBERS | {"adjacent", "lesion_location"}
_LESION_KINDS: Final[dict[str, Kind]] = {
    "length": "lesion_diameter", "volume": "lesion_volume", "hu": "lesion_hu", "percent": "burden",
}  # fmt: skip
_ORGAN_LIMITS: Final[dict[str, Kind]] = {"volume": "volume", "hu": "hu"}
_COUNTED: Final = (
    r"\b(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten|multiple|several|single|solitary) (?:\w+ ){0,3}"
    rf"(?:{LESION})\b"
)
_UNITS: Final = (
    ("mm3", r"mm3|cubic mill|mm\^3"), ("ml", r"\bmls?\b|millilit"), ("cm3", r"cm3|cm\^3|\bcc\b|cubic cent"),
    ("mm", r"\bmm\b|millimet"), ("cm", r"\bcm\b|centimet"),
)  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """A question as the rules see it."""

    question: str
    text: str
    """In lower case."""
    bare: str
    """``text`` without organs."""
    mentions: list[Mention]
    about: bool
    """About lesions."""
    yes_no: bool


def parse_question(question: str) -> Query | None:
    """What the question wants measured, or ``None`` when that isn't what it asks, or not all that it asks.

    >>> query = parse_question("Is the spleen larger than 500 cm3?")
    >>> query.kind, query.organs, str(query.limit)
    ('volume', ('spleen',), 'more than 500 cm³')
    """
    text, mentions = plain(question), match_organs(question)
    about = bool(re.search(rf"\b(?:{LESION})\b", text))
    asked = _Asked(question, text, without_organs(question, mentions), mentions, about, is_yes_no(text))
    found = _rule(asked)
    limits, rest = find_limits(asked.bare)
    if found is not None and found.kind in CONDITIONS and not _sized_outlier(found, limits):
        return _condition(found, asked)
    few, fewer = few_or_many(asked.bare, LESION)
    if few is not None and not limits:
        limits, rest = [few], fewer
    if limits:
        return _limited(asked, limits, rest)
    return None if found is None else _measurement(found, asked)


def _rule(asked: _Asked) -> Query | None:
    """The first rule that fits, whatever else the question says."""
    for kind, fits, of_lesions in RULES:
        lesions_told = asked.about == of_lesions or kind in _EITHER
        if not fits(asked.text) or not lesions_told or (asked.yes_no and kind in _NEVER_YES_NO):
            continue
        organs = _organs(kind, asked.text, asked.mentions)
        if _plausible(kind, organs):
            return _query(kind, asked, organs)
    return None


def _sized_outlier(query: Query, limits: list[Limit]) -> bool:
    """Much larger than a size, not than the others."""
    return query.kind == "lesion_outlier" and any(limit.dimension != "none" for limit in limits)


def _condition(query: Query, asked: _Asked) -> Query | None:
    negated, _ = negations(asked.text)
    if negated and query.kind not in GRADES:
        return None
    advised = query.kind in ("cyst_resect", "renal_mass")
    return None if about_cause_or_time(asked.text) and not advised else query


def _measurement(query: Query, asked: _Asked) -> Query | None:
    """The query where the rule computes all that the question says."""
    if _beyond(query, asked, asked.text):
        return None
    negated, sure = negations(asked.text)
    turns = query.kind in ("lesion_exists", "enlarged", "small") and sure
    if negated and not turns:
        return None
    if query.kind == "lesion_exists" and not (_exists_alone(query, asked) and says_only(asked.bare)):
        return None
    if query.kind in ("enlarged", "small") and not (asked.yes_no and says_only(asked.bare, SIZES | ENLARGED)):
        return None
    if query.kind in ("compare_volume", "compare_hu") and asked.yes_no and not _compares(asked):
        return None
    return replace(query, negated=bool(negated), scope=_scope(query, asked, bool(negated)))


def _exists_alone(query: Query, asked: _Asked) -> bool:
    """Asks whether there is one kind of lesion, and not in which of several organs a known one lies."""
    which = query.scope == "one" and len(query.organs) > 1 and re.search(r"\bor\b", asked.bare)
    return one_kind(asked.text) and not which


def _scope(query: Query, asked: _Asked, negated: bool) -> Scope:
    """Organs joined by "and" are meant all; of a negated question none may have it."""
    if len(query.organs) < 2:
        return query.scope
    if negated:
        return "any" if query.kind == "lesion_exists" else "one"
    return "all" if re.search(r"\band\b|hepatosplenomegaly", asked.text) else query.scope


def _compares(asked: _Asked) -> bool:
    same = {"same", "similar", "equal"} if re.search(r"\bor\b", asked.text) else set()
    return says_only(asked.bare, SIZES | COMPARED | same)


def _beyond(query: Query, asked: _Asked, text: str) -> bool:
    part_of_organ = query.kind in ORGAN_KINDS and bool(query.parts)
    return part_of_organ or names_other(asked.question, asked.mentions) or asks_more(query.kind, text)


def _limited(asked: _Asked, limits: list[Limit], rest: str) -> Query | None:
    """A threshold asked for yes or no, or how many lesions are beyond one."""
    counting = bool(re.match(r"how many|what is the number of", asked.text))
    kind = _limited_kind(asked, limits[0], counting)
    negated, sure = negations(rest)
    if len(limits) > 1 or kind is None or not sure or not (asked.yes_no or counting):
        return None
    organs = _organs(kind, asked.text, asked.mentions)
    query = _query(kind, asked, organs)
    if not _plausible(kind, organs) or not says_only(rest, SIZES | ENLARGED) or _beyond(query, asked, rest):
        return None
    several = len(organs) > 1 and kind in ("volume", "hu", "diameter")
    if several and not (kind == "volume" and (query.scope == "total" or query.mean)):
        return None
    if counting and (negated or limits[0].dimension == "none" or kind == "burden"):
        return None
    if re.search(r"\b(?:from|to (?!be\b|have\b|measure\b))", rest) and kind.startswith("lesion_"):
        return None
    if query.scope == "total" and kind in ("lesion_diameter", "lesion_hu"):
        return None
    return replace(query, limit=limits[0], unit=None, negated=bool(negated))


def _limited_kind(asked: _Asked, limit: Limit, counting: bool) -> Kind | None:
    """What a threshold is of, by its unit and the question's words."""
    if asked.about:
        if limit.dimension == "none":
            counted = re.search(rf"{_COUNTED}|number of|\bcount\b", asked.bare)
            return "lesion_count" if counted else None
        if counting and limit.dimension != "percent":
            return "lesion_count"
        return _LESION_KINDS[limit.dimension]
    if limit.dimension == "none":
        if re.search(r"ratio|\b[lp]/s\b", asked.text):
            return "volume_ratio" if re.search(r"volume|size", asked.text) else "hu_ratio"
        return "hu" if re.search(HU, asked.text) else "volume" if "volume" in asked.text else None
    if limit.dimension == "length":
        return "diameter" if re.search(r"diameter|longest|dimension", asked.text) else None
    return _ORGAN_LIMITS.get(limit.dimension)


def _plausible(kind: str, organs: tuple[str, ...]) -> bool:
    if kind in _TWO and kind != "burden_compare":
        return len(organs) == 2
    return bool(organs) or kind not in ORGAN_KINDS


def _query(kind: Kind, asked: _Asked, organs: tuple[str, ...]) -> Query:
    text = asked.text
    return Query(
        kind=kind,
        organs=organs,
        parts=tuple(dict.fromkeys(m.substructure for m in asked.mentions if m.substructure)),
        lesion=_lesion(text) if kind not in ORGAN_KINDS else None,
        unit=next((unit for unit, pattern in _UNITS if re.search(pattern, text)), None),
        largest=bool(re.search(r"largest|biggest|dominant|main lesion", text)),
        mean=bool(re.search(r"\b(?:mean|average)\b", text)),
        less=bool(re.search(r"smaller|smallest|lower|lowest|fewer|fewest|darker|less\b", text)),
        scope=scope_of(text),
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
    return (
        "tumor"
        if re.search(r"tumou?r|cancer|neoplasm", text) and not re.search(r"lesion|cyst|burden", text)
        else "lesion"
    )
