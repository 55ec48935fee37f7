"""The rules of measuring that are about lesions, of which masks must be given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from tumorchain_agent.tools import clinical
from tumorchain_agent.tools.lesion_facts import Lesion, largest
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.tools.quantity_facts import Facts, NotMeasured
from tumorchain_agent.tools.quantity_outcome import Outcome, cubic
from tumorchain_agent.tools.quantity_questions import Query

NEIGHBOURS: Final = (
    "liver", "stomach", "spleen", "pancreas", "kidney_left", "kidney_right", "duodenum", "colorectum", "gallbladder",
    "small_bowel", "adrenal_gland_left", "adrenal_gland_right", "aorta", "inferior_vena_cava",
    "portal_vein_and_splenic_vein", "esophagus",
)  # fmt: skip
"""Organs that a lesion may be told to be adjacent to."""
Rule = Callable[[Query, Facts], Outcome]


def _some(query: Query, facts: Facts) -> list[Lesion]:
    """The lesions asked about, at least one."""
    found = facts.asked(query)
    if not found:
        raise NotMeasured(f"the masks hold no such lesion ({query.lesion or 'lesion'})")
    return found


def _seat(lesion: Lesion) -> str:
    return display_name(lesion.organ) if lesion.organ else "no organ"


def _exists(query: Query, facts: Facts) -> Outcome:
    """In any of several organs; in each of them where the question says both, all or and."""
    found = facts.asked(query)
    where = " and ".join(map(display_name, query.organs)) or "the scan"
    what = f"{query.lesion or 'lesion'}{'s' * (len(found) != 1)}"
    text = f"Measured: the masks show {len(found) or 'no'} {what} in {where}."
    seats = {each.organ for each in found}
    met = set(query.organs) <= seats if query.scope == "all" else bool(found)
    return Outcome(text, label="yes" if found and met else "no", organs=query.organs, lesions=tuple(found))


def _count(query: Query, facts: Facts) -> Outcome:
    found = facts.asked(query)
    where = " and ".join(map(display_name, query.organs)) or "the scan"
    place = f"{', '.join(query.parts)} of {where}" if query.parts else where
    text = f"Measured: {len(found)} {query.lesion or 'lesion'}{'s' * (len(found) != 1)} in {place}."
    return Outcome(
        text, number=float(len(found)), organs=query.organs, lesions=tuple(found), segments=bool(query.parts)
    )


def _volume(query: Query, facts: Facts) -> Outcome:
    found = facts.asked(query)
    chosen = [largest(found)] if query.largest and found else found
    ml = sum(each.volume_ml for each in chosen) / (len(chosen) if query.mean and chosen else 1)
    if not found and (query.largest or query.mean):
        raise NotMeasured("the masks hold no lesion to measure")
    number, unit = cubic(ml, query.unit)
    which = (
        "largest lesion"
        if query.largest
        else f"{len(chosen)} lesions, {'mean' if query.mean else 'together'}"
    )
    return Outcome(f"Measured: {which} {ml:.2f} cm³.", number=number, unit=unit, lesions=tuple(chosen))


def _hu(query: Query, facts: Facts) -> Outcome:
    found = _some(query, facts)
    chosen = [largest(found)] if query.largest else found
    voxels = sum(each.measurement.voxels for each in chosen)
    mean = sum(each.mean_hu * each.measurement.voxels for each in chosen) / voxels
    return Outcome(f"Measured: lesion mean {mean:.1f} HU.", number=mean, unit="HU", lesions=tuple(chosen))


def _diameter(query: Query, facts: Facts) -> Outcome:
    lesion = max(_some(query, facts), key=lambda each: each.diameter_mm)
    number, unit = (lesion.diameter_mm, "mm") if query.unit == "mm" else (lesion.diameter_mm / 10, "cm")
    text = f"Measured: largest lesion diameter {lesion.diameter_mm:.1f} mm ({_seat(lesion)})."
    return Outcome(text, number=number, unit=unit, lesions=(lesion,))


def _slice(query: Query, facts: Facts) -> Outcome:
    """As the file stores its slices: a scan stored head first counts from the head."""
    lesion = largest(_some(query, facts))
    if facts.ct is None:
        raise NotMeasured("the scan is not at hand")
    last = facts.ct.shape[2] - 1
    index = last - lesion.slice_index if facts.ct.info.source_axcodes[2:] == "I" else lesion.slice_index
    text = f"Measured: the largest lesion's largest area is on axial slice {index} (from 0, as stored)."
    return Outcome(text, number=float(index), lesions=(lesion,))


def _location(query: Query, facts: Facts) -> Outcome:
    lesion = largest(_some(query, facts))
    if lesion.organ == "liver":
        segment = facts.segment_of(lesion)
        text = f"Measured: the largest lesion lies in liver segment {segment}."
        return Outcome(text, label=f"segment {segment}", lesions=(lesion,), segments=True)
    if lesion.organ in ("kidney_left", "kidney_right") or not query.organs:
        side = lesion.organ.rpartition("_")[2] if lesion.organ and lesion.organ.startswith("kidney") else None
        text = f"Measured: the largest lesion lies in {_seat(lesion)}."
        return Outcome(text, label=side or lesion.organ, lesions=(lesion,))
    raise NotMeasured(f"parts of {_seat(lesion)} are not segmented")


def _attenuation(query: Query, facts: Facts) -> Outcome:
    lesion = largest(_some(query, facts))
    organ = _organ_of(lesion)
    own, around = lesion.mean_hu, facts.hu(organ)
    label = "iso" if abs(own - around) <= clinical.ALIKE_HU else "hypo" if own < around else "hyper"
    text = f"Measured: lesion {own:.1f} HU, {display_name(organ)} {around:.1f} HU: {label}attenuating."
    return Outcome(text, label=label, organs=(organ,), lesions=(lesion,))


def _organ_of(lesion: Lesion) -> str:
    if lesion.organ is None:
        raise NotMeasured("the lesion lies in no organ of the label map")
    return lesion.organ


def _hu_difference(query: Query, facts: Facts) -> Outcome:
    """Lesion minus organ."""
    lesion = largest(_some(query, facts))
    organ = _organ_of(lesion)
    difference = lesion.mean_hu - facts.hu(organ)
    text = (
        f"Measured: lesion {lesion.mean_hu:.1f} HU, {display_name(organ)} {facts.hu(organ):.1f} HU: "
        f"difference {difference:.1f} HU."
    )
    return Outcome(text, number=difference, unit="HU", organs=(organ,), lesions=(lesion,))


def _share(query: Query, facts: Facts, organ: str) -> tuple[float, list[Lesion]]:
    """Percent of the organ's volume, and the lesions."""
    found = [each for each in facts.asked(query) if each.organ == organ]
    return 100 * sum(each.volume_ml for each in found) / facts.volume(organ), found


def _burden(query: Query, facts: Facts) -> Outcome:
    found = facts.asked(query)
    if not query.organs:
        raise NotMeasured("the question names no organ whose share is meant")
    whole = sum(facts.volume(organ) for organ in query.organs)
    ml = sum(each.volume_ml for each in found)
    names = " and ".join(map(display_name, query.organs))
    text = f"Measured: lesions {ml:.2f} cm³ of {whole:.1f} cm³ ({names}): {100 * ml / whole:.2f} %."
    return Outcome(
        text, number=100 * ml / whole, unit="%", organs=query.organs, lesions=tuple(found), sized=True
    )


def _burden_compare(query: Query, facts: Facts) -> Outcome:
    organs = query.organs or tuple(sorted(facts.lesion_organs & set(facts.measurements)))
    if len(organs) < 2:
        raise NotMeasured("there are no two organs whose burden can be compared")
    shares = {organ: _share(query, facts, organ) for organ in organs}
    order = sorted(organs, key=lambda organ: shares[organ][0], reverse=not query.less)
    equal = shares[order[0]][0] == shares[order[1]][0]
    each = "; ".join(f"{display_name(organ)} {shares[organ][0]:.2f} %" for organ in organs)
    lesions = tuple(lesion for organ in organs for lesion in shares[organ][1])
    label = "equal" if equal else order[0]
    return Outcome(
        f"Measured lesion burden: {each}.", label=label, organs=organs, lesions=lesions, sized=True
    )


def _asymmetry(query: Query, facts: Facts) -> Outcome:
    found = facts.asked(query)
    sums = {
        side: sum(each.volume_ml for each in found if each.organ == f"kidney_{side}")
        for side in ("left", "right")
    }
    left, right = sums["left"], sums["right"]
    alike = left == right
    label = "equal" if alike else "left" if (left > right) != query.less else "right"
    text = f"Measured lesion volume: left kidney {left:.2f} cm³, right kidney {right:.2f} cm³."
    return Outcome(text, label=label, organs=query.organs, lesions=tuple(found))


def _outlier(query: Query, facts: Facts) -> Outcome:
    sizes = sorted((each.volume_ml for each in facts.asked(query)), reverse=True)
    enough = len(sizes) >= clinical.OUTLIER_LEAST
    met = enough and sizes[0] >= clinical.OUTLIER_TIMES * sizes[1]
    told = f"; the largest {sizes[0]:.2f} cm³, the next {sizes[1]:.2f} cm³" if len(sizes) > 1 else ""
    text = f"Measured: {len(sizes)} lesions{told} (outlier: 3 times the next, of at least 3)."
    return Outcome(text, label="yes" if met else "no", lesions=tuple(facts.asked(query)))


def _by_segment(query: Query, facts: Facts) -> tuple[list[Lesion], Counter[int]]:
    found = [each for each in facts.asked(_without_parts(query)) if each.organ == "liver"]
    if not found:
        raise NotMeasured("the masks hold no lesion of the liver")
    return found, Counter(facts.segment_of(each) for each in found)


def _without_parts(query: Query) -> Query:
    return Query(kind=query.kind, organs=query.organs, lesion=query.lesion)


def _clustering(query: Query, facts: Facts) -> Outcome:
    found, counts = _by_segment(query, facts)
    label = clinical.spread([count / len(found) for count in counts.values()])
    each = "; ".join(f"segment {key}: {counts[key]}" for key in sorted(counts))
    return Outcome(f"Measured lesions: {each}: {label}.", label=label, lesions=tuple(found), segments=True)


def _segment_compare(query: Query, facts: Facts) -> Outcome:
    found, counts = _by_segment(query, facts)
    named = [int(part.split()[1]) for part in query.parts if part[8:9].isdigit()]
    among = {key: counts.get(key, 0) for key in (named or range(1, 9))}
    best = (min if query.less else max)(among.values())
    chosen = [key for key in among if among[key] == best]
    label = f"segment {chosen[0]}" if len(chosen) == 1 else "equal"
    each = "; ".join(f"segment {key}: {count}" for key, count in among.items())
    return Outcome(f"Measured lesions: {each}.", label=label, lesions=tuple(found), segments=True)


def _adjacent(query: Query, facts: Facts) -> Outcome:
    lesion = largest(_some(query, facts))
    organ = facts.neighbour(lesion, NEIGHBOURS)
    text = f"Measured: the organ nearest to the largest lesion of {_seat(lesion)} is {display_name(organ)}."
    return Outcome(text, label=organ, organs=(organ,), lesions=(lesion,))


def _by_limit(limit: float, above: str, below: str, source: str) -> Rule:
    def rule(query: Query, facts: Facts) -> Outcome:
        lesion = largest(_some(query, facts))
        label = above if lesion.mean_hu > limit else below
        text = f"Measured: lesion {lesion.mean_hu:.1f} HU, limit {limit:g} HU ({source})."
        return Outcome(text, label=label, lesions=(lesion,))

    return rule


def _pdac_pnet(query: Query, facts: Facts) -> Outcome:
    found = _attenuation(query, facts)
    label = "pdac" if found.label == "hypo" else "pnet"
    text = f"{found.text} PDAC is hypoattenuating as a rule, PNET iso- or hyperattenuating (NCCN 2024)."
    return Outcome(text, label=label, organs=found.organs, lesions=found.lesions)


def _cyst_resect(query: Query, facts: Facts) -> Outcome:
    lesion = largest(_some(query, facts))
    met = lesion.volume_ml > clinical.RESECT_CM3 or lesion.diameter_mm > clinical.RESECT_MM
    text = f"Measured: cyst {lesion.volume_ml:.2f} cm³, {lesion.diameter_mm:.1f} mm; limits 3.0 cm³ and 3 cm (ACR)."
    return Outcome(text, label="yes" if met else "no", lesions=(lesion,))


def _renal_mass(query: Query, facts: Facts) -> Outcome:
    lesion = largest(_some(query, facts))
    label = clinical.renal_mass(lesion.mean_hu)
    text = f"Measured: renal mass {lesion.mean_hu:.1f} HU: {label} (Bosniak, simplified; Silverman 2019)."
    return Outcome(text, label=label, lesions=(lesion,))


def _pancreas_t(query: Query, facts: Facts) -> Outcome:
    lesion = largest(_some(query, facts))
    label = clinical.pancreas_t(lesion.diameter_mm)
    text = (
        f"Measured: {lesion.diameter_mm:.1f} mm, {label} by size (AJCC 8); arteries (T4) were not assessed."
    )
    return Outcome(text, label=label, lesions=(lesion,))


LESION_RULES: Final[dict[str, Rule]] = {
    "lesion_exists": _exists, "lesion_count": _count, "lesion_volume": _volume, "lesion_hu": _hu,
    "lesion_diameter": _diameter, "lesion_slice": _slice, "lesion_location": _location,
    "lesion_attenuation": _attenuation, "hu_difference": _hu_difference, "burden": _burden,
    "burden_compare": _burden_compare, "asymmetry": _asymmetry, "lesion_outlier": _outlier,
    "clustering": _clustering, "segment_compare": _segment_compare, "adjacent": _adjacent,
    "pdac_pnet": _pdac_pnet, "cyst_resect": _cyst_resect, "renal_mass": _renal_mass, "pancreas_t": _pancreas_t,
    "pseudocyst": _by_limit(clinical.PSEUDOCYST_HU, "yes", "no", "PMID 21737901"),
    "lesion_type": _by_limit(clinical.SOLID_KIDNEY_HU, "tumor", "cyst", "AJR 2017"),
}  # fmt: skip
"""Kind → its rule."""
