"""ROI zoom: a crop shows the organ's own millimetres, whatever grid the scan lies on; nothing is lost or stretched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from tests.conftest import torso, torso_grid
from tests.tools.test_roi import rotation
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.organs import FIVE, MERGE, ORGANS
from tumorchain_agent.tools.preprocess import ModelVolume, Preprocessing, preprocess
from tumorchain_agent.tools.roi import PATCH, covered_cells, organ_coverage
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct
from tumorchain_agent.tools.zoom import Crop, Zoom, crop_box, organ_box, zoom_in

Affine = NDArray[np.float64]
Labels = NDArray[np.uint8]
LIVER = 5
IDS = {name: key for key, name in ORGANS.items()}
ZOOM = Zoom()


def scanned(affine: Affine, shape: tuple[int, int, int]) -> tuple[CT, Labels]:
    """The torso on a grid, opened as a file of it would be."""
    hu, labels = torso(affine, shape)
    ct = ct_from_array(hu, affine)
    return ct, np.ascontiguousarray(grid.reorient_like(labels, affine, ct.affine)[0])


def zoomed(ct: CT, labels: Labels, organ: str = "liver", zoom: Zoom = ZOOM) -> Crop:
    crop = zoom_in(ct, labels, organ, preprocess(ct), zoom)
    assert crop is not None
    return crop


def patch_centres(model: ModelVolume, cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, 3] mm."""
    places = np.stack(np.unravel_index(cells, (8, 16, 16)), axis=1)
    return grid.apply_affine(model.affine, (places + 0.5) * PATCH - 0.5)


def litres(model: ModelVolume, coverage: NDArray[np.float32]) -> float:
    return float(coverage.sum() * np.prod(model.spacing_mm) * np.prod(PATCH) / 1e6)


@pytest.fixture(scope="module")
def scan() -> tuple[CT, Labels]:
    return scanned(*torso_grid(4.0))


@pytest.fixture(scope="module")
def reference() -> Crop:
    return zoomed(*scanned(*torso_grid(3.0)))


COPIES = ["flipped", "permuted", "anisotropic", "thick slices", "rotated"]


def copy_of_the_anatomy(kind: str) -> tuple[CT, Labels]:
    affine, shape = torso_grid(
        *{"anisotropic": (3.0, 5.0, 4.0), "thick slices": (3.0, 3.0, 6.0)}.get(kind, (4.0,))
    )
    if kind == "flipped":
        affine = affine @ np.diag([-1.0, 1.0, -1.0, 1.0])
        affine[:3, 3] *= [-1, 1, -1]
    if kind == "permuted":
        affine, (x, y, z) = affine[:, [2, 0, 1, 3]], shape
        shape = (z, x, y)
    if kind == "rotated":
        affine = rotation(14, 0, 1) @ rotation(7, 1, 2) @ affine
    return scanned(affine, shape)


@pytest.mark.parametrize("kind", COPIES)
def test_the_crop_of_an_anatomy_covers_the_same_millimetres_on_any_grid(kind: str, reference: Crop) -> None:
    crop = zoomed(*copy_of_the_anatomy(kind))
    box, expected = (grid.world_bbox(c.model.affine, (32, 256, 256)) for c in (crop, reference))
    assert np.abs(np.array(box) - np.array(expected)).max() < 6.5, "the largest voxel of a copy"
    assert litres(crop.model, crop.own_coverage) == pytest.approx(
        litres(reference.model, reference.own_coverage), rel=0.03
    )
    mine, theirs = (patch_centres(c.model, covered_cells(c.own_coverage, 0.5)) for c in (crop, reference))
    ends = np.array([mine.min(axis=0) - theirs.min(axis=0), mine.max(axis=0) - theirs.max(axis=0)])
    assert np.abs(ends).max() < 1.1 * max(np.array(reference.model.spacing_mm) * PATCH)
    assert np.abs(mine.mean(axis=0) - theirs.mean(axis=0)).max() < 2.0


def test_a_flipped_copy_gives_the_same_crop() -> None:
    affine, shape = torso_grid(3.0)
    hu, labels = torso(affine, shape)
    flipped = affine @ np.diag([-1.0, -1.0, -1.0, 1.0])
    flipped[:3, 3] = affine[:3, 3] + affine[:3, :3] @ (np.array(shape) - 1.0)
    one, other = ct_from_array(hu, affine), ct_from_array(hu[::-1, ::-1, ::-1], flipped)
    first, second = zoomed(one, labels), zoomed(other, labels)
    assert np.allclose(first.model.affine, second.model.affine)
    assert np.allclose(first.model.volume, second.model.volume, atol=1e-6)
    assert np.allclose(first.coverage, second.coverage, atol=1e-6)


@pytest.mark.parametrize("kind", ["thick slices", "flipped", "rotated"])
def test_a_bright_marker_in_the_organ_appears_in_the_patch_that_the_mapping_says(
    kind: str, rng: np.random.Generator
) -> None:
    ct, labels = copy_of_the_anatomy(kind)
    inner = np.argwhere(MERGE[labels] == IDS["liver"])
    whole = preprocess(ct)
    for ijk in inner[rng.integers(len(inner), size=2)]:
        low, high = np.maximum(ijk - 1, 0), ijk + 2
        hu = np.full_like(ct.hu, 0.0)
        hu[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1000.0
        crop = zoom_in(CT(hu, ct.affine, ct.info), labels, "liver", whole, ZOOM)
        assert crop is not None
        told = crop.model.voxel_to_model(ijk)
        assert crop.model.model_to_voxel(told) == pytest.approx(ijk, abs=1e-8)
        bright = np.argwhere(crop.model.volume[0] > 0.9)
        reach = np.array(ct.spacing_mm).max() * 1.5 / np.array(crop.model.spacing_mm)
        assert (np.abs(bright - told) <= reach + 1.5).all()
        assert (np.abs(bright.mean(axis=0) - told) <= 1.5).all()
        cell = np.ravel_multi_index(tuple(((told + 0.5) // PATCH).astype(int)), (8, 16, 16))
        assert crop.own_coverage.reshape(-1)[cell] > 0


def test_nothing_is_stretched_and_a_crop_is_never_coarser_than_the_whole(
    scan: tuple[CT, Labels], rng: np.random.Generator
) -> None:
    ct, labels = scan
    whole = preprocess(ct)
    for organ in ("liver", "spleen", "aorta", "lumbar_vertebrae"):
        zoom = Zoom(margin_mm=float(rng.uniform(0, 80)), min_side_mm=float(rng.uniform(20, 900)))
        crop = zoomed(ct, labels, organ, zoom)
        d, h, w = crop.model.spacing_mm
        assert h == pytest.approx(w)
        assert d * 32 >= 0.5 * h * 256 - 1e-6
        assert (np.array(crop.model.spacing_mm) <= np.array(whole.spacing_mm) + 1e-6).all()
        assert crop.side_mm >= min(zoom.min_side_mm, whole.spacing_mm[2] * 256) - 1e-6
        assert litres(crop.model, crop.own_coverage) == pytest.approx(
            float((MERGE[labels] == IDS[organ]).sum()) * ct.voxel_ml / 1000, rel=1e-3
        )


def test_a_crop_has_the_wholes_intensities(scan: tuple[CT, Labels]) -> None:
    ct, labels = scan
    crop, whole = zoomed(ct, labels), preprocess(ct)
    inner = np.argwhere(crop.own_coverage > 0.999)
    d, h, w = (inner[len(inner) // 2] + 0.5) * PATCH
    to_whole = np.asarray(np.linalg.inv(whole.affine) @ crop.model.affine, np.float64)
    place = grid.apply_affine(to_whole, [d, h, w])
    a, b, c = np.round(place).astype(int)
    assert crop.model.volume[0, int(d), int(h), int(w)] == pytest.approx(whole.volume[0, a, b, c], abs=0.01)


def test_an_organ_that_the_scan_cuts_is_shown_to_the_cut_and_empty_beyond(scan: tuple[CT, Labels]) -> None:
    ct, labels = scan
    to_voxel = np.asarray(np.linalg.inv(ct.affine), np.float64)
    stop = int(np.round(grid.apply_affine(to_voxel, [0, 0, 25])[2]))
    cut = ct_from_array(ct.hu[:, :, :stop], ct.affine)
    crop = zoomed(cut, labels[:, :, :stop])
    top_mm = grid.world_bbox(cut.affine, cut.shape)[1][2]
    centres = crop.model.affine[2, 3] + crop.model.affine[2, 0] * np.arange(32)
    filled = crop.model.volume[0].reshape(32, -1).any(axis=1)
    assert filled[centres < top_mm].all()
    assert not filled[centres > top_mm].any()
    expected = float((MERGE[labels[:, :, :stop]] == IDS["liver"]).sum()) * ct.voxel_ml / 1000
    assert litres(crop.model, crop.own_coverage) == pytest.approx(expected, rel=1e-3)
    full = zoomed(ct, labels)
    assert crop.side_mm <= full.side_mm + 1e-6


def test_a_mask_of_one_voxel_gives_the_least_field_of_view_and_one_token(scan: tuple[CT, Labels]) -> None:
    ct, labels = scan
    alone = np.zeros_like(labels)
    ijk = np.argwhere(labels == LIVER)[1234]
    alone[tuple(ijk)] = LIVER
    crop = zoomed(ct, alone)
    assert crop.side_mm == pytest.approx(ZOOM.min_side_mm)
    assert ZOOM.mixture(crop.own_coverage).count == 1
    (cell,) = covered_cells(crop.own_coverage)
    found = np.array(np.unravel_index(cell, (8, 16, 16)))
    place = (crop.model.voxel_to_model(ijk) + 0.5) / PATCH
    half_voxel = 2.0 / (np.array(crop.model.spacing_mm) * PATCH)
    assert (np.abs(place - (found + 0.5)) <= 0.5 + half_voxel).all()


def test_an_organ_that_is_absent_or_out_of_the_models_view_has_no_crop(scan: tuple[CT, Labels]) -> None:
    ct, labels = scan
    whole = preprocess(ct)
    assert zoom_in(ct, labels, "pancreas", whole, ZOOM) is None
    stray = np.zeros_like(labels)
    stray[0, 0, 0] = LIVER
    assert not organ_coverage(stray, ct.affine, whole)[IDS["liver"]].any()
    assert zoom_in(ct, stray, "liver", whole, ZOOM) is None


def test_a_large_organs_tokens_are_pooled_to_the_budget_and_no_patch_is_left_out(
    scan: tuple[CT, Labels],
) -> None:
    crop = zoomed(*scan)
    covered = covered_cells(crop.own_coverage)
    assert len(covered) > 200
    for budget in (64, 16, 1):
        mixture = Zoom(max_tokens=budget).mixture(crop.own_coverage)
        assert 1 <= mixture.count <= budget
        assert np.array_equal(mixture.cells, covered)
        assert np.bincount(mixture.groups, mixture.weights) == pytest.approx(np.ones(mixture.count))
        assert mixture.weights.min() > 0


def test_the_margin_ends_where_the_scan_or_the_models_view_of_it_ends() -> None:
    scan = np.array([-100.0, -80.0, 0.0]), np.array([100.0, 80.0, 300.0])
    seen = np.array([-110.0, -110.0, 0.0]), np.array([110.0, 110.0, 300.0])
    organ = np.array([-98.0, -20.0, 2.0]), np.array([60.0, 40.0, 120.0])
    box = crop_box(organ, scan, seen, ZOOM, Preprocessing())
    assert box is not None
    low, high = box
    assert (low[0], high[0]) == (-100.0, 72.0)
    assert (low[2], high[2]) == (0.0, 132.0)
    assert (low[1], high[1]) == (10.0 - 86.0, 10.0 + 86.0)


def test_settings_survive_json_and_wrong_ones_are_refused() -> None:
    zoom = Zoom(margin_mm=9, max_tokens=32, organs=("liver", "spleen"))
    assert Zoom.model_validate(json.loads(zoom.model_dump_json())) == zoom
    assert Zoom().organs == FIVE
    with pytest.raises(ValidationError, match="lever is no organ of Table 10"):
        Zoom(organs=("lever",))
    with pytest.raises(ValidationError, match="max_tokens"):
        Zoom(max_tokens=0)


def test_organs_of_a_real_scan_are_seen_whole_and_finer(real: Path) -> None:
    folder = real / "totalsegmentator"
    ct = open_ct(folder / "example_ct.nii.gz")
    labels = load_label_map(folder / "example_seg_fast_force_split.nii.gz", ct).labels
    whole = preprocess(ct)
    seen = organ_coverage(labels, ct.affine, whole)
    for organ in ("liver", "spleen", "stomach", "pancreas"):
        crop = zoom_in(ct, labels, organ, whole, ZOOM)
        share = seen[IDS[organ]]
        assert (crop is None) == (not share.any())
        if crop is not None:
            assert litres(crop.model, crop.own_coverage) == pytest.approx(litres(whole, share), rel=1e-3)
            assert crop.model.spacing_mm[2] < whole.spacing_mm[2]
            assert len(covered_cells(crop.own_coverage)) > len(covered_cells(share))


def test_the_box_is_that_of_the_voxels_faces() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[3:7, 10:11, 4:9] = LIVER
    box = organ_box(labels, np.diag([2.0, 3.0, 4.0, 1.0]), "liver")
    assert box is not None
    assert np.array_equal(box[0], [5.0, 28.5, 14.0])
    assert np.array_equal(box[1], [13.0, 31.5, 34.0])
    assert organ_box(labels, np.eye(4), "spleen") is None
