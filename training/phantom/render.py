"""From tissues and lesions to Hounsfield units: contrast phase, texture, partial volume, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tumorchain_agent.training.phantom.anatomy import Painted, Tissue
from tumorchain_agent.training.phantom.lesions import SOLID
from tumorchain_agent.training.phantom.shapes import Array, Grid, SmoothField
from tumorchain_agent.training.phantom.stamps import Stamp

PHASES = ("non-contrast", "arterial", "portal venous", "delayed")

_HU: dict[Tissue, tuple[float, float, float, float]] = {
    Tissue.AIR: (-1000, -1000, -1000, -1000),
    Tissue.FAT: (-102, -100, -98, -98),
    Tissue.MUSCLE: (52, 58, 64, 66),
    Tissue.LUNG: (-845, -835, -830, -832),
    Tissue.CORTEX: (560, 565, 570, 570),
    Tissue.MARROW: (170, 180, 190, 188),
    Tissue.CORD: (34, 36, 38, 38),
    Tissue.LIVER: (56, 68, 108, 94),
    Tissue.SPLEEN: (47, 112, 118, 98),
    Tissue.PANCREAS: (40, 100, 92, 78),
    Tissue.KIDNEY: (32, 135, 172, 165),
    Tissue.BILE: (7, 8, 8, 9),
    Tissue.ADRENAL: (14, 58, 70, 48),
    Tissue.ARTERY: (42, 310, 165, 122),
    Tissue.VEIN: (42, 66, 148, 124),
    Tissue.PORTAL: (43, 92, 172, 128),
    Tissue.HEART: (44, 190, 152, 122),
    Tissue.WALL: (38, 62, 84, 78),
    Tissue.GAS: (-930, -930, -930, -930),
    Tissue.FLUID: (10, 12, 12, 12),
    Tissue.STOOL: (28, 28, 28, 28),
    Tissue.CHYME: (18, 22, 26, 26),
    Tissue.CYST: (8, 8, 8, 8),
    Tissue.CALCIUM: (420, 420, 420, 420),
}
"""Typical attenuation per phase; the spread between patients is drawn in ``Appearance.sample``."""

_WALL_TUMOR = (44.0, 78.0, 92.0, 86.0)
_NODE = (38.0, 62.0, 78.0, 74.0)
_EXUDATE = 12.0
_PSEUDOCYST_WALL_MM = 3.0
REFERENCE_VOXEL_MM3 = 1.5 * 1.5 * 5.0
_SLAB = 8
"""Planes that are smoothed at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Appearance:
    """How a patient looks: drawn once, whatever the grid."""

    phase: str
    table: tuple[float, ...]
    """HU per ``Tissue``."""
    texture: SmoothField
    texture_hu: float
    noise_hu: float
    """Standard deviation at ``REFERENCE_VOXEL_MM3``."""
    noise_seed: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Appearance:
        phase = int(rng.choice(4, p=(0.2, 0.2, 0.45, 0.15)))
        base = np.array([_HU[t][phase] for t in Tissue])
        spread = np.where(np.abs(base) < 250, 5.0, 12.0)
        enhancing = np.array([max(_HU[t][phase] - _HU[t][0], 0.0) for t in Tissue])
        table = base + rng.normal(0, spread) + enhancing * rng.normal(0, 0.12)
        table[Tissue.AIR] = -1000.0
        table[Tissue.STOOL] += rng.uniform(-60, 60)
        texture = SmoothField.random(rng, 16.0, 1.0)
        return cls(
            PHASES[phase],
            tuple(map(float, table)),
            texture,
            float(rng.uniform(3, 8)),
            float(rng.uniform(8, 15)),
            int(rng.integers(2**31)),
        )

    def lesion_hu(self, mark: Stamp, host_hu: float) -> Array | float:
        """HU of a lesion's substance, over its window."""
        phase = PHASES.index(self.phase)
        lesion = mark.lesion
        if lesion.kind == "cyst":
            return lesion.delta_hu
        if lesion.kind == "pseudocyst":
            wall = np.clip((mark.ratio - 1) * max(lesion.radii_mm) / _PSEUDOCYST_WALL_MM + 1.5, 0, 1)
            walled: Array = (lesion.delta_hu * (1 - wall) + _WALL_TUMOR[phase] * wall).astype(np.float32)
            return walled
        if mark.stranded is not None:
            return np.where(mark.stranded, _EXUDATE, host_hu + lesion.delta_hu).astype(np.float32)
        if lesion.kind == "node" or lesion.organ in ("lung", "peritoneum"):
            return _NODE[phase] + lesion.delta_hu
        solid = lesion.organ in SOLID
        hu = host_hu + lesion.delta_hu if solid else _WALL_TUMOR[phase] + 0.35 * lesion.delta_hu
        if lesion.density == "heterogeneous":
            necrosis = np.clip((0.62 - mark.ratio) / 0.25, 0, 1)
            substance: Array = (hu * (1 - necrosis) + 14.0 * necrosis).astype(np.float32)
            return substance
        return hu


@dataclass(frozen=True)
class Sampling:
    """How a coarse grid was come by: a resampled scan mixes neighbours, and its noise with them.

    Training draws it anew for every sample, so that the encoder doesn't learn one scanner's sharpness.
    """

    mix: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Weight of either neighbour along x, y, z; 1/8 is a mean over a voxel's width."""
    noise: float = 1.0
    """Factor on the standard deviation."""
    noise_mix: float = 0.0
    """Weight of either neighbour in the noise, in-plane."""

    @classmethod
    def random(cls, rng: np.random.Generator) -> Sampling:
        mix = tuple(float(v) for v in rng.uniform(0.0, 0.2, 3))
        return cls(mix, float(rng.uniform(0.4, 1.6)), float(rng.uniform(0.0, 0.15)))  # type: ignore[arg-type]


def render(
    painted: Painted, marks: list[Stamp], look: Appearance, grid: Grid, sampling: Sampling | None = None
) -> Array:
    """[x, y, z] float32 HU. Same patient, grid and sampling: the same values to the bit."""
    table = np.asarray(look.table, np.float32)
    hu = table[painted.tissue]
    x, y, z = (grid.axis(k) for k in range(3))
    soft = (painted.tissue != Tissue.AIR) & (painted.tissue != Tissue.GAS)
    hu += np.float32(look.texture_hu) * look.texture.on_axes(x, y, z) * soft
    for mark in marks:
        host = {"liver": Tissue.LIVER, "pancreas": Tissue.PANCREAS}.get(mark.lesion.organ, Tissue.WALL)
        substance = look.lesion_hu(mark, float(table[host]))
        view = hu[mark.window]
        view += mark.alpha * (substance - view)
    hu = _blur(hu, grid)
    if sampling is None:
        return hu + _noise(look, grid)
    noise = np.float32(sampling.noise) * _noise(look, grid)
    return _mixed(hu, sampling.mix) + _mixed(noise, (sampling.noise_mix, sampling.noise_mix, 0.0))


def _mixed(values: Array, weights: tuple[float, float, float]) -> Array:
    """Each voxel with a share of its two neighbours along every axis; edges repeat."""
    for axis, weight in enumerate(weights):
        if weight > 0:
            mixed = np.empty_like(values)
            across = 1 if axis == 0 else 0
            for first in range(0, values.shape[across], _SLAB):
                slab = (slice(None),) * across + (slice(first, first + _SLAB),)
                mixed[slab] = _smoothed(values[slab], weight, axis)
            values = mixed
    return values


def _smoothed(values: Array, weight: float, axis: int) -> NDArray[np.float64]:
    """A kernel of three along one axis, in double precision."""
    weight, own = map(float, np.array([weight, 1 - 2 * weight], np.float32))
    here = values.astype(np.float64)
    lines = here.swapaxes(0, axis)
    beside = np.empty_like(here)
    sums = beside.swapaxes(0, axis)
    np.add(lines[:-2], lines[2:], out=sums[1:-1])
    np.add(lines[0], lines[min(1, len(lines) - 1)], out=sums[0])
    np.add(lines[max(len(lines) - 2, 0)], lines[-1], out=sums[-1])
    beside *= weight
    here *= own
    here += beside
    return here


def _blur(hu: Array, grid: Grid) -> Array:
    """Scanner's point spread: σ 0.8 mm in plane; grids coarser than that keep their own partial volume."""
    for axis in (0, 1):
        sigma = 0.8 / grid.spacing[axis]
        if sigma > 0.3:
            hu = ndimage.gaussian_filter1d(hu, sigma, axis=axis, truncate=2.0, output=np.float32)
    return hu


def _noise(look: Appearance, grid: Grid) -> Array:
    """White noise whose power falls with the voxel's volume, as in a resampled scan."""
    rng = np.random.Generator(np.random.SFC64(look.noise_seed))
    sd = look.noise_hu * min((REFERENCE_VOXEL_MM3 / grid.voxel_mm3) ** 0.5, 1.6)
    return np.float32(sd) * rng.standard_normal(grid.shape, dtype=np.float32)


def to_stored(hu: Array) -> NDArray[np.int16]:
    """Rounded to whole HU and clipped to a scanner's range, as a CT file holds it."""
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
