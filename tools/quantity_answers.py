"""A question and the scan's measurements → the measured answer: a number with its unit, or a label, and its sources.

No language model has a part in it. ``answer`` raises NotMeasured where something that the answer needs is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tumorchain_agent.tools import clinical
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_lesions import LESION_RULES
from tumorchain_agent.tools.quantity_outcome import Outcome, cubic
from tumorchain_agent.tools.quantity_questions import Query
from tumorchain_agent.tools.quantity_within import agreed, opposite, within

__all__ = ["Measured", "answer"]


@dataclass(frozen=True)
class Measured:
    """An answer that rests on measurements alone."""

    query: Query
    number: float | None
    """In ``unit``; ``None`` where the answer is a label."""
    unit: str
    label: str | None
    """E.g. ``yes``, ``left``, ``mild``, ``segment 4``; ``None`` where the answer is a number."""
    text: str
    """One sentence with the values it rests on."""
    sources: tuple[str, ...]
    """URIs and mask files."""
    limits: tuple[str, ...] = ()


def answer(query: Query, facts: Facts) -> Measured:
    """The measured answer. Raises NotMeasured with the reason when there is none."""
    rule = _RULES.get(query.kind) or LESION_RULES.get(query.kind)
    if rule is None:
        raise NotMeasured(f"nothing measures {query.kind}")
    found = rule(query, facts) if query.limit is None else within(rule, query, facts, query.limit)
    found = opposite(found) if query.negated else found
    organs = tuple(dict.fromkeys(found.organs))
    sources = [facts.uris[organ] for organ in organs if organ in facts.uris]
    sources += [lesion.source for lesion in found.lesions]
    sources += [facts.segments_source] if found.segments else []
    limits = facts.cut(organs) if found.sized else ()
    return Measured(
        query, found.number, found.unit, found.label, found.text, tuple(dict.fromkeys(sources)), limits
    )


def _names(organs: tuple[str, ...]) -> str:
    return " and ".join(display_name(organ) for organ in organs)


def _volume(query: Query, facts: Facts) -> Outcome:
    values = [facts.volume(organ) for organ in query.organs]
    value = sum(values) / (len(values) if query.mean else 1)
    number, unit = cubic(value, query.unit)
    each = "; ".join(f"{display_name(o)} {v:.1f} ml" for o, v in zip(query.organs, values, strict=True))
    what = "mean" if query.mean else "total"
    text = f"Measured volume: {each}" + (f"; {what} {value:.1f} ml." if len(values) > 1 else ".")
    return Outcome(text, number=number, unit=unit, organs=query.organs, sized=True)


def _volume_difference(query: Query, facts: Facts) -> Outcome:
    """The larger minus the smaller."""
    first, second = (facts.volume(organ) for organ in query.organs)
    a, b = map(display_name, query.organs)
    difference = abs(first - second)
    number, unit = cubic(difference, query.unit)
    text = f"Measured volume: {a} {first:.1f} ml; {b} {second:.1f} ml; difference {difference:.1f} ml."
    return Outcome(text, number=number, unit=unit, organs=query.organs, sized=True)


def _hu(query: Query, facts: Facts) -> Outcome:
    values = [facts.hu(organ) for organ in query.organs]
    voxels = [facts.organ(organ).voxels for organ in query.organs]
    mean = sum(v * n for v, n in zip(values, voxels, strict=True)) / sum(voxels)
    each = "; ".join(f"{display_name(o)} {v:.1f} HU" for o, v in zip(query.organs, values, strict=True))
    text = f"Measured mean attenuation: {each}" + (f"; together {mean:.1f} HU." if len(values) > 1 else ".")
    return Outcome(text, number=mean, unit="HU", organs=query.organs)


def _diameter(query: Query, facts: Facts) -> Outcome:
    organ = query.organs[0]
    mm = facts.diameter(organ)
    number, unit = (mm / 10, "cm") if query.unit == "cm" else (mm, "mm")
    text = f"Measured largest diameter: {display_name(organ)} {mm:.1f} mm."
    return Outcome(text, number=number, unit=unit, organs=(organ,), sized=True)


def _ratio(of: Callable[[Facts, str], float], what: str, unit: str) -> Callable[[Query, Facts], Outcome]:
    def rule(query: Query, facts: Facts) -> Outcome:
        first, second = (of(facts, organ) for organ in query.organs)
        if second == 0:
            raise NotMeasured(f"the {what} of {display_name(query.organs[1])} is 0: there is no ratio")
        a, b = map(display_name, query.organs)
        text = (
            f"Measured {what}: {a} {first:.1f} {unit}, {b} {second:.1f} {unit}; ratio {first / second:.3f}."
        )
        return Outcome(text, number=first / second, organs=query.organs, sized=unit == "ml")

    return rule


def _compare(
    of: Callable[[Facts, str], float], unit: str, more: str, less: str
) -> Callable[[Query, Facts], Outcome]:
    """Label: the organ that has more (or less, as asked), or ``equal``; volumes within 5 % are told to be similar."""

    def rule(query: Query, facts: Facts) -> Outcome:
        a, b = query.organs
        x, y = of(facts, a), of(facts, b)
        high, low = (a, b) if x >= y else (b, a)
        label = "equal" if x == y else low if query.less else high
        alike = unit == "ml" and abs(x - y) <= clinical.ALIKE_SHARE * max(x, y)
        text = (
            f"Measured: {display_name(a)} {x:.1f} {unit}, {display_name(b)} {y:.1f} {unit}; "
            f"{display_name(high)} is {more} than {display_name(low)}"
        )
        text = f"{text.rpartition('; ')[0]}; they are equal" if x == y else text
        close = f" (by {100 * abs(x - y) / max(x, y):.1f} %: of similar size)" if alike and x != y else ""
        return Outcome(f"{text}{close}.", label=label, organs=(a, b), sized=unit == "ml")

    return rule


def _enlarged(query: Query, facts: Facts) -> Outcome:
    return _against(query, facts, clinical.UPPER_CM3, "above", "enlarged")


def _small(query: Query, facts: Facts) -> Outcome:
    return _against(query, facts, clinical.LOWER_CM3, "below", "small")


def _against(
    query: Query, facts: Facts, limits: dict[str, tuple[float, str]], side: str, word: str
) -> Outcome:
    parts, met = [], []
    for organ in query.organs:
        if organ not in limits:
            raise NotMeasured(f"no threshold is known for {display_name(organ)}")
        limit, source = limits[organ]
        volume = facts.volume(organ)
        beyond = volume > limit if side == "above" else volume < limit
        met.append(beyond)
        parts.append(
            f"{display_name(organ)} {volume:.1f} cm³, {'' if beyond else 'not '}{side} {limit:g} cm³ ({source})"
        )
    found = any(met) if query.scope == "any" else agreed(met, all_needed=query.scope == "all")
    text = f"Measured: {'; '.join(parts)}: {'' if found else 'not '}{word} by volume."
    return Outcome(text, label="yes" if found else "no", organs=query.organs, sized=True)


def _spleen_grade(query: Query, facts: Facts) -> Outcome:
    volume = facts.volume("spleen")
    grade = clinical.spleen_grade(volume)
    limits = "normal to 314.5, mild to 500, moderate to 800 cm³; Bezerra 2005"
    text = f"Measured: spleen {volume:.1f} cm³, grade {grade} ({limits})."
    return Outcome(text, label=grade, organs=("spleen",), sized=True)


def _to_spleen(organ: str, limit: float, what: str, source: str) -> Callable[[Query, Facts], Outcome]:
    def rule(query: Query, facts: Facts) -> Outcome:
        own, spleen = facts.hu(organ), facts.hu("spleen")
        if spleen <= 0:
            raise NotMeasured(f"the spleen's mean is {spleen:.1f} HU: a ratio to it says nothing")
        ratio = own / spleen
        text = (
            f"Measured: {display_name(organ)} {own:.1f} HU, spleen {spleen:.1f} HU, ratio {ratio:.2f}, "
            f"{'below' if ratio < limit else 'not below'} {limit:g}, the limit of {what} ({source}; "
            "meant for scans without contrast)."
        )
        return Outcome(text, label="yes" if ratio < limit else "no", organs=(organ, "spleen"))

    return rule


def _steatosis_grade(query: Query, facts: Facts) -> Outcome:
    liver, spleen = facts.hu("liver"), facts.hu("spleen")
    grade = clinical.steatosis_grade(liver, spleen)
    text = (
        f"Measured: liver {liver:.1f} HU, spleen {spleen:.1f} HU: steatosis grade {grade} "
        "(Kodama 2007; meant for scans without contrast)."
    )
    return Outcome(text, label=grade, organs=("liver", "spleen"))


def _portal_hypertension(query: Query, facts: Facts) -> Outcome:
    volume = facts.volume("spleen")
    large = volume > clinical.SPLEEN_CM3
    text = (
        f"Measured: spleen {volume:.1f} cm³, {'above' if large else 'not above'} {clinical.SPLEEN_CM3:g} cm³ "
        "(Bezerra 2005); splenomegaly is one sign of portal hypertension, collaterals and ascites were not assessed."
    )
    return Outcome(text, label="yes" if large else "no", organs=("spleen",), sized=True)


_RULES: Final[dict[str, Callable[[Query, Facts], Outcome]]] = {
    "volume": _volume,
    "hu": _hu,
    "diameter": _diameter,
    "volume_difference": _volume_difference,
    "volume_ratio": _ratio(Facts.volume, "volume", "ml"),
    "hu_ratio": _ratio(Facts.hu, "mean attenuation", "HU"),
    "compare_volume": _compare(Facts.volume, "ml", "larger", "smaller"),
    "compare_hu": _compare(Facts.hu, "HU", "denser", "less dense"),
    "enlarged": _enlarged,
    "small": _small,
    "spleen_grade": _spleen_grade,
    "fatty_liver": _to_spleen("liver", clinical.LIVER_TO_SPLEEN, "fatty liver", "PMC3377794"),
    "pancreas_steatosis": _to_spleen(
        "pancreas", clinical.PANCREAS_TO_SPLEEN, "pancreatic steatosis", "PMC8833002"
    ),
    "steatosis_grade": _steatosis_grade,
    "portal_hypertension": _portal_hypertension,
}
