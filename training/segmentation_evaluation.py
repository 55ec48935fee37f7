"""``evaluate --segmentation``: the installed segmentation weights against a label map of the user's, by Dice."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.organs import FIVE, ORGANS, display_name, merge_labels
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.tools.segment import Segmenter


class OrganScore(Record):
    organ: str
    dice: float | None
    """``None`` when the weights were never trained to find it."""
    reference_ml: float
    predicted_ml: float


class SegmentationScore(Record):
    """Organs that the reference holds; of others, only that they were wrongly found."""

    disclaimer: str = DISCLAIMER
    file_name: str
    weights: str
    """``official`` or ``nano``."""
    task: str
    organs: tuple[OrganScore, ...]
    mean_dice: float | None
    """Over the organs that the weights can find."""
    mean_dice_five: float | None
    """Over those of the five digestive organs that the reference holds."""
    found_wrongly: tuple[str, ...]
    """Found, though the reference lacks them."""
    seconds: float


def evaluate_segmentation(
    settings: Settings, scan: str, reference: str, progress: Callable[[str, float], None] | None = None
) -> SegmentationScore:
    """Segment ``scan`` and compare with ``reference``, TotalSegmentator v2 ids on the scan's grid.

    Raises ScanError, LabelMapError, SegmentationError.
    """
    ct = open_ct(scan)
    truth = merge_labels(load_label_map(reference, ct).labels)
    started = time.monotonic()
    with Segmenter(settings) as segmenter:
        found = segmenter.segment(ct, progress)
    seconds = round(time.monotonic() - started, 2)
    predicted = merge_labels(found.labels)
    counts = overlaps(truth, predicted)
    unknown = found.info.organs_unknown
    organs = tuple(
        OrganScore(
            organ=name,
            dice=None if name in unknown else dice(counts, number),
            reference_ml=round(float(counts[number].sum()) * ct.voxel_ml, 2),
            predicted_ml=round(float(counts[:, number].sum()) * ct.voxel_ml, 2),
        )
        for number, name in ORGANS.items()
        if counts[number].any()
    )
    return SegmentationScore(
        file_name=ct.info.file_name,
        weights=found.info.source,
        task=found.info.task,
        organs=organs,
        mean_dice=_mean([o.dice for o in organs]),
        mean_dice_five=_mean([o.dice for o in organs if o.organ in FIVE]),
        found_wrongly=tuple(n for k, n in ORGANS.items() if counts[:, k].any() and not counts[k].any()),
        seconds=seconds,
    )


def overlaps(truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> NDArray[np.int64]:
    """[57, 57] voxels by (organ in ``truth``, organ in ``predicted``)."""
    size = len(ORGANS) + 1
    counts = np.zeros(size * size, np.int64)
    for index in range(truth.shape[2]):
        keys = truth[:, :, index].astype(np.int32) * size + predicted[:, :, index]
        counts += np.bincount(keys.ravel(), minlength=size * size)
    return counts.reshape(size, size)


def dice(counts: NDArray[np.int64], organ: int) -> float:
    """2 |A ∩ B| / (|A| + |B|)."""
    return round(float(2 * counts[organ, organ] / (counts[organ].sum() + counts[:, organ].sum())), 4)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None


def as_markdown(score: SegmentationScore) -> str:
    """Organs by falling Dice."""
    rows = sorted(score.organs, key=lambda o: -1.0 if o.dice is None else o.dice, reverse=True)
    lines = [
        f"{score.file_name}: {score.weights} weights, task {score.task}, {score.seconds:.1f} s",
        "",
        "| organ | Dice | reference ml | found ml |",
        "|---|---|---|---|",
        *(
            f"| {display_name(o.organ)} | {'never learned' if o.dice is None else f'{o.dice:.3f}'} "
            f"| {o.reference_ml:.1f} | {o.predicted_ml:.1f} |"
            for o in rows
        ),
        "",
    ]
    for name, value in (("all of these", score.mean_dice), ("the digestive organs", score.mean_dice_five)):
        if value is not None:
            lines.append(f"Mean Dice of {name}: {value:.3f}.")
    if score.found_wrongly:
        lines.append(f"Found, though the reference lacks them: {', '.join(score.found_wrongly)}.")
    return "\n".join([*lines, "", score.disclaimer])
