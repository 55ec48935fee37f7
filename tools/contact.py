"""How two structures lie to each other: distance, area of contact, and how far one goes around the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.grid import Affine, format_shape

NEAR_MM = 2.0
"""Surfaces closer than this, or than one voxel's diagonal, count as touching."""
_RAYS = 72


class Contact(Record):
    """Of structure ``a`` (say a tumor) with structure ``b`` (say a vessel)."""

    a: str
    b: str
    touching: bool
    min_distance_mm: float
    """Between voxel centres of different structures; one voxel side means that they are neighbours."""
    contact_area_mm2: float
    """Of the voxel faces that the two share."""
    overlap_ml: float
    """Volume that belongs to both, when one of them is a mask of its own."""
    share_of_b_surface: float
    """Part of b's surface that lies within ``near_mm`` of a."""
    near_mm: float
    max_encasement_deg: float | None = None
    """Largest angle of b's outline, in an axial slice, that lies within ``near_mm`` of a; staging of vessel
    contact asks whether it exceeds 180°."""
    encasement_slice: int | None = None
    """Voxel index of that slice."""


def measure_contact(
    a: NDArray[Any], b: NDArray[Any], affine: Affine, *, name_a: str = "a", name_b: str = "b"
) -> Contact:
    """Two masks [x, y, z] on one RAS+ grid. Raises LabelMapError when one is empty or shapes differ."""
    from scipy import ndimage

    if a.shape != b.shape:
        raise LabelMapError(
            f"masks of {format_shape(a.shape)} and {format_shape(b.shape)} voxels can't be compared; "
            "make both on the scan's grid"
        )
    inside_a, inside_b = np.asarray(a) != 0, np.asarray(b) != 0
    for name, mask in ((name_a, inside_a), (name_b, inside_b)):
        if not mask.any():
            raise LabelMapError(f"{name} has no voxel in this scan: not assessed, which is not normal")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    near = max(NEAR_MM, float(np.linalg.norm(spacing)))
    box = _box(inside_b, spacing, near)
    distance = _distance_to(inside_a, box, spacing)
    part_b = inside_b[box]
    shell = part_b & ~ndimage.binary_erosion(part_b, border_value=0)
    close = shell & (distance <= near)
    angle, index = _encasement(part_b, close, spacing)
    return Contact(
        a=name_a,
        b=name_b,
        touching=bool(close.any()),
        min_distance_mm=float(_min_distance(inside_a, inside_b, spacing)),
        contact_area_mm2=_shared_faces(inside_a & ~inside_b, inside_b, spacing),
        overlap_ml=float(np.count_nonzero(inside_a & inside_b) * spacing.prod() / 1000.0),
        share_of_b_surface=float(np.count_nonzero(close) / np.count_nonzero(shell)),
        near_mm=near,
        max_encasement_deg=angle,
        encasement_slice=None if index is None else index + int(box[2].start),
    )


def _box(
    mask: NDArray[np.bool_], spacing: NDArray[np.float64], margin_mm: float
) -> tuple[slice, slice, slice]:
    low, high = _bounds(mask)
    margin = np.ceil(margin_mm / spacing).astype(int) + 1
    start, stop = np.maximum(low - margin, 0), np.minimum(high + margin + 1, mask.shape)
    return (
        slice(int(start[0]), int(stop[0])),
        slice(int(start[1]), int(stop[1])),
        slice(int(start[2]), int(stop[2])),
    )


def _bounds(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Smallest and largest index along each axis."""
    along = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([found[0] for found in along]), np.array([found[-1] for found in along])


def _distance_to(
    mask: NDArray[np.bool_], box: tuple[slice, slice, slice], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """mm from each voxel of the box to the mask's part in it; infinite when there is none."""
    from scipy import ndimage

    part = mask[box]
    if not part.any():
        return np.full(part.shape, np.inf)
    found: NDArray[np.float64] = ndimage.distance_transform_edt(~part, sampling=spacing)
    return found


def _min_distance(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: NDArray[np.float64]) -> float:
    """Between the nearest voxel centres; 0 when they overlap."""
    from scipy.spatial import cKDTree

    if (a & b).any():
        return 0.0
    points = [_surface(mask) * spacing for mask in (a, b)]
    points.sort(key=len)
    found, _ = cKDTree(points[1]).query(points[0])
    return float(np.min(found))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    from scipy import ndimage

    return np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0))


def _shared_faces(a: NDArray[np.bool_], b: NDArray[np.bool_], spacing: NDArray[np.float64]) -> float:
    area = 0.0
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        front, back = tuple(ahead), tuple(behind)
        faces = np.count_nonzero(a[front] & b[back]) + np.count_nonzero(a[back] & b[front])
        area += faces * float(spacing.prod() / spacing[axis])
    return area


def _encasement(
    b: NDArray[np.bool_], close: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> tuple[float | None, int | None]:
    """Over axial slices: the share of directions from b's centre in which its outline is close to a."""
    best: tuple[float, int] | None = None
    for index in np.flatnonzero(close.any(axis=(0, 1))).tolist():
        section, touched = b[:, :, index], close[:, :, index]
        centre = np.argwhere(section).mean(axis=0)
        edge = _outline(section)
        if len(edge) < 4:
            continue
        offset = (edge - centre) * spacing[:2]
        direction = np.arctan2(offset[:, 1], offset[:, 0])
        near = touched[edge[:, 0], edge[:, 1]]
        angle = _covered(direction, near)
        if best is None or angle > best[0]:
            best = (angle, index)
    return (None, None) if best is None else best


def _outline(section: NDArray[np.bool_]) -> NDArray[np.int64]:
    from scipy import ndimage

    return np.argwhere(section & ~ndimage.binary_erosion(section, border_value=0))


def _covered(direction: NDArray[np.float64], near: NDArray[np.bool_]) -> float:
    """Degrees of the circle whose nearest outline voxel is near."""
    rays = (np.arange(_RAYS) + 0.5) / _RAYS * 2 * np.pi - np.pi
    apart = np.abs(np.angle(np.exp(1j * (rays[:, None] - direction[None, :]))))
    return float(near[apart.argmin(axis=1)].mean() * 360.0)
