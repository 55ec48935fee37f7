"""Voxel grids: affines, RAS+ reorientation, comparison of grids. Points are rows [n, 3]; mm are RAS+.

Voxel-centre convention: index (0, 0, 0) is the centre of the first voxel, so a grid reaches half a voxel
beyond its first and last centres.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tumorchain_agent.records import Notice

Affine = NDArray[np.float64]
"""4 × 4, voxel index → mm."""

FACES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""Faces of a RAS+ grid along x, y, z: at index 0, at the last index."""


@dataclass(frozen=True)
class StoredVolume:
    """Voxels as a file holds them: HU = values · slope + intercept, on the grid of ``affine``."""

    values: NDArray[Any]
    """[i, j, k] in stored order."""
    affine: Affine
    slope: float = 1.0
    intercept: float = 0.0
    notices: tuple[Notice, ...] = field(default=())


def apply_affine(affine: Affine, points: ArrayLike) -> NDArray[np.float64]:
    """Map points [n, 3] (or [3]) by a 4 × 4 affine."""
    rows = np.asarray(points, np.float64)
    mapped: NDArray[np.float64] = rows @ affine[:3, :3].T + affine[:3, 3]
    return mapped


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Voxel size in mm along each index axis: the column norms."""
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    return float(norms[0]), float(norms[1]), float(norms[2])


def voxel_ml(affine: Affine) -> float:
    """Volume of one voxel in ml; right for sheared grids (gantry tilt) too."""
    return float(abs(np.linalg.det(affine[:3, :3])) / 1000.0)


def corners(affine: Affine, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The 8 outer corners [8, 3] of a grid in mm, half a voxel beyond the corner voxels' centres."""
    ends = [(-0.5, size - 0.5) for size in shape[:3]]
    return apply_affine(affine, np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3))


def world_bbox(affine: Affine, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest x, y, z in mm that the voxels of a grid cover."""
    outer = corners(affine, shape)
    return outer.min(axis=0), outer.max(axis=0)


def block(
    affine: Affine, shape: tuple[int, ...], low: ArrayLike, high: ArrayLike, extra: int = 1
) -> tuple[tuple[slice, slice, slice], Affine]:
    """The smallest block of voxels that holds a box (mm), ``extra`` voxels wider on every side where there are any.

    Returns its index slices and its own affine; the slices are empty where the box lies outside the grid.
    """
    axes = np.stack([np.asarray(low, np.float64), np.asarray(high, np.float64)], axis=1)
    ends = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    reach = apply_affine(np.asarray(np.linalg.inv(affine), np.float64), ends)
    size = np.array(shape[:3])
    first = np.clip(np.floor(reach.min(axis=0) + 0.5).astype(int) - extra, 0, size)
    last = np.clip(np.ceil(reach.max(axis=0) + 0.5).astype(int) + extra, first, size)
    own = affine.copy()
    own[:3, 3] = apply_affine(affine, first)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return (x, y, z), own


def extent(mask: NDArray[np.bool_], affine: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest x, y, z in mm of a mask's voxels [i, j, k], of which there must be one.

    To the voxels' faces where the grid is parallel to the patient's axes, to within a voxel where it is oblique.
    """
    lines = mask.any(axis=0)
    y, z = np.nonzero(lines)
    first = mask.argmax(axis=0)[y, z]
    last = mask.shape[0] - 1 - mask[::-1].argmax(axis=0)[y, z]
    ends = np.concatenate([np.stack([first, y, z], axis=1), np.stack([last, y, z], axis=1)])
    centres = apply_affine(affine, ends)
    half = np.linalg.norm(affine[:3, :3], axis=1) / 2
    return centres.min(axis=0) - half, centres.max(axis=0) + half


def is_axis_aligned(affine: Affine, shape: tuple[int, ...]) -> bool:
    """Whether a RAS+ grid's axes are the patient's axes.

    Off-axis components may shift no voxel of the grid by half of the smallest voxel size or more.
    """
    linear = affine[:3, :3]
    off_axis = np.abs(linear - np.diag(np.diag(linear)))
    shift = off_axis @ (np.asarray(shape[:3], np.float64) - 1.0)
    return bool(shift.max() < 0.5 * min(spacing(affine)))


def _orientation_to(affine: Affine, target: Affine) -> NDArray[np.float64]:
    """nibabel orientation [3, 2] (axis, flip) of a grid relative to another grid's index axes."""
    ornt: Any = import_module("nibabel.orientations")
    relative = np.linalg.inv(target) @ affine
    return np.asarray(ornt.io_orientation(relative), np.float64)


def reorient_like(values: NDArray[Any], affine: Affine, target: Affine) -> tuple[NDArray[Any], Affine]:
    """Permute and flip [i, j, k] so that its axes run as near as possible along ``target``'s.

    A view, nothing is copied or interpolated; returns it with its own affine.
    """
    ornt: Any = import_module("nibabel.orientations")
    orientation = _orientation_to(affine, target)
    shape = (int(values.shape[0]), int(values.shape[1]), int(values.shape[2]))
    turned = ornt.apply_orientation(values, orientation)
    return turned, np.asarray(affine @ ornt.inv_ornt_aff(orientation, shape), np.float64)


def reorient_to_ras(values: NDArray[Any], affine: Affine) -> tuple[NDArray[Any], Affine, str]:
    """Permute and flip [i, j, k] to RAS+ (x to the right, y to the front, z to the head).

    A view, nothing is copied or interpolated; returns it, its affine, and the axes as stored, e.g. ``"LPS"``.
    """
    ornt: Any = import_module("nibabel.orientations")
    turned, turned_affine = reorient_like(values, affine, np.eye(4))
    return turned, turned_affine, "".join(str(code) for code in ornt.aff2axcodes(affine))


def grid_difference(
    affine: Affine, shape: tuple[int, ...], other_affine: Affine, other_shape: tuple[int, ...], tol_mm: float
) -> str | None:
    """What sets two grids apart, in words, or ``None`` when no corner differs by more than ``tol_mm``."""
    if tuple(shape[:3]) != tuple(other_shape[:3]):
        return f"{format_shape(shape)} voxels instead of {format_shape(other_shape)}"
    sizes, other_sizes = np.array(spacing(affine)), np.array(spacing(other_affine))
    apart = corners(affine, shape) - corners(other_affine, other_shape)
    distance = float(np.linalg.norm(apart, axis=1).max())
    if distance <= tol_mm:
        return None
    if np.abs((sizes - other_sizes) * np.array(shape[:3])).max() > tol_mm:
        return f"voxels of {format_mm(sizes)} mm instead of {format_mm(other_sizes)} mm"
    if float(np.ptp(apart, axis=0).max()) <= tol_mm:
        return f"shifted by {distance:.1f} mm"
    return f"turned, by up to {distance:.1f} mm at the corners"


def same_grid(
    affine: Affine, shape: tuple[int, ...], other_affine: Affine, other_shape: tuple[int, ...], tol_mm: float
) -> bool:
    """Whether two grids have one shape and no corner further apart than ``tol_mm``."""
    return grid_difference(affine, shape, other_affine, other_shape, tol_mm) is None


def format_shape(shape: tuple[int, ...]) -> str:
    """``"512×512×41"``."""
    return "×".join(str(int(size)) for size in shape)


def format_mm(sizes: ArrayLike) -> str:
    """``"0.797×0.797×5"``."""
    return "×".join(f"{float(size):.3f}".rstrip("0").rstrip(".") for size in np.asarray(sizes))
