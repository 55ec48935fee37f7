"""Lesions on a grid: which voxels each covers, and what of its surroundings it may grow into."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Painted, Tissue
from tumorchain_agent.training.phantom.categories import THROUGH_MM
from tumorchain_agent.training.phantom.lesions import SOLID, Lesion
from tumorchain_agent.training.phantom.shapes import Array, Grid, Window
from tumorchain_agent.training.phantom.surface import waves

INVADED_MM3 = 200.0
"""A tumour invades an organ when it takes up at least this much of it; less can't be seen."""
INVADABLE = (1, 5, 6, 7, 18, 19, 20, 52)
"""TotalSegmentator ids that a wall tumour can grow into: soft organs of the abdomen and the aorta."""
CONTINUOUS: dict[str, tuple[int, ...]] = {"stomach": (15, 19), "esophagus": (6,)}
"""Along the digestive tube a tumour spreads within the wall, which AJCC 8 doesn't count as invasion (T4b)."""
_SOFTNESS = {"well-defined": 0.03, "ill-defined": 0.14, "diffuse": 0.2}
_STRANDING = 0.7
"""Largest share of the fat around an inflamed pancreas that fluid takes."""


@dataclass
class Stamp:
    """A lesion on a grid: ``alpha`` in 0..1 over ``window``; ``ratio`` is below 1 inside."""

    lesion: Lesion
    window: Window
    alpha: Array
    ratio: Array
    invaded: tuple[int, ...]
    """TotalSegmentator ids of other organs that it grows into."""
    share: float
    """Part of its volume that found room."""
    compressed: tuple[int, ...] = ()
    """Ids of other organs that it pushes aside."""
    stranded: NDArray[np.bool_] | None = None
    """Pancreatitis: fat around the gland that it soaks."""

    @property
    def roomy(self) -> bool:
        """Whether it found so much room that it is kept."""
        return self.share >= {"tumor": 0.5, "pancreatitis": 0.35}.get(self.lesion.kind, 0.6)


def lesion_window(lesion: Lesion, grid: Grid, reach: float) -> Window | None:
    """Voxels up to ``reach`` times the largest radius from the centre."""
    (cx, cy, cz), r = lesion.centre_mm, max(lesion.radii_mm) * reach
    return grid.window(((cx - r, cx + r), (cy - r, cy + r), (cz - r, cz + r)))


def lesion_ratio(lesion: Lesion, grid: Grid, window: Window) -> Array:
    """[x, y, z] distance from the centre over the distance of the surface, waves included."""
    x, y, z = (axis - np.float32(c) for axis, c in zip(_axes(grid, window), lesion.centre_mm, strict=True))
    return lesion.surface.ratio(x, y, z)


def _axes(grid: Grid, window: Window) -> tuple[Array, Array, Array]:
    x, y, z = (grid.axis(k)[window[k]] for k in range(3))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def room(
    lesion: Lesion, labels: NDArray[np.uint8], tissue: NDArray[np.uint8], grid: Grid
) -> NDArray[np.bool_]:
    """Voxels that a lesion may take."""
    fat: NDArray[np.bool_] = (labels == 0) & (tissue == Tissue.FAT)
    if lesion.kind == "node" or lesion.organ == "peritoneum":
        return fat
    if lesion.organ == "lung":
        lung: NDArray[np.bool_] = tissue == Tissue.LUNG
        return lung
    host: NDArray[np.bool_] = labels == ORGAN_IDS[lesion.organ]
    if lesion.kind in ("cyst", "pancreatitis"):
        return host
    if lesion.reach_mm >= THROUGH_MM and lesion.organ not in SOLID and not lesion.compressing:
        return host | fat | np.isin(labels, INVADABLE)
    if lesion.organ not in SOLID and lesion.reach_mm < THROUGH_MM:
        half = min(grid.spacing) / 2
        fat &= ndimage.distance_transform_edt(~host, grid.spacing) <= lesion.reach_mm + half
    return host | fat


def stamp(lesion: Lesion, painted: Painted, grid: Grid) -> Stamp | None:
    """Lay a lesion onto a grid without changing it; ``None`` when its centre is outside."""
    window = lesion_window(lesion, grid, 1.5)
    if window is None:
        return None
    ratio = lesion_ratio(lesion, grid, window)
    labels, tissue = painted.labels[window], painted.tissue[window]
    allowed = room(lesion, labels, tissue, grid)
    full = ratio < 1
    expected = max(float(full.sum()), lesion.surface.volume_mm3 / grid.voxel_mm3)
    share = float((full & allowed).sum()) / max(expected, 1.0)
    opacity = 1 / (1 + np.exp(np.clip((ratio - 1) / _SOFTNESS[lesion.boundary], -30, 30)))
    alpha = np.where(allowed, opacity, 0).astype(np.float32)
    mark = Stamp(lesion, window, alpha, ratio, (), share)
    if lesion.kind == "tumor":
        mark.invaded = _invaded(lesion, labels[full & allowed], grid)
    if lesion.kind == "pancreatitis":
        _strand(mark, (labels == 0) & (tissue == Tissue.FAT), _axes(grid, window))
    return mark


def _invaded(lesion: Lesion, taken: NDArray[np.uint8], grid: Grid) -> tuple[int, ...]:
    counts = np.bincount(taken, minlength=256) * grid.voxel_mm3
    counts[[0, ORGAN_IDS[lesion.organ], *CONTINUOUS.get(lesion.organ, ())]] = 0
    return tuple(int(number) for number in np.flatnonzero(counts >= INVADED_MM3))


def _strand(mark: Stamp, fat: NDArray[np.bool_], axes: tuple[Array, Array, Array]) -> None:
    """Streaks of fluid in the fat that fade out from the gland."""
    lesion = mark.lesion
    streaks = np.clip(0.5 + 0.8 * waves(lesion.phase, 5.0, max(lesion.radii_mm), *axes), 0, 1)
    soaked = np.clip((2.3 - mark.ratio) / 1.3, 0, 1) * (0.25 + 0.75 * streaks) * _STRANDING
    mark.alpha = np.where(fat, soaked, mark.alpha).astype(np.float32)
    mark.stranded = fat


def apply_labels(mark: Stamp, painted: Painted) -> None:
    """A tumour belongs to its organ's mask, as in TotalSegmentator; nodes and deposits stay unlabelled."""
    lesion = mark.lesion
    if lesion.kind in ("node", "pancreatitis") or lesion.organ not in ORGAN_IDS:
        return
    labels = painted.labels[mark.window]
    inside = (mark.ratio < 1) & (mark.alpha > 0.5) & np.isin(labels, (0, ORGAN_IDS[lesion.organ]))
    labels[inside] = ORGAN_IDS[lesion.organ]


def marked(mark: Stamp) -> NDArray[np.bool_]:
    """Voxels of the window that are the lesion's."""
    inside: NDArray[np.bool_] = (mark.ratio < 1) & (mark.alpha > 0.5)
    if mark.stranded is not None:
        inside &= ~mark.stranded
    return inside
