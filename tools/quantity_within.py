"""Thresholds on measurements: is the number within it, for yes or no; how many lesions are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tumorchain_agent.tools.lesion_facts import Lesion, largest
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_limits import Dimension, Limit
from tumorchain_agent.tools.quantity_outcome import Outcome
from tumorchain_agent.tools.quantity_questions import Query

Rule = Callable[[Query, Facts], Outcome]
_OF_LESION: Final[dict[Dimension, Callable[[Lesion], float]]] = {
    "volume": lambda lesion: lesion.volume_ml,
    "length": lambda lesion: lesion.diameter_mm,
    "hu": lambda lesion: lesion.mean_hu,
}


def within(rule: Rule, query: Query, facts: Facts, limit: Limit) -> Outcome:
    """Yes or no to ``limit``, of what ``rule`` measures or of each lesion; or the number of lesions within it."""
    each_lesion = query.kind.startswith("lesion_") and limit.dimension in _OF_LESION
    if each_lesion and query.scope != "total":
        return _of_lesions(query, facts, limit)
    found = rule(query, facts)
    if found.number is None:
        raise NotMeasured(f"{query.kind} is no number")
    number = found.number * 10 if found.unit == "cm" else found.number
    return _said(found, limit, limit.met(number))


def _of_lesions(query: Query, facts: Facts, limit: Limit) -> Outcome:
    value = _OF_LESION[limit.dimension]
    found = facts.asked(query)
    met = [limit.met(value(each)) for each in found]
    where = " and ".join(map(display_name, query.organs)) or "the scan"
    text = f"Measured: {sum(met)} of {len(found)} lesions in {where}: {limit}."
    outcome = Outcome(text, organs=query.organs, lesions=tuple(found), segments=bool(query.parts))
    if query.kind == "lesion_count":
        return replace(outcome, number=float(sum(met)))
    if query.scope == "any":
        return replace(outcome, label=_yes(any(met)))
    if not found:
        raise NotMeasured(f"the masks hold no such lesion ({query.lesion or 'lesion'})")
    if query.scope == "largest":
        chosen = largest(found) if limit.dimension == "hu" else max(found, key=value)
        return replace(outcome, label=_yes(limit.met(value(chosen))))
    return replace(outcome, label=_yes(agreed(met, all_needed=query.scope == "all")))


def agreed(met: Sequence[bool], *, all_needed: bool) -> bool:
    """Of all, or of the one that is meant: NotMeasured where several differ and the question doesn't tell which."""
    if not all_needed and any(met) and not all(met):
        raise NotMeasured("it differs among those asked about, and which is meant isn't told")
    return all(met)


def _said(found: Outcome, limit: Limit, met: bool) -> Outcome:
    text = f"{found.text.removesuffix('.')}: {'' if met else 'not '}{limit}."
    return replace(found, text=text, number=None, unit="", label=_yes(met))


def opposite(found: Outcome) -> Outcome:
    """Of a question that is negated."""
    if found.label not in ("yes", "no"):
        raise NotMeasured("the question is negated, and its answer isn't yes or no")
    return replace(found, label=_yes(found.label == "no"))


def _yes(met: bool) -> str:
    return "yes" if met else "no"
