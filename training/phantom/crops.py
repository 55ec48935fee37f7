"""Organs of a phantom at higher resolution: scanned anew around the organ, then cropped as a user's scan is.

A plan can be realised on any grid. It is realised on a scanner's, around the organ alone, and the product's own code
makes the crop of it: so a crop has the slice thickness, blur and noise that a crop of a scan has. A pooled anatomy
that is resampled instead costs about half as much, and has the pool's steps where the organs' surfaces should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.tools import grid as grids
from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.preprocess import Preprocessing, volume_of
from tumorchain_agent.tools.roi import Coverage, covered_cells, organ_coverage
from tumorchain_agent.tools.scan import ct_from_array
from tumorchain_agent.tools.zoom import Box, Zoom, crop_box, organ_box
from tumorchain_agent.training.phantom.anatomy import Painted
from tumorchain_agent.training.phantom.compression import push
from tumorchain_agent.training.phantom.lesions import Lesion
from tumorchain_agent.training.phantom.patient import Case
from tumorchain_agent.training.phantom.render import Sampling, render
from tumorchain_agent.training.phantom.shapes import Array, Grid, triple
from tumorchain_agent.training.phantom.stamps import Stamp, apply_labels, marked, stamp
from tumorchain_agent.training.phantom.volume import PIXELS, SLICES, to_model_axes

SCANNERS: tuple[tuple[float, float], ...] = ((1.2, 1.7), (1.2, 1.7), (3.5, 6.0))
"""Least and largest voxel of a scan along x, y, z in mm; a written phantom's (1.5, 1.5, 5) lies between."""
MARGINS_MM = (-6.0, 6.0)
"""By how much a training crop's margin differs from the usual: segmentations differ as well."""
SHIFT_MM = 4.0
_IDS = {name: key for key, name in TABLE.items()}


@dataclass(frozen=True, eq=False)
class PhantomCrop:
    """An organ's crop at nano's resolution, half of the model volume's in-plane."""

    organ: str
    case: Case
    volume: Array
    """[32, 128, 128] in [0, 1]: the means over 2 × 2 pixels of the model volume."""
    coverage: Coverage
    """[57, 8, 16, 16] by Table 10 id."""
    lesion_index: NDArray[np.uint8]
    """[32, 128, 128]: 0 none, i + 1 for ``case.lesions[i]``."""
    box: Box
    """Field of view in mm."""

    @property
    def side_mm(self) -> float:
        """Width of the field of view in-plane."""
        return float(self.box[1][0] - self.box[0][0])

    @property
    def own_coverage(self) -> Coverage:
        """[8, 16, 16]: the organ's own."""
        own: Coverage = self.coverage[_IDS[self.organ]]
        return own


def crop_case(
    case: Case, organ: str, zoom: Zoom, rng: np.random.Generator | None = None
) -> PhantomCrop | None:
    """An organ of a patient, with the lesions that the patient has there; ``None`` when it isn't in the scan.

    ``rng`` draws the scanner's voxels and where exactly the crop lies; without it they are the usual ones.
    """
    found = organ_box(case.labels, case.grid.affine, organ)
    if found is None:
        return None
    seen, scan = _seen_and_scan(case)
    if rng is not None:
        zoom = zoom.model_copy(
            update={"margin_mm": max(zoom.margin_mm + float(rng.uniform(*MARGINS_MM)), 0.0)}
        )
        shift = rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
        found = found[0] + np.minimum(shift, 0), found[1] + np.maximum(shift, 0)
    preparation = Preprocessing()
    box = crop_box(found, scan, seen, zoom, preparation)
    if box is None:
        return None
    local = _scanner_grid((np.maximum(box[0], scan[0]), np.minimum(box[1], scan[1])), rng)
    painted = case.plan.anatomy.paint(local)
    marks, index = _laid(case.lesions, painted, local)
    noise = Sampling(noise=float(rng.uniform(0.7, 1.3))) if rng is not None else None
    hu = render(painted, marks, case.plan.look, local, noise)
    model = volume_of(ct_from_array(hu, local.affine), *box, preparation)
    coverage = organ_coverage(painted.labels, local.affine, model)
    crop = PhantomCrop(organ, case, _halved(model.volume[0]), coverage, _resampled(index, local, box), box)
    return crop if len(covered_cells(crop.own_coverage)) else None


def _seen_and_scan(case: Case) -> tuple[Box, Box]:
    """The whole's field of view, and where there are slices."""
    seen = grids.world_bbox(case.grid.affine, case.grid.shape)
    low, high = seen[0].copy(), seen[1].copy()
    low[2] = max(low[2], case.plan.z_range_mm[0])
    high[2] = min(high[2], case.plan.z_range_mm[1])
    return seen, (low, high)


def _scanner_grid(box: Box, rng: np.random.Generator | None) -> Grid:
    """Voxels whose faces begin at the box's lowest corner; the last ones reach beyond it by less than a voxel."""
    low, high = box
    ends = np.array(SCANNERS)
    size = np.array([1.5, 1.5, 5.0]) if rng is None else rng.uniform(ends[:, 0], ends[:, 1])
    count = np.maximum(np.round((high - low) / size), 2).astype(int)
    size = (high - low) / count
    nx, ny, nz = (int(n) for n in count)
    return Grid((nx, ny, nz), triple(size), triple(low + size / 2))


def _laid(lesions: Sequence[Lesion], painted: Painted, grid: Grid) -> tuple[list[Stamp], NDArray[np.uint8]]:
    """Lesions that are known to have room, as ``patient.lay`` lays them in; each keeps its number."""
    for lesion in lesions:
        if lesion.compressing:
            push(lesion, painted, grid, known=True)
    index = np.zeros(grid.shape, np.uint8)
    marks = []
    for number, lesion in enumerate(lesions, 1):
        mark = stamp(lesion, painted, grid)
        if mark is not None:
            apply_labels(mark, painted)
            marks.append(mark)
            index[mark.window][marked(mark)] = number
    return marks, index


def _halved(volume: Array) -> Array:
    """[32, 256, 256] → [32, 128, 128], means over 2 × 2 pixels."""
    rows: Array = volume[:, ::2] + volume[:, 1::2]
    halved: Array = (rows[:, :, ::2] + rows[:, :, 1::2]) / np.float32(4)
    return halved


def _resampled(index: NDArray[np.uint8], grid: Grid, box: Box) -> NDArray[np.uint8]:
    """[x, y, z] → [d, h, w] over the box, by the nearest voxel; 0 where there is none."""
    picked, inside = [], []
    for axis, cells in enumerate((PIXELS, PIXELS, SLICES)):
        step = (box[1][axis] - box[0][axis]) / cells
        places = box[0][axis] + (np.arange(cells) + 0.5) * step
        voxels = np.rint((places - grid.origin[axis]) / grid.spacing[axis]).astype(int)
        inside.append((voxels >= 0) & (voxels < grid.shape[axis]))
        picked.append(voxels.clip(0, grid.shape[axis] - 1))
    there = inside[0][:, None, None] & inside[1][None, :, None] & inside[2][None, None, :]
    return to_model_axes(np.where(there, index[np.ix_(*picked)], 0).astype(np.uint8))
