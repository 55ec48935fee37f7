"""How two structures lie to each other: distance, area of contact, and how far one goes around the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.grid import Affine, format_shape

NEAR_MM = 2.0
"""Voxels touch whose centres are closer than this, or that are neighbours. A voxel's diagonal would not do for the
others: slices are often much thicker than the fat that separates two structures within them.
"""
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
    """Part of b's surface voxels that touch a."""
    near_mm: float
    """Voxels that are no neighbours touch when their centres are closer than this."""
    max_encasement_deg: float | None = None
    """Largest angle of b's outline, in an axial slice, that touches a in that very slice; staging of vessel
    contact asks whether it exceeds 180°. ``None``: it touches a in no axial slice, or is a few voxels wide."""
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
    steps = np.asarray(affine, float)[:3, :3]
    box = _box(inside_b, steps, NEAR_MM)
    part_a, part_b = inside_a[box], inside_b[box]
    shell = part_b & ~ndimage.binary_erosion(part_b, border_value=0)
    close = _touched(part_a, shell, steps)
    angle, index = _encasement(part_a, part_b, steps[:, :2])
    return Contact(
        a=name_a,
        b=name_b,
        touching=bool(close.any()),
        min_distance_mm=float(_min_distance(inside_a, inside_b, steps)),
        contact_area_mm2=_shared_faces(inside_a & ~inside_b, inside_b, steps),
        overlap_ml=float(np.count_nonzero(inside_a & inside_b) * abs(np.linalg.det(steps)) / 1000.0),
        share_of_b_surface=float(np.count_nonzero(close) / np.count_nonzero(shell)),
        near_mm=NEAR_MM,
        max_encasement_deg=angle,
        encasement_slice=None if index is None else index + int(box[2].start),
    )


def _box(mask: NDArray[np.bool_], steps: NDArray[np.float64], margin_mm: float) -> tuple[slice, slice, slice]:
    """Around the mask, with what lies within ``margin_mm`` and the next voxel; ``steps`` [3, 3] may lean."""
    low, high = _bounds(mask)
    margin = np.ceil(margin_mm * np.linalg.norm(np.linalg.inv(steps), axis=1)).astype(int) + 1
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


def _touched(
    a: NDArray[np.bool_], wanted: NDArray[np.bool_], steps: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which of the ``wanted`` voxels touch a, in a volume or a slice; indices @ stepsᵀ are mm."""
    from scipy import ndimage
    from scipy.spatial import cKDTree

    found: NDArray[np.bool_] = wanted & ndimage.binary_dilation(a, np.ones((3,) * a.ndim, bool))
    rest = np.argwhere(wanted & ~found)
    if a.any() and len(rest):
        tree = cKDTree(_surface(a) @ steps.T)
        distance, _ = tree.query(rest @ steps.T, distance_upper_bound=NEAR_MM)
        found[tuple(rest[np.isfinite(distance)].T)] = True
    return found


def _min_distance(a: NDArray[np.bool_], b: NDArray[np.bool_], steps: NDArray[np.float64]) -> float:
    """Between the nearest voxel centres; 0 when they overlap."""
    from scipy.spatial import cKDTree

    if (a & b).any():
        return 0.0
    points = [_surface(mask) @ steps.T for mask in (a, b)]
    points.sort(key=len)
    found, _ = cKDTree(points[1]).query(points[0])
    return float(np.min(found))


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    from scipy import ndimage

    return np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0))


def _shared_faces(a: NDArray[np.bool_], b: NDArray[np.bool_], steps: NDArray[np.float64]) -> float:
    area = 0.0
    for axis in range(3):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        front, back = tuple(ahead), tuple(behind)
        faces = np.count_nonzero(a[front] & b[back]) + np.count_nonzero(a[back] & b[front])
        across, up = (steps[:, other] for other in range(3) if other != axis)
        area += faces * float(np.linalg.norm(np.cross(across, up)))
    return area


def _encasement(
    a: NDArray[np.bool_], b: NDArray[np.bool_], steps: NDArray[np.float64]
) -> tuple[float | None, int | None]:
    """Over axial slices: the share of directions from b's centre in which its outline touches a.

    ``steps`` [3, 2] are those of a slice's two axes; only what lies in the same slice counts.
    """
    plane = np.linalg.qr(steps)[1]
    best: tuple[float, int] | None = None
    for index in np.flatnonzero(a.any(axis=(0, 1)) & b.any(axis=(0, 1))).tolist():
        section = b[:, :, index]
        edge = _surface(section)
        if len(edge) < 4:
            continue
        outline = np.zeros_like(section)
        outline[tuple(edge.T)] = True
        touched = _touched(a[:, :, index], outline, plane)
        if not touched.any():
            continue
        offset = (edge - np.argwhere(section).mean(axis=0)) @ plane.T
        angle = _covered(np.arctan2(offset[:, 1], offset[:, 0]), touched[tuple(edge.T)])
        if best is None or angle > best[0]:
            best = (angle, index)
    return (None, None) if best is None else best


def _covered(direction: NDArray[np.float64], near: NDArray[np.bool_]) -> float:
    """Degrees of the circle whose nearest outline voxel is near."""
    rays = (np.arange(_RAYS) + 0.5) / _RAYS * 2 * np.pi - np.pi
    apart = np.abs(np.angle(np.exp(1j * (rays[:, None] - direction[None, :]))))
    return float(near[apart.argmin(axis=1)].mean() * 360.0)
