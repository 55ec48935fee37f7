"""What benchmarks ask of lesions: kind, size, HU, slice, organ, liver segment. Nothing is found here, only measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import Measurement
from tumorchain_agent.tools.lesions import connected_parts
from tumorchain_agent.tools.measure import measure_mask
from tumorchain_agent.tools.organs import MERGE, ORGANS
from tumorchain_agent.tools.scan import CT

KINDS: Final = {1: "tumor", 2: "metastasis", 3: "node", 4: "cyst", 5: "pseudocyst", 6: "pancreatitis"}
"""What the values of a lesion label map mean, as in a phantom's ``lesions.nii.gz``."""
FOCAL: Final = frozenset({"tumor", "metastasis", "cyst", "pseudocyst", "pdac", "pnet", "lesion"})
"""Kinds that are counted as a lesion of their organ; nodes and inflammation aren't."""
SOLID: Final = frozenset({"tumor", "metastasis", "pdac", "pnet"})
_NEAR: Final = 2
"""Voxels around a lesion that tell its organ where the label map has a hole at its place."""


@dataclass(frozen=True)
class Lesion:
    """One connected lesion (corners count as contact), measured on the CT's grid."""

    kind: str
    organ: str | None
    """Table 10 organ that holds most of it; ``None``: none does."""
    measurement: Measurement
    slice_index: int
    """RAS+ index of the axial slice with its largest area, the lowest of several."""
    box: tuple[slice, slice, slice]
    mask: NDArray[np.bool_]
    """[x, y, z] within ``box``."""
    source: str
    """File that its mask came from, and which of that file's lesions it is."""

    @property
    def volume_ml(self) -> float:
        return float(self.measurement.volume_ml or 0.0)

    @property
    def mean_hu(self) -> float:
        return float(self.measurement.mean_hu or 0.0)

    @property
    def diameter_mm(self) -> float:
        return float(self.measurement.largest_diameter_mm or 0.0)


def lesions_of(
    mask: NDArray[Any], ct: CT, labels: NDArray[np.uint8], *, kind: str, source: str, organ: str | None = None
) -> Iterator[Lesion]:
    """The connected parts of a mask [x, y, z] (nonzero is inside), in the order of their first voxel.

    ``organ`` is what the file says; else the label map [x, y, z] tells. Raises LabelMapError for another shape.
    """
    parts, boxes = connected_parts(mask, ct, source)
    for number, box in enumerate(boxes, start=1):
        inside: NDArray[np.bool_] = parts[box] == number
        areas = inside.sum(axis=(0, 1))
        yield Lesion(
            kind=kind,
            organ=organ or _organ(box, inside, labels),
            measurement=measure_mask(inside, ct.hu[box], ct.affine, name=kind),
            slice_index=int(box[2].start + areas.argmax()),
            box=box,
            mask=inside,
            source=f"{source}#{number}/{len(boxes)}",
        )


def _organ(
    box: tuple[slice, slice, slice], inside: NDArray[np.bool_], labels: NDArray[np.uint8]
) -> str | None:
    """The organ of most of a lesion's voxels, else of those around it."""
    found = np.bincount(MERGE[labels[box]][inside], minlength=57)[1:]
    if not found.any():
        wide = tuple(slice(max(0, cut.start - _NEAR), cut.stop + _NEAR) for cut in box)
        found = np.bincount(MERGE[labels[wide]].ravel(), minlength=57)[1:]
    return ORGANS[int(found.argmax()) + 1] if found.any() else None


def share_in(lesion: Lesion, region: NDArray[np.integer[Any]]) -> dict[int, float]:
    """Value of ``region`` [x, y, z] → share of the lesion's voxels there, background left out."""
    counts = np.bincount(np.asarray(region[lesion.box])[lesion.mask].astype(np.int64))
    return {int(key): float(counts[key] / lesion.mask.sum()) for key in np.flatnonzero(counts) if key}


def largest(lesions: Sequence[Lesion]) -> Lesion:
    """By volume; the first of equals. The sequence must not be empty."""
    return max(lesions, key=lambda each: each.volume_ml)


def nearest_organ(lesion: Lesion, ct: CT, labels: NDArray[np.uint8], others: Sequence[str]) -> str | None:
    """That of ``others`` whose closest voxel is nearest to the lesion in mm; ``None`` when none is in the scan."""
    ndimage: Any = import_module("scipy.ndimage")

    outside = np.ones(ct.shape, bool)
    outside[lesion.box] = ~lesion.mask
    away: NDArray[np.float64] = ndimage.distance_transform_edt(outside, sampling=ct.spacing_mm)
    merged = MERGE[labels]
    numbers = {name: number for number, name in ORGANS.items()}
    found = {name: merged == numbers[name] for name in others}
    distances = {name: float(away[mask].min()) for name, mask in found.items() if mask.any()}
    return min(distances, key=lambda name: distances[name]) if distances else None
