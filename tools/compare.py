"""Two scans of one patient side by side: what changed in each organ, and what makes a change doubtful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tumorchain_agent.records import Measurement, Notice, Record, ScanInfo, SegmentationInfo

SMALL_CHANGE_PERCENT = 10.0
"""Segmentations of the same organ in two scans differ by about this much without any change in the patient."""


class OrganChange(Record):
    """An organ in the earlier and the later scan; a change is later minus earlier."""

    organ: str
    earlier: Measurement
    later: Measurement
    volume_change_ml: float | None = None
    volume_change_percent: float | None = None
    mean_hu_change: float | None = None
    largest_diameter_change_mm: float | None = None
    beyond_method_error: bool | None = None
    """Whether the volume changed by more than two segmentations of one organ differ; ``None``: can't be told, as
    where the two were not segmented alike."""


def compare_organs(
    earlier: Mapping[str, Measurement],
    later: Mapping[str, Measurement],
    organs: Sequence[str],
    *,
    alike: bool = True,
) -> tuple[OrganChange, ...]:
    """Change of each organ; numbers only where it is in both scans, and not cut by the edge of either.

    ``alike``: both were segmented in the same way; else no change is told to be beyond the method's error.
    """
    return tuple(_change(organ, earlier[organ], later[organ], alike) for organ in organs)


def segmented_alike(earlier: SegmentationInfo, later: SegmentationInfo) -> bool:
    """By the same task and weights; of two label maps that a user gave, that is the user's to know."""
    made = [(each.source, each.task, each.weights_id) for each in (earlier, later)]
    return made[0] == made[1] or earlier.source == later.source == "given"


def otherwise_segmented(earlier: SegmentationInfo, later: SegmentationInfo) -> tuple[Notice, ...]:
    """What to know of two scans that were not segmented alike; none of two that were."""
    if segmented_alike(earlier, later):
        return ()
    ways = [_way(each) for each in (earlier, later)]
    ways = (
        ways
        if ways[0] != ways[1]
        else [f"{way}, weights {each.weights_id}" for way, each in zip(ways, (earlier, later), strict=True)]
    )
    text = (
        f"The scans were segmented in different ways ({ways[0]}; {ways[1]}): changes of volume, HU and "
        "diameter may come from that alone. Segment both alike, and pass earlier_segmentation_id and "
        "later_segmentation_id."
    )
    return (_notice("segmentation_differs", text),)


def doubts(earlier: ScanInfo, later: ScanInfo, changes: Sequence[OrganChange]) -> tuple[Notice, ...]:
    """Why differences may come from the scans and not from the patient."""
    found = [
        _notice(
            "not_registered",
            "The scans are compared organ by organ; they are not registered, and nothing checks that they are "
            "of one patient.",
        )
    ]
    if earlier.gate is not None and later.gate is not None:
        phases = (earlier.gate.contrast_phase.value, later.gate.contrast_phase.value)
        if phases[0] != phases[1]:
            found.append(
                _notice(
                    "contrast_differs",
                    f"Contrast phase seems to differ ({phases[0]}; {phases[1]}): changes of HU say nothing.",
                )
            )
    ratio = max(earlier.spacing_mm) / max(later.spacing_mm)
    if not 0.67 < ratio < 1.5:
        found.append(
            _notice(
                "resolution_differs",
                f"Slices of {max(earlier.spacing_mm):.3g} and {max(later.spacing_mm):.3g} mm: small changes of "
                "volume and diameter say nothing.",
            )
        )
    for change in changes:
        for when, measured in (("earlier", change.earlier), ("later", change.later)):
            if not measured.present:
                text = f"{change.organ} was not found in the {when} scan: not assessed, which is not normal."
                found.append(_notice("organ_absent", text, change.organ))
            elif measured.cut_by_edge:
                text = f"{change.organ} is cut by the edge of the {when} scan: its volumes can't be compared."
                found.append(_notice("cut_by_edge", text, change.organ))
    return tuple(found)


def _way(info: SegmentationInfo) -> str:
    return (
        "a label map that was given"
        if info.source == "given"
        else f"{info.source} weights of task {info.task}"
    )


def _change(organ: str, earlier: Measurement, later: Measurement, alike: bool) -> OrganChange:
    if not (earlier.present and later.present):
        return OrganChange(organ=organ, earlier=earlier, later=later)
    hu = _difference(earlier.mean_hu, later.mean_hu)
    if earlier.cut_by_edge or later.cut_by_edge:
        return OrganChange(organ=organ, earlier=earlier, later=later, mean_hu_change=hu)
    volume = _difference(earlier.volume_ml, later.volume_ml)
    percent = None if volume is None or not earlier.volume_ml else 100.0 * volume / earlier.volume_ml
    return OrganChange(
        organ=organ,
        earlier=earlier,
        later=later,
        volume_change_ml=volume,
        volume_change_percent=percent,
        mean_hu_change=hu,
        largest_diameter_change_mm=_difference(earlier.largest_diameter_mm, later.largest_diameter_mm),
        beyond_method_error=None if percent is None or not alike else abs(percent) > SMALL_CHANGE_PERCENT,
    )


def _difference(earlier: float | None, later: float | None) -> float | None:
    return None if earlier is None or later is None else later - earlier


def _notice(code: str, message: str, organ: str | None = None) -> Notice:
    return Notice(code=code, message=message, organ=organ)
