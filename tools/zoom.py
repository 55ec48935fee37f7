"""ROI zoom: an organ's crop of the CT, prepared as the whole scan is, for the same encoder at higher resolution.

The paper's encoder sees every organ at the whole body's resolution, and small lesions are among its errors (13.2).
A crop is the organ's bounding box in mm with a margin, cut to the scan and to what the model sees of it, then made
square in-plane and deep enough as the whole is: nothing is distorted, and a box that is grown shows more of the
surroundings. The same window, the same model volume, the same patch grid, so the same encoder and the same Γ.

One box an organ, also for a large one, which gains less: several boxes would cut the organ where a lesion may lie,
and make tokens of one organ that are at different scales. A crop is never coarser than the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from tumorchain_agent.records import Record
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.organs import FIVE, MERGE, ORGANS
from tumorchain_agent.tools.preprocess import ModelVolume, Preprocessing, volume_of
from tumorchain_agent.tools.roi import Coverage, Mixture, covered_cells, organ_coverage, roi_mixture
from tumorchain_agent.tools.scan import CT

Box = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Smallest and largest x, y, z in mm."""
_IDS = {name: key for key, name in ORGANS.items()}


class Zoom(Record):
    """How organs are zoomed into; a checkpoint stores what it was trained with, or nothing."""

    margin_mm: float = Field(default=12.0, ge=0)
    """Around the organ's box: room for a tumor that grows out of it, for regional nodes at its wall, and for the
    millimetres by which a segmentation errs."""
    min_side_mm: float = Field(default=128.0, gt=0)
    """Least field of view in-plane. At 256 pixels it gives 0.5 mm, as fine as a body scanner's sharpest picture;
    a smaller field would only enlarge its blur."""
    max_tokens: int = Field(default=64, ge=1)
    """An organ's zoomed tokens are pooled to at most so many, and none is cut off."""
    organs: tuple[str, ...] = FIVE
    """Organs that are zoomed into: those that the training had crops of."""

    @field_validator("organs")
    @classmethod
    def _known(cls, organs: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [organ for organ in organs if organ not in _IDS]
        if unknown:
            raise ValueError(f"{unknown[0]} is no organ of Table 10")
        return organs

    def mixture(self, coverage: Coverage) -> Mixture:
        """How an organ's zoomed tokens come from its crop's 2048 vision tokens, by its coverage [8, 16, 16]."""
        return roi_mixture(coverage, self.max_tokens)


@dataclass(frozen=True, eq=False)
class Crop:
    """An organ at higher resolution."""

    organ: str
    model: ModelVolume
    """What the encoder sees, with the way from its indices to the CT's and back."""
    coverage: Coverage
    """[57, 8, 16, 16]: the crop's Γ, of every organ in it."""

    @property
    def own_coverage(self) -> Coverage:
        """[8, 16, 16]: the organ's own."""
        own: Coverage = self.coverage[_IDS[self.organ]]
        return own

    @property
    def side_mm(self) -> float:
        """Width of the field of view in-plane."""
        return self.model.spacing_mm[2] * float(self.model.volume.shape[3])


def organ_box(labels: NDArray[np.uint8], affine: NDArray[np.float64], organ: str) -> Box | None:
    """The box of an organ's voxels; ``None`` when there are none. ``labels`` are TotalSegmentator ids [x, y, z]."""
    mask: NDArray[np.bool_] = np.equal(MERGE, _IDS[organ])[labels]
    return grid.extent(mask, affine) if mask.any() else None


def crop_box(organ: Box, scan: Box, seen: Box, zoom: Zoom, preparation: Preprocessing) -> Box | None:
    """The crop's field of view, square in-plane.

    ``scan`` is where there are voxels, ``seen`` the whole's model volume: what lies outside of either shows nothing,
    so the margin ends there. ``None`` when the organ itself lies outside.
    """
    limits = np.maximum(scan[0], seen[0]), np.minimum(scan[1], seen[1])
    if (np.minimum(organ[1], limits[1]) <= np.maximum(organ[0], limits[0])).any():
        return None
    low = np.maximum(organ[0] - zoom.margin_mm, limits[0])
    high = np.minimum(organ[1] + zoom.margin_mm, limits[1])
    centre, size = (low + high) / 2, high - low
    size[:2] = max(float(size[:2].max()), min(zoom.min_side_mm, float((seen[1] - seen[0])[0])))
    size[2] = max(float(size[2]), preparation.min_depth_ratio * float(size[0]))
    return centre - size / 2, centre + size / 2


def zoom_in(
    ct: CT,
    labels: NDArray[np.uint8],
    organ: str,
    whole: ModelVolume,
    zoom: Zoom,
    preparation: Preprocessing | None = None,
) -> Crop | None:
    """An organ's crop; ``None`` when the scan, or what the model sees of it, holds nothing of the organ.

    ``labels`` are TotalSegmentator ids on the CT's grid [x, y, z]; ``whole`` is the CT's own model volume and
    ``preparation`` what made it.
    """
    preparation = preparation or Preprocessing()
    found = organ_box(labels, ct.affine, organ)
    if found is None:
        return None
    seen = grid.world_bbox(whole.affine, whole.volume.shape[1:])
    box = crop_box(found, grid.world_bbox(ct.affine, ct.shape), seen, zoom, preparation)
    if box is None:
        return None
    model = volume_of(ct, *box, preparation)
    (x, y, z), affine = grid.block(ct.affine, ct.shape, *box)
    coverage = organ_coverage(labels[x, y, z], affine, model)
    crop = Crop(organ, model, coverage)
    return crop if len(covered_cells(crop.own_coverage)) else None
