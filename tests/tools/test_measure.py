"""Measurements against known figures, against a mask-by-mask reference, and in corner cases."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

from tests.conftest import torso, torso_grid
from tumorchain_agent.errors import LabelMapError, UnknownOrganError
from tumorchain_agent.records import Measurement
from tumorchain_agent.tools.labels import LabelMap, label_map, load_label_map
from tumorchain_agent.tools.measure import largest_distance, measure_all, measure_mask, measure_organ
from tumorchain_agent.tools.organs import ORGANS, STRUCTURES, organ_ids
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct

Oracles = dict[str, Any]


def check(known: dict[str, Any], measured: Measurement) -> None:
    """All figures of an oracle entry, to its last printed digit."""
    assert measured.present
    assert measured.voxels == known["voxels"]
    assert measured.volume_ml == pytest.approx(known["volume_ml"], abs=6e-4)
    for key in ("mean", "sd", "min", "max"):
        assert getattr(measured, f"{key}_hu") == pytest.approx(known[f"hu_{key}"], abs=6e-4)
    assert measured.bbox_ijk is not None
    assert [list(corner) for corner in measured.bbox_ijk] == [known["bbox_ijk_min"], known["bbox_ijk_max"]]
    assert measured.centroid_ijk == pytest.approx(known["centroid_ijk"], abs=6e-4)
    assert measured.centroid_mm == pytest.approx(known["centroid_ras_mm"], abs=2e-3)


def given(ct: CT, labels: NDArray[Any]) -> LabelMap:
    return label_map(labels.astype(np.uint8), ct, source="given", task="given", weights_id="", seconds=0.0)


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        ("ts_example_ct_full", 61),
        ("ts_example_ct_sm__seg_1p5mm_model", 41),
        ("ts_example_ct_sm__seg_fast_3mm_model", 40),
    ],
)
def test_every_structure_of_the_real_ct_matches_its_known_figures(
    real: Path, oracles: Oracles, entry: str, count: int
) -> None:
    known = oracles[entry]
    ct = open_ct(real / "totalsegmentator" / known["ct"])
    measured = measure_all(ct, load_label_map(real / "totalsegmentator" / known["seg"], ct))
    assert len(known["labels"]) == count
    for name, figures in known["labels"].items():
        check(figures, measured[name])
    present = {name for name in STRUCTURES.values() if name in measured and measured[name].present}
    assert present == set(known["labels"])


def test_organs_absent_from_the_scan_are_reported_without_figures(real: Path) -> None:
    folder = real / "totalsegmentator"
    ct = open_ct(folder / "example_ct.nii.gz")
    measured = measure_all(ct, load_label_map(folder / "example_seg_fast_force_split.nii.gz", ct))
    assert list(measured)[:56] == list(ORGANS.values())
    assert measured["esophagus"] == Measurement(organ="esophagus", structures=("esophagus",), present=False)
    assert measured["colorectum"].volume_ml == pytest.approx(1619.14, abs=0.01)
    assert measured["liver"].volume_ml == pytest.approx(1125.68, abs=0.01)
    assert measured["liver"].cut_by_edge == ("superior",)
    assert measured["colon"].level == "structure"
    assert measured["lumbar_vertebrae"].voxels == sum(measured[f"vertebrae_L{n}"].voxels for n in range(1, 6))


@pytest.mark.parametrize("name", ["STS_019", "STS_042"])
def test_real_lesions_have_their_known_diameters(real: Path, oracles: Oracles, name: str) -> None:
    nibabel: Any = import_module("nibabel")

    image = nibabel.load(real / "sts" / name / "CT_image.nii.gz")
    mask = nibabel.load(real / "sts" / name / "CT_mask.nii.gz")
    known = oracles[name]["lesion"]
    lesion = measure_mask(np.asarray(mask.dataobj), np.asarray(image.dataobj), np.asarray(image.affine))
    check(known, lesion)
    assert lesion.largest_diameter_mm == pytest.approx(known["max_3d_diameter_mm_voxel_centres"], abs=6e-4)
    assert lesion.largest_axial_diameter_mm == pytest.approx(
        known["max_axial_diameter_mm_voxel_centres"], abs=6e-4
    )


def test_the_ibsi_phantom_has_its_consensus_values(real: Path, oracles: Oracles) -> None:
    nibabel: Any = import_module("nibabel")

    folder = real / "ibsi_1_digital_phantom"
    image, mask = nibabel.load(folder / "phantom.nii.gz"), nibabel.load(folder / "mask.nii.gz")
    phantom = measure_mask(np.asarray(mask.dataobj), np.asarray(image.dataobj), np.asarray(image.affine))
    known, published = (oracles["ibsi_1_digital_phantom"][key] for key in ("computed", "published_reference"))
    check(known, phantom)
    assert phantom.largest_diameter_mm == pytest.approx(known["max_3d_diameter_mm_voxel_centres"], abs=6e-4)
    assert phantom.volume_ml == pytest.approx(published["morph_volume_voxel_counting_mm3"][0] / 1000)
    assert phantom.mean_hu == pytest.approx(published["stat_mean"][0], abs=0.005)
    assert phantom.sd_hu is not None
    assert phantom.sd_hu**2 == pytest.approx(published["stat_variance"][0], abs=0.005)
    assert phantom.percentiles_hu is not None
    assert phantom.percentiles_hu["p50"] == published["stat_median"][0]


def test_one_pass_equals_mask_by_mask(rng: np.random.Generator) -> None:
    affine, shape = torso_grid(7.0, 8.0, 9.0)
    labels = torso(affine, shape)[1]
    labels[rng.random(shape) < 0.02] = 20
    labels[rng.random(shape) < 0.01] = 111
    ct = ct_from_array(rng.normal(0, 300, shape), affine)
    measured = measure_all(ct, given(ct, labels))
    for key in (1, 5, 20, 29, 52, 111):
        name = STRUCTURES[key]
        mask = labels == key
        found, hu, ijk = measured[name], ct.hu[mask].astype(np.float64), np.argwhere(mask)
        mm = ijk @ affine[:3, :3].T
        assert found.voxels == len(hu)
        assert (found.mean_hu, found.sd_hu) == pytest.approx((hu.mean(), hu.std()))
        assert found.percentiles_hu is not None
        percentiles = np.percentile(hu, [5, 25, 50, 75, 95])
        assert list(found.percentiles_hu.values()) == pytest.approx(percentiles, abs=1e-9)
        assert found.centroid_ijk == pytest.approx(ijk.mean(axis=0))
        assert found.bbox_ijk == (tuple(ijk.min(axis=0)), tuple(ijk.max(axis=0)))
        assert found.largest_diameter_mm == pytest.approx(pdist(mm).max())
        axial = max(pdist(mm[ijk[:, 2] == z]).max(initial=0) for z in np.unique(ijk[:, 2]))
        assert found.largest_axial_diameter_mm == pytest.approx(axial)


def test_one_organ_alone_measures_as_among_all() -> None:
    affine, shape = torso_grid(8.0)
    hu, labels = torso(affine, shape)
    labels[labels == 52] = 30
    ct = ct_from_array(hu, affine)
    together = measure_all(ct, given(ct, labels))
    for organ in ("liver", "lumbar_vertebrae", "esophagus"):
        assert measure_organ(ct, given(ct, labels), organ) == together[organ]
    assert len(organ_ids("lumbar_vertebrae")) == 5
    with pytest.raises(UnknownOrganError):
        measure_organ(ct, given(ct, labels), "livver")


@pytest.mark.parametrize(
    ("corner", "faces"),
    [
        ((0, 2, 2), ("left",)),
        ((9, 2, 2), ("right",)),
        ((2, 0, 2), ("posterior",)),
        ((2, 9, 2), ("anterior",)),
        ((2, 2, 0), ("inferior",)),
        ((2, 2, 9), ("superior",)),
        ((0, 9, 9), ("left", "anterior", "superior")),
        ((4, 4, 4), ()),
    ],
)
def test_faces_are_named_in_patient_directions(corner: tuple[int, int, int], faces: tuple[str, ...]) -> None:
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[corner] = 1
    assert measure_mask(mask, np.zeros(mask.shape, np.float32), np.eye(4)).cut_by_edge == faces


def test_a_single_voxel_has_diameter_zero_and_an_empty_mask_no_figures() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    hu = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    assert not measure_mask(mask, hu, np.eye(4)).present
    mask[1, 2, 3] = 1
    one = measure_mask(mask, hu, np.eye(4))
    assert (one.largest_diameter_mm, one.largest_axial_diameter_mm, one.sd_hu) == (0.0, 0.0, 0.0)
    assert one.percentiles_hu == dict.fromkeys(("p05", "p25", "p50", "p75", "p95"), 27.0)


@pytest.mark.parametrize(
    ("extent", "longest"),
    [
        ((900, 1, 1), (899, 0, 0)),
        ((1, 30, 40), (0, 29, 39)),
        ((25, 25, 25), (24, 24, 24)),
        ((40, 1, 40), (39, 0, 39)),
    ],
)
def test_lines_planes_and_boxes_have_their_diagonal_as_diameter(
    extent: tuple[int, int, int], longest: tuple[int, int, int]
) -> None:
    shear = np.array([[0.8, 0.1, 0.3], [0.0, 0.9, -0.2], [0.1, 0.0, 2.5]])
    points = np.argwhere(np.ones(extent)) @ shear.T
    signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    diagonals = np.linalg.norm((signs * longest) @ shear.T, axis=1)
    assert largest_distance(points) == pytest.approx(diagonals.max())


def test_many_points_are_measured_exactly(rng: np.random.Generator) -> None:
    points = rng.normal(size=(1500, 3)) * [30, 20, 5]
    assert largest_distance(points) == pytest.approx(pdist(points).max())


def test_a_label_map_of_another_shape_is_refused() -> None:
    with pytest.raises(LabelMapError, match="4×4×4 voxels, the scan 4×4×5"):
        measure_mask(np.ones((4, 4, 4)), np.zeros((4, 4, 5), np.float32), np.eye(4))
