"""What the tools warn of, each worded once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tumorchain_agent.records import Measurement, Notice, SegmentationInfo
from tumorchain_agent.tools.distribution import Departure
from tumorchain_agent.tools.organs import display_name

DEMONSTRATION = Notice(
    code="demonstration_model",
    message="The checkpoint is a demonstration model trained on phantoms, without clinical validity.",
)
UNKNOWN_DISTRIBUTION = Notice(
    code="training_distribution_unknown",
    message="The checkpoint doesn't say what scans it was trained on: whether it fits this one is unknown.",
)


_PARTS = {"cls": "abnormality classifier", "llm": "language model"}


def untrained(parts: Sequence[str]) -> Notice:
    """Parts by their names in the checkpoint's provenance."""
    names = " and ".join(_PARTS.get(part, part) for part in parts)
    message = (
        f"Random weights, never trained, in the checkpoint's {names}: what it says of this scan is noise."
    )
    return Notice(code="untrained_checkpoint", message=message)


def out_of_distribution(found: Sequence[Departure]) -> Notice:
    """Names what differs most telling, three statistics at most."""
    return Notice(
        code="out_of_distribution",
        message="This scan is out of the model's training distribution: what the model says of it can't be "
        f"relied on. It differs in {'; '.join(map(str, found[:3]))}.",
    )


def absent(organ: str, segmentation: SegmentationInfo) -> Notice:
    """Missing is not normal, and what the weights can't find isn't even missing."""
    if organ in segmentation.organs_unknown:
        return unknown(organ)
    if organ in segmentation.organs_deferred:
        return deferred(organ)
    message = f"{display_name(organ)} was not found in the scan: not assessed, which is not normal."
    return Notice(code="organ_absent", message=message, organ=organ)


def unknown(organ: str) -> Notice:
    """The weights were never trained to find it."""
    message = (
        f"{display_name(organ)} can't be found by the installed segmentation weights: not assessed. "
        "Install TotalSegmentator's weights, or pass masks."
    )
    return Notice(code="organ_unknown", message=message, organ=organ)


def deferred(organ: str) -> Notice:
    """The label map in use comes from other networks."""
    message = (
        f"{display_name(organ)} was not looked for in this segmentation: not assessed. "
        "Call segment_organs with it, and use the segmentation_id that it returns."
    )
    return Notice(code="organ_deferred", message=message, organ=organ)


def out_of_view(organ: str) -> Notice:
    """In the label map, yet in none of the encoder's patches."""
    message = f"{display_name(organ)} lies outside the model's view of the scan: it is not assessed."
    return Notice(code="organ_without_tokens", message=message, organ=organ)


def measured(records: Iterable[Measurement], segmentation: SegmentationInfo) -> list[Notice]:
    """Organs that are absent or cut by the scan's edge."""
    notices = []
    for record in records:
        if not record.present:
            notices.append(absent(record.organ, segmentation))
        elif record.cut_by_edge:
            faces = ", ".join(record.cut_by_edge)
            message = (
                f"{display_name(record.organ)} is cut by the scan's edge ({faces}): "
                "its volume and size are lower bounds."
            )
            notices.append(Notice(code="cut_by_edge", message=message, organ=record.organ))
    return notices


def unique(*groups: Iterable[Notice]) -> tuple[Notice, ...]:
    """All of them, each once, in order."""
    return tuple(dict.fromkeys(notice for group in groups for notice in group))
