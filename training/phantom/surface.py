"""The surface of a lesion: an ellipsoid, with waves on it where it is lobulated or irregular.

Every ray from the centre meets it once, so that a lesion is one piece, and its largest diameter is the ellipsoid's,
so that it measures what the truth says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.shapes import Array, Ellipsoid, Rotation, Triple

_WAVES = {"lobulated": (1.9, 0.13), "irregular": (3.4, 0.2)}
"""Swings over the lesion's width, and their height as a share of the radius."""
_LEAST, _MOST = 0.5, 1.5
"""Bounds of the radius over the ellipsoid's."""


def rays(count: int) -> NDArray[np.float64]:
    """[count, 3] directions spread evenly over a sphere."""
    number = np.arange(count)
    turn, height = number * (np.pi * (3 - 5**0.5)), 1 - (number + 0.5) * 2 / count
    return np.stack([(1 - height**2) ** 0.5 * f(turn) for f in (np.cos, np.sin)] + [height], axis=1)


_RAYS, _DIRECTIONS = rays(900), rays(160).astype(np.float32)


@dataclass(frozen=True)
class Surface:
    """Around the origin, in mm."""

    radii_mm: Triple
    rotation: Rotation
    shape: str
    phase: Triple

    def ratio(self, dx: Array, dy: Array, dz: Array) -> Array:
        """Distance from the centre over that of the surface in the same direction; below 1 inside."""
        ratio = Ellipsoid((0.0, 0.0, 0.0), self.radii_mm, self.rotation).ratio(dx, dy, dz)
        if self.shape not in _WAVES:
            return ratio
        near: Array = np.maximum(ratio, np.float32(1e-3))
        bulge = self._bulge(dx / near, dy / near, dz / near)
        uneven: Array = (ratio / (bulge * np.float32(self.fit))).astype(np.float32)
        return uneven

    def along(self, directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n] distance of the surface from the centre in unit directions [n, 3]."""
        x, y, z = directions.astype(np.float32).T
        return 1 / self.ratio(x, y, z).astype(np.float64)

    @property
    def fit(self) -> float:
        """What the waves' radii are multiplied by to keep the largest diameter."""
        return _fit(self)[0]

    @property
    def volume_mm3(self) -> float:
        return float(4 / 3 * np.pi * np.prod(self.radii_mm)) * _fit(self)[1]

    def _bulge(self, x: Array, y: Array, z: Array) -> Array:
        """Radius over the ellipsoid's, at points of the ellipsoid."""
        swings, height = _WAVES[self.shape]
        bulge: Array = np.clip(
            1 - height * waves(self.phase, swings, max(self.radii_mm), x, y, z), _LEAST, _MOST
        )
        return bulge


def waves(phase: Triple, swings: float, radius_mm: float, x: Array, y: Array, z: Array) -> Array:
    """A field that swings so often over a width of two radii."""
    k = swings * np.pi / radius_mm
    a, b, c = phase
    wave: Array = (
        np.sin(k * x + a) * np.sin(k * y + b)
        + np.sin(k * y + c) * np.sin(k * z + a)
        + np.sin(k * z + b) * np.sin(k * x + c)
    )
    return wave


@lru_cache(maxsize=512)
def _fit(surface: Surface) -> tuple[float, float]:
    """(factor for the radii, volume over the ellipsoid's)."""
    if surface.shape not in _WAVES:
        return 1.0, 1.0
    plain: Array = ((_RAYS * surface.radii_mm) @ np.asarray(surface.rotation).T).astype(np.float32)
    bulge = surface._bulge(*plain.T)
    factor = _diameter(plain) / _diameter(plain * bulge[:, None])
    return factor, float(((bulge * factor) ** 3).mean())


def _diameter(points: Array) -> float:
    shadows = points @ _DIRECTIONS.T
    return float((shadows.max(axis=0) - shadows.min(axis=0)).max())
