"""Mass effect: a tumour that pushes its neighbours aside without growing into them.

Material between the lesion's core and its surface is moved outward along rays from its centre, ever less up to
``REACH`` times its radius, in label map and tissue alike; bones, muscles, arteries, heart and air stay. Where an
uneven lesion leaves a gap to what it pushed, there is fat.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Painted, Tissue
from tumorchain_agent.training.phantom.lesions import SOLID, Lesion
from tumorchain_agent.training.phantom.shapes import Array, Grid, Window
from tumorchain_agent.training.phantom.stamps import CONTINUOUS, lesion_ratio, lesion_window, stamp

NEIGHBOURS = (1, 2, 3, 4, 5, 6, 7, 18, 19, 20)
"""TotalSegmentator ids of organs that can be pushed aside: spleen, kidneys, gallbladder, liver, the gut."""
PUSHED_MM3 = 400.0
"""An organ is compressed when at least this much of it made room."""
MOST_PUSHED = 0.35
"""Largest part of an organ that may have to make room; a gallbladder isn't swallowed."""
REACH = 2.0
CORE = 0.4
"""Solid organs: share of the lesion's radius within which tissue is replaced and not pushed."""
_FIXED = (
    Tissue.AIR,
    Tissue.MUSCLE,
    Tissue.CORTEX,
    Tissue.MARROW,
    Tissue.CORD,
    Tissue.ARTERY,
    Tissue.HEART,
)
_FLESH = {"liver": Tissue.LIVER, "pancreas": Tissue.PANCREAS}
_RIM = 0.8
"""Gaps nearer to the centre than this are the host's flesh and not fat."""
_SWELL = {"round": 1.0, "lobulated": 1.06, "irregular": 1.1}
"""Radius of the smooth body that pushes, over the lesion's."""
_MOVES = np.ones(256, bool)
_MOVES[list(_FIXED)] = False
_IS_NEIGHBOUR = np.zeros(256, bool)
_IS_NEIGHBOUR[list(NEIGHBOURS)] = True


def contact(lesion: Lesion, painted: Painted, grid: Grid) -> tuple[float, float]:
    """Shares of a lesion's volume that lie in organs which it could push, and in its own organ or fat."""
    window = lesion_window(lesion, grid, 1.5)
    if window is None:
        return 0.0, 0.0
    full = lesion_ratio(lesion, grid, window) < 1
    labels = painted.labels[window][full]
    expected = max(len(labels), lesion.surface.volume_mm3 / grid.voxel_mm3, 1.0)
    host = labels == ORGAN_IDS[lesion.organ]
    free = host | ((labels == 0) & (painted.tissue[window][full] == Tissue.FAT))
    return float((_IS_NEIGHBOUR[labels] & ~host).sum()) / expected, float(free.sum()) / expected


def push(lesion: Lesion, painted: Painted, grid: Grid, *, known: bool = False) -> tuple[int, ...]:
    """Push neighbours aside, in place; the ids of those that gave way. Nothing is changed where none does.

    Also nothing is changed when the lesion would still not find room, or its centre is outside the grid. With
    ``known`` the lesion is one that pushed in the whole patient: on a grid of a part, all that can give way does.
    """
    window = lesion_window(lesion, grid, REACH)
    middle = (np.asarray(lesion.centre_mm) - grid.origin) / grid.spacing
    if window is None or not ((middle >= 0) & (middle <= np.array(grid.shape) - 1)).all():
        return ()
    host = ORGAN_IDS[lesion.organ]
    swell = _SWELL[lesion.shape] * lesion.surface.fit
    ratio = lesion_ratio(replace(lesion, shape="round"), grid, window) / np.float32(swell)
    labels, tissue = painted.labels[window].copy(), painted.tissue[window].copy()
    given = np.bincount(labels[(ratio < 1) & _IS_NEIGHBOUR[labels]], minlength=256) * grid.voxel_mm3
    given[[host, *CONTINUOUS.get(lesion.organ, ())]] = 0
    pushed = tuple(int(number) for number in np.flatnonzero(given >= PUSHED_MM3))
    whole = np.bincount(painted.labels.ravel(), minlength=256) * grid.voxel_mm3
    if not known and (not pushed or any(given[number] > MOST_PUSHED * whole[number] for number in pushed)):
        return ()
    _move(lesion, painted, window, ratio, middle)
    mark = stamp(lesion, painted, grid)
    if not known and (mark is None or not mark.roomy):
        painted.labels[window], painted.tissue[window] = labels, tissue
        return ()
    return pushed


def _move(
    lesion: Lesion, painted: Painted, window: Window, ratio: Array, middle: NDArray[np.float64]
) -> None:
    host, solid = ORGAN_IDS[lesion.organ], lesion.organ in SOLID
    core = CORE if solid else max(1 - lesion.reach_mm / min(lesion.radii_mm), 0.2)
    labels, tissue = painted.labels[window], painted.tissue[window]
    spots = np.nonzero((ratio >= 1) & (ratio < REACH) & _MOVES[tissue] & (solid | (labels != host)))
    near = ratio[spots]
    source = (near - (1 - core) * ((REACH - near) / (REACH - 1)) ** 2) / near
    where = tuple(
        np.rint(m + (spot + part.start - m) * source).astype(np.intp)
        for spot, part, m in zip(spots, window, middle, strict=True)
    )
    new_labels, new_tissue = painted.labels[where], painted.tissue[where]
    if not solid:
        wall = new_labels == host
        new_labels[wall], new_tissue[wall] = 0, Tissue.FAT
    moved = _MOVES[new_tissue]
    inside = (ratio < 1) & _IS_NEIGHBOUR[labels] & (labels != host)
    labels[tuple(spot[moved] for spot in spots)] = new_labels[moved]
    tissue[tuple(spot[moved] for spot in spots)] = new_tissue[moved]
    labels[inside], tissue[inside] = 0, Tissue.FAT
    pockets = inside & (ratio < _RIM)
    labels[pockets], tissue[pockets] = host, _FLESH.get(lesion.organ, Tissue.WALL)
