"""Implicit shapes in canonical millimetres (RAS+), and the smooth field that makes every patient different.

A shape's *ratio* is below 1 inside it. Shapes are evaluated at canonical coordinates ``q = p + u(p)``, where
``p`` is the patient's position in mm and ``u`` a smooth random displacement, so that one list of shapes gives
anatomies whose organs differ in place, size and outline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Triple = tuple[float, float, float]
Rotation = tuple[Triple, ...]
"""The rows of a 3 × 3 matrix."""
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
Window = tuple[slice, slice, slice]


def triple(values: Iterable[float]) -> Triple:
    """Three numbers as Python floats."""
    x, y, z = (float(value) for value in values)
    return x, y, z


@dataclass(frozen=True)
class Grid:
    """An axis-aligned RAS+ voxel grid; ``origin`` is the centre of voxel (0, 0, 0), all in mm."""

    shape: tuple[int, int, int]
    spacing: Triple
    origin: Triple

    @property
    def affine(self) -> NDArray[np.float64]:
        """4 × 4, voxel index → mm."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = self.origin
        return affine

    @property
    def voxel_mm3(self) -> float:
        return float(np.prod(self.spacing))

    def axis(self, k: int) -> Array:
        """Voxel centres along axis ``k`` in mm."""
        return (self.origin[k] + self.spacing[k] * np.arange(self.shape[k])).astype(np.float32)

    def window(self, box: Box) -> Window | None:
        """Index slices that hold ``box`` (mm), or ``None`` when it lies outside the grid."""
        return self.windows(np.array([box]))[0]

    def windows(self, boxes: NDArray[np.float64]) -> list[Window | None]:
        """``window`` of each of ``boxes`` [n, 3, 2]."""
        places = (boxes - np.array(self.origin)[:, None]) / np.array(self.spacing)[:, None]
        first = np.maximum(np.floor(places[:, :, 0]).astype(int), 0)
        last = np.minimum(np.ceil(places[:, :, 1]).astype(int) + 1, self.shape)
        empty = (first >= last).any(axis=1)
        return [
            None if nothing else (slice(a[0], b[0]), slice(a[1], b[1]), slice(a[2], b[2]))
            for nothing, a, b in zip(empty, first.tolist(), last.tolist(), strict=True)
        ]


def _spline_weights(positions: Array, count: int, start: float, step: float) -> Array:
    """[n, count] cubic B-spline weights of ``count`` control points at ``start + i · step``."""
    t = np.abs((positions[:, None] - start) / step - np.arange(count, dtype=np.float32)[None, :])
    near = (4 - 6 * t**2 + 3 * t**3) / 6
    far = (2 - t) ** 3 / 6
    return np.where(t < 1, near, np.where(t < 2, far, 0.0)).astype(np.float32)


@dataclass(frozen=True)
class SmoothField:
    """A random scalar field on a cubic B-spline lattice that covers the trunk."""

    control: Array
    """[nx, ny, nz] control values."""
    start: Triple
    step: float

    @classmethod
    def random(cls, rng: np.random.Generator, step: float, amplitude: float) -> SmoothField:
        low, high = np.array([-260.0, -200.0, -180.0]), np.array([260.0, 200.0, 340.0])
        counts = np.ceil((high - low) / step).astype(int) + 4
        control = (amplitude * rng.standard_normal(tuple(counts))).astype(np.float32)
        begin = low - 1.5 * step
        return cls(control, triple(begin), step)

    def _weights(self, positions: Array, k: int) -> Array:
        return _spline_weights(positions, self.control.shape[k], self.start[k], self.step)

    def on_axes(self, x: Array, y: Array, z: Array) -> Array:
        """[nx, ny, nz] values on the product of three axes (mm)."""
        out = np.tensordot(self._weights(x, 0), self.control, axes=(1, 0))
        out = np.tensordot(out, self._weights(y, 1), axes=(1, 1))
        out = np.tensordot(out, self._weights(z, 2), axes=(1, 1))
        return np.ascontiguousarray(out, dtype=np.float32)

    def at(self, points: Array) -> Array:
        """[n] values at points [n, 3] in mm."""
        return at_points((self,), points)[:, 0]


def at_points(fields: Sequence[SmoothField], points: Array) -> Array:
    """[n, len(fields)] values of fields on one lattice, at points [n, 3] in mm."""
    wx, wy, wz = (fields[0]._weights(points[:, k].astype(np.float32), k) for k in range(3))
    values = np.empty((len(points), len(fields)), np.float32)
    for i, field in enumerate(fields):
        first = np.einsum("abc,na->nbc", field.control, wx)
        values[:, i] = np.einsum("nc,nc->n", np.einsum("nbc,nb->nc", first, wy), wz)
    return values


@dataclass(frozen=True)
class Ellipsoid:
    """Semi-axes ``radii`` in mm along the columns of ``rotation``; ``power`` 2 is an ellipsoid, more is boxier."""

    centre: Triple
    radii: Triple
    rotation: Rotation | None = None
    power: float = 2.0

    @cached_property
    def box(self) -> Box:
        reach = np.asarray(self.radii)
        if self.rotation is not None:
            turned = np.abs(np.asarray(self.rotation)) * reach
            reach = turned.sum(axis=1) if self.power > 2 else np.sqrt((turned**2).sum(axis=1))
        x, y, z = ((float(c - r), float(c + r)) for c, r in zip(self.centre, reach, strict=True))
        return x, y, z

    def ratio(self, x: Array, y: Array, z: Array) -> Array:
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        if self.rotation is not None:
            m = np.asarray(self.rotation, dtype=np.float32)
            dx, dy, dz = (m[0, k] * dx + m[1, k] * dy + m[2, k] * dz for k in range(3))
        dx, dy, dz = dx / self.radii[0], dy / self.radii[1], dz / self.radii[2]
        ratio: Array
        if self.power == 2.0:
            ratio = np.sqrt(dx * dx + dy * dy + dz * dz)
        else:
            p = self.power
            ratio = (np.abs(dx) ** p + np.abs(dy) ** p + np.abs(dz) ** p) ** (1.0 / p)
        return ratio


@dataclass(frozen=True)
class Tube:
    """A swept sphere along a smooth path; ``points`` [n, 4] are x, y, z, radius in mm."""

    points: Array
    segments: int = 24
    haustra: float = 0.0
    """Relative depth of the rings that make a colon look like one."""

    @cached_property
    def path(self) -> Array:
        """[segments + 1, 4] evenly spaced in the path's own parameter (0 at the start, 1 at the end)."""
        return self.along(np.linspace(0.0, 1.0, self.segments + 1))

    def along(self, t: NDArray[np.float64]) -> Array:
        """[len(t), 4] centre line and radius by Catmull–Rom interpolation."""
        p = self.points
        ext = np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
        s = np.clip(t, 0, 1) * (len(p) - 1)
        i = np.minimum(s.astype(int), len(p) - 2)
        f = (s - i)[:, None]
        a, b, c, d = ext[i], ext[i + 1], ext[i + 2], ext[i + 3]
        out = 0.5 * (2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * (b - c) + d - a) * f**3)
        out[:, 3] = np.maximum(out[:, 3], 1.0)
        line: Array = out.astype(np.float32)
        return line

    def radius(self, where: Array) -> Array:
        """Radius in mm at parameters of the path, rings left out."""
        return np.interp(where, np.linspace(0, 1, self.segments + 1), self.path[:, 3]).astype(np.float32)

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """[segments, 3, 2] lowest and highest coordinate of each segment, with its radius."""
        ends = np.stack([self.path[:-1], self.path[1:]]).astype(np.float64)
        radius = ends[..., 3].max(axis=0)[:, None]
        return np.stack([ends[..., :3].min(axis=0) - radius, ends[..., :3].max(axis=0) + radius], axis=2)

    def segment_ratio(self, k: int, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """Distance over radius to segment ``k``, and the path parameter of the nearest point."""
        a, b = self.path[k], self.path[k + 1]
        v = b[:3] - a[:3]
        length2 = float(v @ v) + 1e-6
        dx, dy, dz = x - a[0], y - a[1], z - a[2]
        f = np.clip((dx * v[0] + dy * v[1] + dz * v[2]) / length2, 0.0, 1.0)
        dx, dy, dz = dx - f * v[0], dy - f * v[1], dz - f * v[2]
        radius = a[3] + f * (b[3] - a[3])
        t = (k + f) / self.segments
        if self.haustra:
            radius = radius * (1 + self.haustra * np.sin(t * self.segments * 2.2))
        return (np.sqrt(dx * dx + dy * dy + dz * dz) / radius).astype(np.float32), t.astype(np.float32)

    def ratio(self, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
        """The same over the whole path, for points anywhere."""
        best = np.full(np.broadcast(x, y, z).shape, np.inf, np.float32)
        where = np.zeros_like(best)
        for k in range(self.segments):
            ratio, t = self.segment_ratio(k, x, y, z)
            closer = ratio < best
            best, where = np.where(closer, ratio, best), np.where(closer, t, where)
        return best, where


def random_rotation(rng: np.random.Generator, max_degrees: float) -> Rotation:
    """A rotation matrix by three small random angles."""
    a, b, c = np.radians(rng.uniform(-max_degrees, max_degrees, 3))
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return tuple(triple(row) for row in rz @ ry @ rx)
