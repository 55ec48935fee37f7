"""Lesions, contact, comparison and the input gate, against shapes whose answer is known, and real scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import WriteNifti, torso, torso_grid
from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.records import Measurement, SegmentationInfo
from tumorchain_agent.tools.compare import (
    compare_organs,
    doubts,
    otherwise_segmented,
    segmented_alike,
)
from tumorchain_agent.tools.contact import measure_contact
from tumorchain_agent.tools.input_gate import inspect_input
from tumorchain_agent.tools.labels import label_map
from tumorchain_agent.tools.lesions import load_mask, measure_lesions
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (40, 40, 20)


def box(low: tuple[int, int, int], high: tuple[int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_two_boxes_that_share_a_face_touch_on_its_area() -> None:
    a, b = box((0, 0, 0), (10, 10, 10)), box((10, 0, 0), (20, 10, 10))
    found = measure_contact(a, b, AFFINE, name_a="tumor", name_b="vessel")
    assert (found.a, found.b, found.touching) == ("tumor", "vessel", True)
    assert found.contact_area_mm2 == 10 * 10 * 2.0 * 3.0
    assert found.min_distance_mm == 2.0
    assert found.overlap_ml == 0.0


def test_boxes_apart_have_their_distance_and_no_contact() -> None:
    found = measure_contact(box((0, 0, 0), (5, 5, 5)), box((5, 5, 10), (9, 9, 15)), AFFINE)
    assert not found.touching
    assert found.contact_area_mm2 == 0.0
    assert found.min_distance_mm == pytest.approx(np.linalg.norm([2, 2, 18]))
    assert found.max_encasement_deg is None


def test_a_ring_around_a_vessel_encases_all_of_it_and_half_a_ring_half() -> None:
    x, y, _ = np.ogrid[:40, :40, :20]
    radius = np.hypot(x - 20, y - 20) + np.zeros(SHAPE)
    vessel, ring = radius < 5, (radius >= 5) & (radius < 9)
    assert measure_contact(ring, vessel, AFFINE).max_encasement_deg == 360.0
    half = ring & (np.arange(40)[:, None, None] > 22)
    angle = measure_contact(half, vessel, AFFINE).max_encasement_deg
    assert angle is not None
    assert 130 < angle < 200


@pytest.mark.parametrize("thickness", [1.0, 5.0])
@pytest.mark.parametrize(("gap_mm", "touching"), [(0.0, True), (2.5, False), (4.5, False)])
def test_fat_between_a_tumor_and_a_vessel_is_seen_however_thick_the_slices_are(
    gap_mm: float, touching: bool, thickness: float
) -> None:
    x, y, _ = np.ogrid[:90, :90, : round(30 / thickness)]
    flat = np.ones((90, 90, round(30 / thickness)), bool)
    tumor = flat & (np.hypot(0.8 * x - 25, 0.8 * y - 36) <= 20)
    vessel = flat & (np.hypot(0.8 * x - 49 - gap_mm, 0.8 * y - 36) <= 4)
    found = measure_contact(tumor, vessel, np.diag([0.8, 0.8, thickness, 1.0]))
    assert found.touching is touching
    assert (found.max_encasement_deg is not None) is touching
    assert (found.contact_area_mm2 > 0) is touching


def turned(affine: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """The same volume lying otherwise in the patient."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    whole = np.eye(4)
    whole[:3, :3] = matrix
    return whole @ affine


def test_a_tilted_gantry_and_a_turned_patient_change_no_distance_volume_or_area(seed: int) -> None:
    tilted = np.diag([1.0, 1.0, 5.0, 1.0])
    tilted[1, 2] = 5.0 * np.tan(np.radians(20))
    a, b, c = (np.zeros((40, 80, 40), bool) for _ in range(3))
    a[10:20, 10:20, 2:5], b[10:20, 40:50, 12:15], c[10:20, 10:20, 4:8] = True, True, True
    for affine in (tilted, turned(tilted, seed), turned(np.diag([-0.8, 1.3, 4.0, 1.0]), seed)):
        points = [np.argwhere(mask) @ affine[:3, :3].T for mask in (a, b)]
        apart = measure_contact(a, b, affine)
        assert apart.min_distance_mm == pytest.approx(
            np.linalg.norm(points[0][:, None] - points[1], axis=2).min()
        )
        assert not apart.touching
        over = measure_contact(a, c, affine)
        assert over.overlap_ml == pytest.approx(100 * abs(np.linalg.det(affine[:3, :3])) / 1000)
        face = 100 * np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1]))
        assert over.contact_area_mm2 == pytest.approx(face)


def test_overlap_counts_once_and_an_empty_mask_is_not_assessed() -> None:
    a, b = box((0, 0, 0), (10, 10, 10)), box((5, 0, 0), (15, 10, 10))
    found = measure_contact(a, b, AFFINE)
    assert found.min_distance_mm == 0.0
    assert found.overlap_ml == pytest.approx(500 * 12 / 1000)
    with pytest.raises(LabelMapError, match="not assessed"):
        measure_contact(a, np.zeros(SHAPE), AFFINE, name_b="aorta")
    with pytest.raises(LabelMapError, match="grid"):
        measure_contact(a, np.zeros((3, 3, 3)), AFFINE)


def test_arteries_that_branch_off_the_aorta_touch_it_in_a_real_scan(real: Path) -> None:
    folder = real / "totalsegmentator" / "aorta_report"
    ct = open_ct(folder / "ct_cropped.nii.gz")
    aorta = load_mask(folder / "aorta.nii.gz", ct)
    for name in ("celiac_trunk", "superior_mesenteric_artery"):
        found = measure_contact(load_mask(folder / f"{name}.nii.gz", ct), aorta, ct.affine)
        assert found.touching, name
        assert found.share_of_b_surface < 0.2
        assert (found.max_encasement_deg or 0.0) < 180


@pytest.mark.parametrize("case", ["STS_019", "STS_042"])
def test_real_tumors_have_the_volume_and_diameter_that_others_measured(
    case: str, real: Path, oracles: dict[str, Any]
) -> None:
    folder, known = real / "sts" / case, oracles[case]["lesion"]
    ct = open_ct(folder / "CT_image.nii.gz")
    mask = load_mask(folder / "CT_mask.nii.gz", ct)
    lesions, count = measure_lesions(ct, mask, None)
    assert sum(each.measurement.volume_ml or 0 for each in lesions) == pytest.approx(
        known["volume_ml"], rel=1e-4
    )
    largest = lesions[0]
    assert count == len(lesions)
    assert largest.organ is None
    assert largest.measurement.largest_axial_diameter_mm is not None
    assert 0 < largest.short_axis_mm <= largest.measurement.largest_axial_diameter_mm


def torso_ct(*spacing: float) -> tuple[CT, NDArray[np.uint8]]:
    affine, shape = torso_grid(*spacing)
    hu, labels = torso(affine, shape)
    return ct_from_array(hu, affine, file_name="ct.nii.gz"), labels


def test_lesions_are_listed_by_size_with_the_organ_that_holds_them() -> None:
    ct, labels = torso_ct(4.0, 4.0, 6.0)
    organs = label_map(labels, ct, source="given", task="given", weights_id="", seconds=0.0)
    mask = np.zeros(ct.shape, bool)
    for organ, side in ((5, 4), (1, 2)):
        x, y, z = np.argwhere(labels == organ).mean(axis=0).astype(int)
        mask[x : x + side, y : y + side, z : z + 1] = True
    lesions, count = measure_lesions(ct, mask, organs)
    assert count == 2
    assert [each.organ for each in lesions] == ["liver", "spleen"]
    assert [each.number for each in lesions] == [1, 2]
    assert lesions[0].organ_share == 1.0
    assert lesions[0].measurement.largest_axial_diameter_mm == pytest.approx(3 * 4 * 2**0.5)
    assert lesions[0].short_axis_mm == pytest.approx(3 * 4 * 2**0.5)
    with pytest.raises(LabelMapError, match="does not mean"):
        measure_lesions(ct, np.zeros(ct.shape), organs)


def test_a_mask_on_another_grid_is_refused(write_nifti: WriteNifti) -> None:
    ct, labels = torso_ct(8.0)
    path = write_nifti(labels[:-1], np.diag([8.0, 8.0, 8.0, 1.0]), "mask.nii.gz", dtype=np.uint8)
    with pytest.raises(LabelMapError, match="not on the grid"):
        load_mask(path, ct)
    with pytest.raises(LabelMapError, match=r"no \.nii"):
        load_mask(path.parent / "none.nii.gz", ct)


def test_a_mask_with_voxels_that_are_no_number_is_refused_and_not_taken_for_a_lesion(
    write_nifti: WriteNifti,
) -> None:
    ct, _ = torso_ct(8.0)
    values = np.full(ct.shape, np.nan, np.float32)
    values[3:5, 3:5, 3:5] = 1.0
    path = write_nifti(values, ct.affine, "mask.nii.gz", dtype=np.float32)
    with pytest.raises(LabelMapError, match=r"mask\.nii\.gz holds .* no finite number; .*0"):
        load_mask(path, ct)


def measured(volume: float, **more: Any) -> Measurement:
    return Measurement(organ="liver", present=True, volume_ml=volume, mean_hu=60.0, **more)


def test_changes_are_later_minus_earlier_and_small_ones_are_told_as_method_error() -> None:
    pairs = {"liver": (1000.0, 1050.0), "spleen": (200.0, 300.0)}
    earlier = {organ: measured(volumes[0]) for organ, volumes in pairs.items()}
    later = {organ: measured(volumes[1]) for organ, volumes in pairs.items()}
    liver, spleen = compare_organs(earlier, later, ["liver", "spleen"])
    assert (liver.volume_change_ml, liver.volume_change_percent) == (50.0, 5.0)
    assert (liver.beyond_method_error, spleen.beyond_method_error) == (False, True)


def test_absent_and_cut_organs_are_not_compared_and_said_so() -> None:
    ct, _ = torso_ct(12.0)
    absent = Measurement(organ="liver", present=False)
    for other, code in (
        (absent, "organ_absent"),
        (measured(900.0, cut_by_edge=("superior",)), "cut_by_edge"),
    ):
        changes = compare_organs({"liver": measured(1000.0)}, {"liver": other}, ["liver"])
        assert changes[0].volume_change_ml is None
        assert changes[0].beyond_method_error is None
        assert code in [notice.code for notice in doubts(ct.info, ct.info, changes)]


def segmented(source: Any, task: str, weights_id: str) -> SegmentationInfo:
    return SegmentationInfo(
        scan_id="0" * 64, source=source, task=task, weights_id=weights_id, organs_present=(), seconds=0.0
    )


NANO = segmented("nano", "nano", "n1")


@pytest.mark.parametrize(
    ("earlier", "later", "alike"),
    [
        (NANO, NANO, True),
        (segmented("given", "given", "a"), segmented("given", "given", "b"), True),
        (NANO, segmented("given", "given", "a"), False),
        (NANO, segmented("nano", "nano", "n2"), False),
        (segmented("official", "total", "o"), segmented("official", "total_fast", "f"), False),
    ],
)
def test_a_change_between_scans_that_were_segmented_otherwise_is_not_told_to_be_the_patients(
    earlier: SegmentationInfo, later: SegmentationInfo, alike: bool
) -> None:
    assert segmented_alike(earlier, later) is alike
    notices = otherwise_segmented(earlier, later)
    assert [notice.code for notice in notices] == ([] if alike else ["segmentation_differs"])
    assert alike or notices[0].message.count(";") == 1
    liver = {"liver": measured(1000.0)}, {"liver": measured(500.0)}
    (change,) = compare_organs(*liver, ["liver"], alike=alike)
    assert change.volume_change_ml == -500.0
    assert change.beyond_method_error is (True if alike else None)


GATES = {
    "totalsegmentator/example_ct.nii.gz": ("unenhanced", "abdomen and pelvis", "3 mm"),
    "totalsegmentator/example_ct_dicom": ("portal venous or later", "abdomen", "2 mm"),
    "crlm/CRLM-CT-1004_dicom.zip": ("portal venous or later", "abdomen", "5 mm"),
    "totalsegmentator/aorta_report/ct_cropped.nii.gz": (
        "arterial",
        "a limb, the head, or a part of the body",
        "1.5 mm",
    ),
    "sts/STS_042/CT_image.nii.gz": (None, "a limb, the head, or a part of the body", "3.27 mm"),
}


@pytest.mark.parametrize("scan", GATES)
def test_the_gate_guesses_what_real_scans_are_known_to_be(scan: str, real: Path) -> None:
    phase, region, thickness = GATES[scan]
    gate = inspect_input(open_ct(real / scan))
    assert gate.modality.value == "CT"
    assert phase is None or gate.contrast_phase.value == phase
    assert gate.field_of_view.value == region
    assert gate.slice_thickness.value == thickness
    for _, item in gate:
        assert 0 <= item.confidence <= 1
        assert item.why


def test_the_gate_doubts_a_scan_that_lies_upside_down_or_is_no_ct() -> None:
    ct, _ = torso_ct(4.0, 4.0, 6.0)
    upside_down = ct_from_array(ct.hu[:, ::-1], ct.affine)
    assert inspect_input(ct).orientation.confidence > inspect_input(upside_down).orientation.confidence
    shifted = ct_from_array(ct.hu + 1024.0, ct.affine)
    assert inspect_input(shifted).modality.value.startswith("not CT")
