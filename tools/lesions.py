"""Lesions of a mask, each measured by itself and placed among the organs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.records import Measurement, Record
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.grid import format_shape
from tumorchain_agent.tools.labels import LabelMap
from tumorchain_agent.tools.measure import measure_mask
from tumorchain_agent.tools.organs import ORGANS, organ_ids
from tumorchain_agent.tools.read_nifti import SUFFIXES, read_nifti
from tumorchain_agent.tools.scan import CT, MAX_VOXELS

MAX_LESIONS = 50


class Lesion(Record):
    """One connected part of a lesion mask."""

    number: int
    """1 is the largest."""
    measurement: Measurement
    """``largest_axial_diameter_mm`` is the long axis that RECIST 1.1 asks for."""
    short_axis_mm: float
    """Across the long axis, in the axial slice that holds it; RECIST measures nodes by it."""
    organ: str | None
    """Table 10 organ that holds most of it; ``None``: it lies in none, or nothing was segmented."""
    organ_share: float
    """Part of the lesion that lies in that organ."""


def load_mask(path: Path, ct: CT) -> NDArray[np.bool_]:
    """A mask (``.nii``, ``.nii.gz``; nonzero is inside) on the CT's RAS+ grid, permuted and flipped but never
    resampled.

    Raises LabelMapError when it isn't a mask on the scan's grid.
    """
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        raise LabelMapError(f"mask {path} is no .nii or .nii.gz file; pass one on the scan's grid")
    stored = read_nifti(path, volume=None, max_voxels=MAX_VOXELS, error=LabelMapError)
    values, affine = grid.reorient_like(stored.values, stored.affine, ct.affine)
    difference = grid.grid_difference(affine, values.shape, ct.affine, ct.shape, 0.1 * min(ct.spacing_mm))
    if difference:
        raise LabelMapError(
            f"{path.name} is not on the grid of {ct.info.file_name}: {difference}; pass a mask of this scan"
        )
    odd = int(np.count_nonzero(~np.isfinite(values))) if values.dtype.kind == "f" else 0
    if odd:
        raise LabelMapError(
            f"mask {path.name} holds {odd} voxels that are no finite number; write 0 where there is no lesion"
        )
    inside: NDArray[np.bool_] = values * stored.slope + stored.intercept != 0
    return inside


def measure_lesions(ct: CT, mask: NDArray[Any], labelmap: LabelMap | None) -> tuple[tuple[Lesion, ...], int]:
    """The largest lesions of a mask [x, y, z] on the CT's RAS+ grid, and how many there are.

    Raises LabelMapError for a mask of another shape or without any voxel.
    """
    found, boxes = connected_parts(mask, ct, "the lesion mask")
    count = len(boxes)
    if not count:
        raise LabelMapError(
            "the lesion mask is empty: nothing to measure, which does not mean that there is none"
        )
    sizes = np.bincount(found.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:MAX_LESIONS] + 1
    lesions = [
        _lesion(number, ct, found, int(key), boxes[key - 1], labelmap)
        for number, key in enumerate(order.tolist(), start=1)
    ]
    return tuple(lesions), count


def connected_parts(
    mask: NDArray[Any], ct: CT, source: str
) -> tuple[NDArray[np.int32], list[tuple[slice, slice, slice]]]:
    """The parts of a mask [x, y, z] numbered from 1, and the box of each. Parts that touch by a corner are one.

    Raises LabelMapError for a mask of another shape than the scan's, naming its ``source``.
    """
    from scipy import ndimage

    if mask.shape != ct.shape:
        raise LabelMapError(
            f"{source} has {format_shape(mask.shape)} voxels, the scan {format_shape(ct.shape)}; "
            "pass a mask on the scan's grid"
        )
    found, _ = ndimage.label(mask != 0, structure=np.ones((3, 3, 3)))
    boxes: list[Any] = ndimage.find_objects(found)
    return np.asarray(found, np.int32), boxes


def _lesion(
    number: int, ct: CT, found: NDArray[Any], key: int, box: Any, labelmap: LabelMap | None
) -> Lesion:
    inside = found == key
    measurement = measure_mask(inside, ct.hu, ct.affine, name=f"lesion {number}")
    organ, share = _organ(inside[box], None if labelmap is None else labelmap.labels[box])
    return Lesion(
        number=number,
        measurement=measurement,
        short_axis_mm=_short_axis(inside[box], np.array(ct.spacing_mm)),
        organ=organ,
        organ_share=share,
    )


def _organ(inside: NDArray[np.bool_], labels: NDArray[np.uint8] | None) -> tuple[str | None, float]:
    if labels is None:
        return None, 0.0
    counts = np.bincount(labels[inside], minlength=256)
    shares = {organ: int(counts[list(organ_ids(organ))].sum()) for organ in ORGANS.values()}
    organ = max(shares, key=lambda name: shares[name])
    if not shares[organ]:
        return None, 0.0
    return organ, shares[organ] / int(np.count_nonzero(inside))


def _short_axis(inside: NDArray[np.bool_], spacing: NDArray[np.float64]) -> float:
    """Width across the longest diameter, in the axial slice with the longest one; voxel centre to centre."""
    from scipy.spatial.distance import pdist, squareform

    best, width = -1.0, 0.0
    for index in range(inside.shape[2]):
        points = _corners(np.argwhere(inside[:, :, index]) * spacing[:2])
        if len(points) < 2:
            continue
        apart = squareform(pdist(points))
        first, second = np.unravel_index(apart.argmax(), apart.shape)
        if apart[first, second] > best:
            best = float(apart[first, second])
            along = (points[second] - points[first]) / best
            across = points @ np.array([-along[1], along[0]])
            width = float(np.ptp(across))
    return width


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the convex hull in the plane; all points where there are few or they lie on a line."""
    from scipy.spatial import ConvexHull, QhullError

    if len(points) < 4:
        return points
    try:
        chosen: NDArray[np.signedinteger] = ConvexHull(points).vertices
    except QhullError:
        chosen = np.lexsort(points.T)[[0, -1]]
    return np.take(points, chosen, axis=0)
