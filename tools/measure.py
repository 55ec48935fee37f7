"""Organs and structures measured on the CT's own grid: all of them in one pass over the scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.records import Measurement
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.grid import FACES, Affine, format_shape
from tumorchain_agent.tools.labels import LabelMap
from tumorchain_agent.tools.organs import ORGANS, STRUCTURES, organ_ids, organ_structures
from tumorchain_agent.tools.scan import CT

_SLAB = 8
_PERCENTILES = (5, 25, 50, 75, 95)
_FEW_POINTS = 300


@dataclass(frozen=True)
class _Part:
    """What one slab, or the whole scan, holds of one label."""

    hu: NDArray[np.float32]
    """[n] values of its voxels."""
    index_sum: NDArray[np.float64]
    """[3] sum of the voxel indices."""
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    ends: NDArray[np.int32]
    """[m, 3] first and last voxel of each row along x: the convex hull is theirs."""


def measure_all(ct: CT, labelmap: LabelMap) -> dict[str, Measurement]:
    """Every organ of Table 10, then every TotalSegmentator structure that isn't an organ by name.

    Absent ones are there too, with ``present`` false. Volume is voxels · voxel volume; HU statistics and
    percentiles (linear interpolation) are exact; diameters are between voxel centres.

    Raises LabelMapError when the label map has another shape than the scan.
    """
    parts = _collect(labelmap.labels, ct.hu)
    results: dict[str, Measurement] = {}
    for organ in ORGANS.values():
        found = [parts[key] for key in organ_ids(organ) if key in parts]
        results[organ] = _measurement(organ, "organ", organ_structures(organ), found, ct.affine, ct.shape)
    for key, name in STRUCTURES.items():
        if name not in results:
            found = [parts[key]] if key in parts else []
            results[name] = _measurement(name, "structure", (name,), found, ct.affine, ct.shape)
    return results


def measure_organ(ct: CT, labelmap: LabelMap, organ: str) -> Measurement:
    """One organ of Table 10, as in measure_all. Raises UnknownOrganError for any other name."""
    ids = organ_ids(organ)
    lookup = np.zeros(256, np.uint8)
    lookup[list(ids)] = ids
    parts = _collect(labelmap.labels, ct.hu, lookup)
    found = [parts[key] for key in ids if key in parts]
    return _measurement(organ, "organ", organ_structures(organ), found, ct.affine, ct.shape)


def measure_mask(
    mask: NDArray[Any], hu: NDArray[np.floating[Any]], affine: Affine, *, name: str = "mask"
) -> Measurement:
    """Any mask [x, y, z] (nonzero is inside), e.g. a lesion's, on a grid of any orientation.

    "Axial" is a slice of the third axis; ``cut_by_edge`` is by RAS direction and needs a RAS+ grid.
    Raises LabelMapError when mask and HU differ in shape.
    """
    parts = _collect((np.asarray(mask) != 0).astype(np.uint8), np.asarray(hu, np.float32))
    return _measurement(name, "structure", (), list(parts.values()), affine, hu.shape)


def _collect(
    labels: NDArray[np.uint8], hu: NDArray[np.float32], lookup: NDArray[np.uint8] | None = None
) -> dict[int, _Part]:
    """Label id → its voxels, in one pass, a few slices at a time. ``lookup`` [256] renames ids, 0 drops."""
    if labels.shape != hu.shape:
        raise LabelMapError(
            f"the label map has {format_shape(labels.shape)} voxels, the scan {format_shape(hu.shape)}; "
            "pass the label map made from this scan"
        )
    slabs: dict[int, list[_Part]] = {}
    for start in range(0, labels.shape[2], _SLAB):
        flat = labels[:, :, start : start + _SLAB].ravel(order="F")
        flat = flat if lookup is None else lookup[flat]
        values = hu[:, :, start : start + _SLAB].ravel(order="F")
        for key, part in _slab_parts(flat, values, labels.shape, start):
            slabs.setdefault(key, []).append(part)
    return {key: _join(parts) for key, parts in sorted(slabs.items())}


def _slab_parts(
    flat: NDArray[np.uint8], values: NDArray[np.float32], shape: tuple[int, ...], start: int
) -> Iterator[tuple[int, _Part]]:
    """Sort a slab's foreground by label (a radix sort) and cut it into one part for each."""
    inside = np.flatnonzero(flat)
    if not inside.size:
        return
    ids = flat[inside]
    order = np.argsort(ids, kind="stable")
    voxels = inside[order]
    counts = np.bincount(ids, minlength=256)
    keys = np.flatnonzero(counts)
    first = np.concatenate([[0], np.cumsum(counts[keys])[:-1]])
    last = np.concatenate([first[1:], [len(voxels)]])
    rows, x = np.divmod(voxels.astype(np.int32), np.int32(shape[0]))
    z, y = np.divmod(rows, np.int32(shape[1]))
    points = np.stack([x, y, z + np.int32(start)])
    row_starts = np.ones(len(voxels), bool)
    row_starts[1:] = np.diff(rows) != 0
    row_starts[first] = True
    is_end = row_starts | np.append(row_starts[1:], True)
    sums = np.add.reduceat(points, first, axis=1, dtype=np.float64).T
    lows = np.minimum.reduceat(points, first, axis=1).T.astype(np.int64)
    highs = np.maximum.reduceat(points, first, axis=1).T.astype(np.int64)
    sorted_hu = values[voxels]
    for row, key in enumerate(keys.tolist()):
        cut = slice(int(first[row]), int(last[row]))
        yield key, _Part(sorted_hu[cut], sums[row], lows[row], highs[row], points[:, cut][:, is_end[cut]].T)


def _join(parts: Sequence[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    return _Part(
        hu=np.concatenate([part.hu for part in parts]),
        index_sum=np.sum([part.index_sum for part in parts], axis=0),
        low=np.min([part.low for part in parts], axis=0),
        high=np.max([part.high for part in parts], axis=0),
        ends=np.concatenate([part.ends for part in parts]),
    )


def _measurement(
    name: str,
    level: Literal["organ", "structure"],
    structures: tuple[str, ...],
    parts: Sequence[_Part],
    affine: Affine,
    shape: tuple[int, ...],
) -> Measurement:
    if not parts:
        return Measurement(organ=name, level=level, structures=structures, present=False)
    part = _join(parts)
    count = len(part.hu)
    centroid = part.index_sum / count
    diameter, axial = _diameters(part.ends, affine)
    return Measurement(
        organ=name,
        level=level,
        structures=structures,
        present=True,
        voxels=count,
        volume_ml=count * grid.voxel_ml(affine),
        mean_hu=float(part.hu.mean(dtype=np.float64)),
        sd_hu=float(part.hu.std(dtype=np.float64)),
        min_hu=float(part.hu.min()),
        max_hu=float(part.hu.max()),
        percentiles_hu=_percentiles(part.hu),
        largest_diameter_mm=diameter,
        largest_axial_diameter_mm=axial,
        bbox_ijk=(_triple(part.low), _triple(part.high)),
        centroid_ijk=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        centroid_mm=_mm(affine, centroid),
        cut_by_edge=_faces(part, shape),
    )


def _percentiles(hu: NDArray[np.float32]) -> dict[str, float]:
    """``p05 p25 …``, interpolated in double precision between the two nearest values."""
    place = np.array(_PERCENTILES) / 100 * (len(hu) - 1)
    below, above = np.floor(place).astype(np.int64), np.ceil(place).astype(np.int64)
    ordered = np.partition(hu, np.union1d(below, above))
    low, high = ordered[below].astype(np.float64), ordered[above].astype(np.float64)
    values = low + (high - low) * (place - below)
    return {f"p{percent:02d}": float(value) for percent, value in zip(_PERCENTILES, values, strict=True)}


def _triple(values: NDArray[np.int64]) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])


def _mm(affine: Affine, ijk: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = grid.apply_affine(affine, ijk)
    return float(x), float(y), float(z)


def _faces(part: _Part, shape: tuple[int, ...]) -> tuple[str, ...]:
    touched = []
    for axis, (at_first, at_last) in enumerate(FACES):
        if part.low[axis] == 0:
            touched.append(at_first)
        if part.high[axis] == shape[axis] - 1:
            touched.append(at_last)
    return tuple(touched)


def _diameters(ends: NDArray[np.int32], affine: Affine) -> tuple[float, float]:
    """Largest distance in mm between voxel centres, in 3-D and within one slice of the third axis."""
    order = np.argsort(ends[:, 2], kind="stable")
    ends = ends[order]
    points = ends @ affine[:3, :3].T
    starts = np.flatnonzero(np.diff(ends[:, 2], prepend=-1))
    stops = np.append(starts[1:], len(ends))
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    bounds = np.linalg.norm(high - low, axis=1)
    axial = 0.0
    for index in np.argsort(-bounds):
        if bounds[index] <= axial:
            break
        axial = max(axial, largest_distance(points[starts[index] : stops[index]]))
    return largest_distance(points), axial


def largest_distance(points: NDArray[np.float64]) -> float:
    """Largest distance between any two of the points [n, 3]; flat and straight sets are fine."""
    from scipy.spatial.distance import pdist

    if len(points) > _FEW_POINTS:
        points = _hull_points(points)
    return float(pdist(points).max()) if len(points) > 1 else 0.0


def _hull_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners of the convex hull, in as many dimensions as the points span."""
    from scipy.spatial import ConvexHull

    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred.T @ centred, hermitian=True)
    extent = np.sqrt(axes.S / len(points))
    spanned = int(np.count_nonzero(extent > 1e-6 * extent[0]))
    flat = centred @ axes.U[:, :spanned]
    corners = [flat.argmin(), flat.argmax()] if spanned == 1 else ConvexHull(flat).vertices
    chosen: NDArray[np.float64] = points[corners]
    return chosen
