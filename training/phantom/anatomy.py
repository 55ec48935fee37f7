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
    Box,
    Ellipsoid,
    Grid,
    SmoothField,
    Triple,
    Tube,
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
        moved = np.stack([f.at(points) for f in self.displacement], axis=1)
        return (points / np.asarray(self.scale, np.float32) + moved).astype(np.float32)

    def patient(self, points: Array) -> Array:
        """[n, 3] canonical mm → patient mm (fixed-point inverse)."""
        scale = np.asarray(self.scale, np.float32)
        guess = points * scale
        for _ in range(4):
            moved = np.stack([f.at(guess) for f in self.displacement], axis=1)
            guess = ((points - moved) * scale).astype(np.float32)
        return guess

    def paint(self, grid: Grid) -> Painted:
        return _Painter(self, grid).run()


@dataclass
class Painted:
    """Arrays [x, y, z] on the grid."""

    labels: NDArray[np.uint8]
    tissue: NDArray[np.uint8]


class _Painter:
    def __init__(self, anatomy: Anatomy, grid: Grid) -> None:
        self.a, self.grid = anatomy, grid
        x, y, z = (grid.axis(k) for k in range(3))
        u = [f.on_axes(x, y, z) for f in anatomy.displacement]
        s = anatomy.scale
        self.x = x[:, None, None] / np.float32(s[0]) + u[0]
        self.y = y[None, :, None] / np.float32(s[1]) + u[1]
        self.z = z[None, None, :] / np.float32(s[2]) + u[2]
        self.rough = anatomy.roughness.on_axes(x, y, z)
        self.labels = np.zeros(grid.shape, np.uint8)
        self.tissue = np.zeros(grid.shape, np.uint8)
        self.margin = 26.0

    def run(self) -> Painted:
        self._trunk()
        for part in self.a.parts:
            if isinstance(part.shape, Tube):
                self._tube(part, part.shape)
            else:
                self._ellipsoid(part, part.shape)
        return Painted(self.labels, self.tissue)

    def _trunk(self) -> None:
        a, t = self.a, self.a.trunk
        flat = Ellipsoid(t.centre, (t.radii[0], t.radii[1], 1e9), power=t.power)
        ratio = flat.ratio(self.x, self.y, self.z)
        inner = 1.0 - a.fat_share
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

    def _fill(self, part: Part, window: tuple[slice, ...], ratio: Array, radius: Array | float) -> None:
        labels, tissue = self.labels[window], self.tissue[window]
        inside = (ratio < 1.0) & (tissue != Tissue.AIR)
        if 255 not in part.over:
            inside &= np.isin(labels, part.over)
        labels[inside] = part.label
        tissue[inside] = part.tissue
        if part.rim is not None:
            tissue[inside & (ratio > 1.0 - 2.4 / radius)] = part.rim
        if part.wall_mm:
            lumen = inside & (ratio < 1.0 - part.wall_mm / radius)
            tissue[lumen] = part.lumen
            if part.gas_share > 0:
                height = self.y[window]
                level = np.quantile(height[lumen], 1 - part.gas_share) if lumen.any() else np.inf
                tissue[lumen & (height > level)] = Tissue.GAS

    def _ellipsoid(self, part: Part, shape: Ellipsoid) -> None:
        window = self.grid.window(self._patient_box(shape.box), self.margin)
        if window is None:
            return
        x, y, z = self.x[window], self.y[window], self.z[window]
        mean_radius = float(np.mean(shape.radii))
        ratio = shape.ratio(x, y, z) + self.rough[window] * min(2.2 / mean_radius * 2, 0.1)
        self._fill(part, window, ratio, mean_radius)

    def _tube(self, part: Part, tube: Tube) -> None:
        window = self.grid.window(self._patient_box(_around(tube)), self.margin)
        if window is None:
            return
        best = np.full(self.labels[window].shape, np.inf, np.float32)
        where = np.zeros_like(best)
        for k in range(tube.segments):
            local = self.grid.window(self._patient_box(tube.segment_box(k)), 20.0)
            if local is None:
                continue
            ratio, t = tube.segment_ratio(k, self.x[local], self.y[local], self.z[local])
            inside = tuple(
                slice(s.start - w.start, s.stop - w.start) for s, w in zip(local, window, strict=True)
            )
            view, place = best[inside], where[inside]
            closer = ratio < view
            view[closer], place[closer] = ratio[closer], t[closer]
        radius = np.interp(where, np.linspace(0, 1, tube.segments + 1), tube.path[:, 3]).astype(np.float32)
        best = best + self.rough[window] * np.minimum(1.6 / radius, 0.12)
        self._fill(part, window, best, radius)

    def _patient_box(self, box: Box) -> Box:
        s = self.a.scale
        x, y, z = ((low * s[k], high * s[k]) for k, (low, high) in enumerate(box))
        return x, y, z


def _around(tube: Tube) -> Box:
    """The box around all segments; the window over it holds each segment's own, whose margin is smaller."""
    boxes = np.array([tube.segment_box(k) for k in range(tube.segments)])
    x, y, z = ((float(boxes[:, i, 0].min()), float(boxes[:, i, 1].max())) for i in range(3))
    return x, y, z
