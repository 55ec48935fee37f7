"""A patient's organs as shapes with TotalSegmentator ids and tissues, and how they are laid onto a grid.

Canonical frame: RAS+ mm, x to the patient's right, y anterior, z superior; z = 0 is about the L4 vertebra, the
diaphragm lies near z = 185.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.shapes import (
    Array,
    Ellipsoid,
    Grid,
    SmoothField,
    Triple,
    Tube,
    Window,
    at_points,
)


class Tissue(IntEnum):
    """What a voxel is made of; its HU follow from the contrast phase (``render``)."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    CORTEX = 4
    MARROW = 5
    CORD = 6
    LIVER = 7
    SPLEEN = 8
    PANCREAS = 9
    KIDNEY = 10
    BILE = 11
    ADRENAL = 12
    ARTERY = 13
    VEIN = 14
    PORTAL = 15
    HEART = 16
    WALL = 17
    GAS = 18
    FLUID = 19
    STOOL = 20
    CHYME = 21
    CYST = 22
    CALCIUM = 23


ORGAN_IDS = {"liver": 5, "stomach": 6, "pancreas": 7, "esophagus": 15, "colorectum": 20}
"""Table 10 name → TotalSegmentator id, for the five digestive organs."""


@dataclass(frozen=True)
class Part:
    """One shape painted with one label. Later parts win over earlier ones where ``over`` allows it."""

    label: int
    shape: Ellipsoid | Tube
    tissue: Tissue
    wall_mm: float = 0.0
    """Hollow organ: thickness of the wall; inside it is lumen."""
    lumen: Tissue = Tissue.FLUID
    gas_share: float = 0.0
    """Upper (anterior) share of the lumen that holds gas."""
    over: tuple[int, ...] = (0,)
    """Labels that may be overwritten; 0 is unlabelled soft tissue inside the trunk."""
    rim: Tissue | None = None
    """Outer shell, e.g. cortical bone."""


@dataclass(frozen=True)
class Anatomy:
    """A patient's organs, before any lesion."""

    parts: tuple[Part, ...]
    trunk: Ellipsoid
    fat_share: float
    """Relative thickness of the subcutaneous fat."""
    scale: Triple
    displacement: tuple[SmoothField, SmoothField, SmoothField]
    roughness: SmoothField
    dome_z: tuple[float, float]
    """Height of the right and left diaphragm in canonical mm."""
    tubes: dict[str, Tube] = field(default_factory=dict)

    def canonical(self, points: Array) -> Array:
        """[n, 3] patient mm → canonical mm."""
        moved = at_points(self.displacement, points)
        return (points / np.asarray(self.scale, np.float32) + moved).astype(np.float32)

    def patient(self, points: Array) -> Array:
        """[n, 3] canonical mm → patient mm (fixed-point inverse)."""
        scale = np.asarray(self.scale, np.float32)
        guess = points * scale
        for _ in range(4):
            moved = at_points(self.displacement, guess)
            guess = ((points - moved) * scale).astype(np.float32)
        return guess

    def tube_ratio(self, tube: Tube, points: Array) -> Array:
        """[n] distance over radius of a tube as it is painted, roughness included, at points [n, 3] in patient mm."""
        ratio, where = tube.ratio(*self.canonical(points).T)
        radius = tube.radius(where)
        outer: Array = ratio + self.roughness.at(points) * np.minimum(1.6 / radius, _MOST_ROUGH)
        return outer

    def paint(self, grid: Grid) -> Painted:
        return _Painter(self, grid).run()

    def body(self, grid: Grid) -> NDArray[np.bool_]:
        """[x, y, z] where the patient is and not the air around."""
        return _Painter(self, grid).trunk_ratio() < 1.0


@dataclass
class Painted:
    """Arrays [x, y, z] on the grid."""

    labels: NDArray[np.uint8]
    tissue: NDArray[np.uint8]


Spots = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
"""Indices of voxels along x, y and z, as ``np.nonzero`` gives them."""
_MOST_ROUGH = 0.12
"""Largest share of a radius that one unit of roughness adds to a surface."""


class _Painter:
    """Lays parts onto a grid. Each is evaluated only where the patient's own displacement can bring it."""

    def __init__(self, anatomy: Anatomy, grid: Grid) -> None:
        self.a, self.grid = anatomy, grid
        x, y, z = (grid.axis(k) for k in range(3))
        u = [f.on_axes(x, y, z) for f in anatomy.displacement]
        s = anatomy.scale
        self.scale = np.asarray(s, np.float64)
        self.moved = np.array([[v.max(), v.min()] for v in u], np.float64)
        self.x = x[:, None, None] / np.float32(s[0]) + u[0]
        self.y = y[None, :, None] / np.float32(s[1]) + u[1]
        self.z = z[None, None, :] / np.float32(s[2]) + u[2]
        self.rough = anatomy.roughness.on_axes(x, y, z)
        self.roughest = float(np.abs(self.rough).max())
        self.labels = np.zeros(grid.shape, np.uint8)
        self.tissue = np.zeros(grid.shape, np.uint8)

    def run(self) -> Painted:
        self._trunk()
        for part in self.a.parts:
            if isinstance(part.shape, Tube):
                self._tube(part, part.shape)
            else:
                self._ellipsoid(part, part.shape)
        return Painted(self.labels, self.tissue)

    def trunk_ratio(self) -> Array:
        t = self.a.trunk
        flat = Ellipsoid(t.centre, (t.radii[0], t.radii[1], 1e9), power=t.power)
        return flat.ratio(self.x, self.y, self.z)

    def _trunk(self) -> None:
        ratio = self.trunk_ratio()
        inner = 1.0 - self.a.fat_share
        self.tissue[ratio < 1.0] = Tissue.FAT
        self.tissue[ratio < inner] = Tissue.MUSCLE
        cavity = ratio < inner - 0.085
        self.tissue[cavity] = Tissue.FAT
        self._lungs(ratio < inner - 0.06)

    def _lungs(self, thorax: NDArray[np.bool_]) -> None:
        right, left = self.a.dome_z
        top = np.where(self.x > 0, np.float32(right), np.float32(left))
        cx = np.where(self.x > 0, self.x - 78, self.x + 78)
        dome = top - (cx / 14) ** 2 - ((self.y - 5) / 13) ** 2 + 4 * self.rough
        lung = thorax & (self.z > dome) & (np.abs(self.x) > 18)
        anterior = self.y > 25
        for side, back, front in ((self.x > 0, 14, 13), (self.x <= 0, 11, 10)):
            self.labels[lung & side & ~anterior] = back
            self.labels[lung & side & anterior] = front
        self.tissue[lung] = Tissue.LUNG

    def _fill(self, part: Part, spots: Spots, ratio: Array, radius: Array | float) -> None:
        """Paint the voxels ``spots``; ``ratio`` (below 1) and ``radius`` in mm are given for each."""
        free = np.zeros(256, bool)
        free[slice(None) if 255 in part.over else list(part.over)] = True
        kept = (self.tissue[spots] != Tissue.AIR) & free[self.labels[spots]]
        spots, ratio = _only(spots, kept), ratio[kept]
        if isinstance(radius, np.ndarray):
            radius = radius[kept]
        self.labels[spots] = part.label
        self.tissue[spots] = part.tissue
        if part.rim is not None:
            self.tissue[_only(spots, ratio > 1.0 - 2.4 / radius)] = part.rim
        if part.wall_mm:
            lumen = _only(spots, ratio < 1.0 - part.wall_mm / radius)
            self.tissue[lumen] = part.lumen
            if part.gas_share > 0 and len(lumen[0]):
                height = self.y[lumen]
                level = np.quantile(height, 1 - part.gas_share)
                self.tissue[_only(lumen, height > level)] = Tissue.GAS

    def _ellipsoid(self, part: Part, shape: Ellipsoid) -> None:
        mean_radius = float(np.mean(shape.radii))
        roughness = min(2.2 / mean_radius * 2, 0.1)
        window = self._windows(np.array([shape.box]), max(shape.radii) * roughness * self.roughest)[0]
        if window is None:
            return
        ratio = shape.ratio(self.x[window], self.y[window], self.z[window]) + self.rough[window] * roughness
        inside = np.nonzero(ratio < 1.0)
        self._fill(part, _shifted(inside, window), ratio[inside], mean_radius)

    def _tube(self, part: Part, tube: Tube) -> None:
        swell = (1 + tube.haustra) * (1 + _MOST_ROUGH * self.roughest)
        radii = np.maximum(tube.path[:-1, 3], tube.path[1:, 3]).astype(np.float64)
        whole = np.stack([tube.boxes[:, :, 0].min(0), tube.boxes[:, :, 1].max(0)], axis=1)
        window = self._windows(whole[None], radii.max() * (swell - 1))[0]
        if window is None:
            return
        best = np.full(self.labels[window].shape, np.inf, np.float32)
        where = np.zeros_like(best)
        for k, local in enumerate(self._windows(tube.boxes, radii * (swell - 1))):
            if local is None:
                continue
            ratio, t = tube.segment_ratio(k, self.x[local], self.y[local], self.z[local])
            inside = tuple(
                slice(s.start - w.start, s.stop - w.start) for s, w in zip(local, window, strict=True)
            )
            view, place = best[inside], where[inside]
            closer = ratio < view
            np.copyto(view, ratio, where=closer)
            np.copyto(place, t, where=closer)
        near = np.nonzero(best < swell)
        spots, ratio = _shifted(near, window), best[near]
        radius = tube.radius(where[near])
        ratio = ratio + self.rough[spots] * np.minimum(1.6 / radius, _MOST_ROUGH)
        kept = ratio < 1.0
        self._fill(part, _only(spots, kept), ratio[kept], radius[kept])

    def _windows(self, boxes: NDArray[np.float64], reach: NDArray[np.float64] | float) -> list[Window | None]:
        """Voxels that canonical boxes [n, 3, 2], ``reach`` mm (of each) wider, can come to lie on."""
        wider = np.atleast_1d(np.asarray(reach) + 0.5)[:, None]
        wide = boxes + np.stack([-wider, wider], axis=2)
        return self.grid.windows((wide - self.moved) * self.scale[:, None])


def _only(spots: Spots, kept: NDArray[np.bool_]) -> Spots:
    x, y, z = spots
    return x[kept], y[kept], z[kept]


def _shifted(spots: tuple[NDArray[np.intp], ...], window: tuple[slice, slice, slice]) -> Spots:
    """Indices within a window as indices of the grid."""
    x, y, z = (index + part.start for index, part in zip(spots, window, strict=True))
    return x, y, z
