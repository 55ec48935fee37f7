"""What is drawn measures what the truth says: sizes, growth through the wall, one piece for each tumour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.training.phantom.truths import laid, painted_patient
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Anatomy, Painted
from tumorchain_agent.training.phantom.categories import BEYOND_MM, THROUGH_MM
from tumorchain_agent.training.phantom.disease import sample_disease
from tumorchain_agent.training.phantom.lesions import SHAPES, Lesion, sample_tumor
from tumorchain_agent.training.phantom.patient import lay, truth_of
from tumorchain_agent.training.phantom.shapes import Grid, triple
from tumorchain_agent.training.phantom.stamps import lesion_ratio, marked, stamp
from tumorchain_agent.training.phantom.surface import rays

MM = 1.0
"""Voxels of the grids around a lesion."""
WALL = ("stomach", "colorectum", "esophagus")


def around(lesion: Lesion, margin_mm: float = 4.0) -> Grid:
    """A fine grid that holds a lesion."""
    reach = max(lesion.radii_mm) + margin_mm
    count = int(2 * reach / MM) + 1
    return Grid((count, count, count), (MM, MM, MM), triple(np.array(lesion.centre_mm) - reach))


def diameter(mask: NDArray[np.bool_]) -> float:
    """Largest extent of a mask in any of many directions, in mm."""
    shadows = np.argwhere(mask) @ rays(300).T * MM
    return float((shadows.max(axis=0) - shadows.min(axis=0)).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_lesion_is_one_piece_as_large_as_its_truth_says(shape: str, rng: np.random.Generator) -> None:
    anatomy = painted_patient(70)[0].anatomy
    for organ in ("liver", "stomach"):
        lesion = replace(sample_tumor(rng, anatomy, organ, float(rng.uniform(15, 45))), shape=shape)
        grid = around(lesion)
        window = (slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2]))
        whole = lesion_ratio(lesion, grid, window) < 1
        pieces = np.bincount(ndimage.label(whole, np.ones((3, 3, 3)))[0].ravel())[1:]
        assert pieces.max() > 0.998 * pieces.sum(), "but for the last voxel of a thin point"
        assert diameter(whole) == pytest.approx(lesion.size_mm, rel=0.08, abs=2 * MM)
        assert whole.sum() * MM**3 == pytest.approx(lesion.surface.volume_mm3, rel=0.08)


def growth(lesion: Lesion, anatomy: Anatomy) -> float:
    """How far a tumour's farthest voxel lies from its organ's outer wall as painted, in mm; nothing gives way."""
    grid = around(lesion)
    painted = anatomy.paint(grid)
    mark = stamp(replace(lesion, compressing=False), painted, grid)
    assert mark is not None
    body, _ = ndimage.label(marked(mark))
    largest = body == 1 + np.bincount(body.ravel())[1:].argmax()
    outside = ndimage.distance_transform_edt(painted.labels != ORGAN_IDS[lesion.organ], grid.spacing)
    return float(outside[mark.window][largest].max()) - MM / 2


def test_a_wall_tumours_picture_grows_as_deep_as_its_t_category_says() -> None:
    rng = np.random.default_rng(33)
    short = []
    for k in range(15):
        plan, coarse, before = painted_patient(70 + k % 6)
        lesion = sample_disease(rng, plan.anatomy, WALL[k % 3], before, coarse)[0]
        beyond = growth(lesion, plan.anatomy)
        if lesion.reach_mm < THROUGH_MM:
            assert beyond < (BEYOND_MM if lesion.reach_mm < BEYOND_MM else THROUGH_MM)
        if lesion.reach_mm >= BEYOND_MM:
            short.append(beyond < (BEYOND_MM if lesion.reach_mm < THROUGH_MM else THROUGH_MM) - MM)
    assert len(short) > 5
    assert np.mean(short) < 0.1, "but for a few that lie against an organ on all sides"


def test_the_picture_shows_as_many_tumours_as_the_truth_counts() -> None:
    rng = np.random.default_rng(31)
    several = 0
    for _ in range(40):
        truth, marks = laid(rng, "liver")
        tumors = [mark.lesion for mark in marks if mark.lesion.kind == "tumor"]
        several += truth.count > 1
        assert len(tumors) == truth.count
        for k, one in enumerate(tumors):
            for other in tumors[:k]:
                gap = np.linalg.norm(np.subtract(one.centre_mm, other.centre_mm))
                assert gap > max(one.radii_mm) + max(other.radii_mm) + 2
    assert several > 5


def test_a_cyst_that_a_tumour_covers_is_in_neither_picture_nor_truth() -> None:
    plan, grid, painted = painted_patient(70)
    rng = np.random.default_rng(32)
    liver = ndimage.distance_transform_edt(painted.labels == ORGAN_IDS["liver"], grid.spacing)
    deepest = np.unravel_index(liver.argmax(), liver.shape)
    middle = triple(grid.axis(k)[i] for k, i in enumerate(deepest))
    tumor = replace(sample_tumor(rng, plan.anatomy, "liver", 32.0), shape="round", centre_mm=middle)
    cyst = replace(tumor, kind="cyst", density="fluid", delta_hu=5.0)
    for centre, seen in ((middle, False), (triple(np.add(middle, (0, 0, 22))), True)):
        fresh = Painted(painted.labels.copy(), painted.tissue.copy())
        marks, index = lay([replace(cyst, centre_mm=centre, radii_mm=(12.0, 12.0, 12.0)), tumor], fresh, grid)
        assert [mark.lesion.kind for mark in marks] == (["cyst", "tumor"] if seen else ["tumor"])
        assert truth_of(plan, marks).mimics == (("liver:cyst",) if seen else ())
        assert set(np.unique(index)) == set(range(len(marks) + 1))
        assert (index == len(marks)).sum() == marked(marks[-1]).sum()
