"""Questions that a measurement answers: value and evidence go into the conclusion, before the LLM's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from tumorchain_agent.graph.claims import sentences
from tumorchain_agent.records import Claim, Notice, OrganEvidence
from tumorchain_agent.tools.organs import display_name, mentioned_organs
from tumorchain_agent.tools.quantity_answers import answer
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_questions import ORGAN_KINDS, Query, parse_question

_TOLERANCE: Final = 0.1
"""Share by which a number of the LLM's may differ from the measured one before it is pointed out."""
_STATED: Final = {
    "ml": r"(-?\d+(?:,\d{3})*(?:\.\d+)?)\s*(?:ml|cm3|cm³|cc|cubic cent\w+)\b",
    "HU": r"(-?\d+(?:\.\d+)?)\s*(?:HU\b|Hounsfield)",
}


def asked_measurement(question: str) -> Query | None:
    """What the question wants measured of organs; ``None`` where a label map of organs can't answer it."""
    query = parse_question(question)
    return query if query is not None and query.kind in ORGAN_KINDS else None


def organs_to_measure(question: str) -> str:
    """The organs that the answer needs, in words for Λ; some are not named, e.g. the spleen for a fatty liver."""
    query = asked_measurement(question)
    return "" if query is None else ", ".join(map(display_name, query.organs))


def measured_claim(question: str, evidence: Mapping[str, OrganEvidence]) -> tuple[Claim | None, list[Notice]]:
    """The measured answer as a sentence with its evidence, and what the reader must know of it.

    What can't be measured is said to be so, in the same place: there is no number then.
    """
    query = asked_measurement(question)
    if query is None:
        return None, []
    facts = Facts(
        {organ: found.measurement for organ, found in evidence.items() if found.measurement is not None},
        {
            organ: uri
            for organ, found in evidence.items()
            for uri in found.uris
            if uri.startswith("measurement:")
        },
    )
    try:
        measured = answer(query, facts)
    except NotMeasured as reason:
        notice = Notice(code="not_measured", message=f"The question asks for a measurement, but {reason}.")
        return Claim(sentence=f"Not measured: {reason}.", organs=query.organs), [notice]
    limits = "".join(f" {limit[:1].upper()}{limit[1:]}." for limit in measured.limits)
    claim = Claim(sentence=measured.text + limits, organs=query.organs, evidence_uris=measured.sources)
    return claim, []


def contradictions(question: str, text: str, evidence: Mapping[str, OrganEvidence]) -> list[Notice]:
    """A notice for each sentence of the LLM's that gives another volume or HU of one organ than was measured."""
    if asked_measurement(question) is None:
        return []
    found = []
    for sentence in sentences(text):
        organs = mentioned_organs(sentence)
        known = evidence.get(organs[0]) if len(organs) == 1 else None
        if known is None or known.measurement is None:
            continue
        values = {"ml": known.measurement.volume_ml, "HU": known.measurement.mean_hu}
        for unit, pattern in _STATED.items():
            value = values[unit]
            stated = [float(each.replace(",", "")) for each in re.findall(pattern, sentence, re.IGNORECASE)]
            if value is not None and len(stated) == 1 and _differ(stated[0], value):
                message = (
                    f"The LLM's text gives {stated[0]:g} {unit} for {display_name(organs[0])}; "
                    f"measured are {value:.1f} {unit}. The measured value counts."
                )
                found.append(Notice(code="contradicts_measurement", message=message, organ=organs[0]))
    return found


def _differ(stated: float, measured: float) -> bool:
    return abs(stated - measured) > _TOLERANCE * max(abs(measured), 1.0)
