"""Opening CTs: every format, orientation and scaling gives one RAS+ HU volume with one id."""

from __future__ import annotations

import gzip
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteDicom, WriteNifti, torso, torso_grid
from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct

Oracles = dict[str, Any]


def codes(ct: CT) -> list[str]:
    return [notice.code for notice in ct.info.notices]


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    """Whole-number HU and affine of the torso on a coarse RAS grid."""
    affine, shape = torso_grid(8.0, 8.0, 12.0)
    return np.round(torso(affine, shape)[0]), affine


def test_the_real_ct_has_the_known_grid_and_range(real: Path, oracles: Oracles) -> None:
    known = oracles["ts_example_ct_full"]
    ct = open_ct(real / "totalsegmentator" / "example_ct.nii.gz")
    assert list(ct.shape) == known["shape"]
    assert ct.spacing_mm == pytest.approx(known["spacing_mm"], abs=1e-5)
    assert (ct.info.hu_min, ct.info.hu_max) == (known["hu_min"], known["hu_max"])
    assert float(ct.hu.mean(dtype=np.float64)) == pytest.approx(known["hu_mean"], abs=1e-3)
    assert (ct.info.source_axcodes, ct.info.padding_hu, ct.info.notices) == ("RAS", None, ())
    assert ct.hu.dtype == np.float32
    assert ct.voxel_ml == pytest.approx(0.027)


def test_jpeg_2000_slices_without_uids_are_ordered_by_position(real: Path, oracles: Oracles) -> None:
    known = oracles["ts_example_dicom"]
    ct = open_ct(real / "totalsegmentator" / "example_ct_dicom")
    assert list(ct.shape) == known["shape"]
    assert ct.spacing_mm == pytest.approx(known["spacing_mm"])
    assert (ct.info.hu_min, ct.info.hu_max) == (known["hu_min"], known["hu_max"])
    assert float(ct.hu.mean(dtype=np.float64)) == pytest.approx(known["hu_mean"], abs=1e-3)
    assert ct.affine[2, 3] == pytest.approx(min(known["sorted_z"]))
    between = np.abs(np.diff(ct.hu, axis=2)).mean(axis=(0, 1))
    assert between.max() < 3 * between.min(), "neighbouring slices look alike"


def test_a_zip_is_read_and_its_padding_becomes_air(real: Path, oracles: Oracles) -> None:
    known = oracles["CRLM-CT-1004"]
    ct = open_ct(real / "crlm" / "CRLM-CT-1004_dicom.zip")
    assert list(ct.shape) == known["shape_ijk"]
    assert ct.spacing_mm == pytest.approx(known["spacing_mm"])
    assert ct.info.padding_hu == known["padding_value"]
    assert (ct.info.hu_min, ct.info.hu_max) == (-1024.0, known["hu_max"])
    assert ct.info.source_format == "dicom"
    corner = ct.affine @ [ct.shape[0] - 1, ct.shape[1] - 1, 0, 1]
    assert corner[:3] == pytest.approx(np.array(known["affine_lps_origin"]) * [-1, -1, 1])


def test_labels_of_the_real_three_slices_have_their_known_hu(real: Path, oracles: Oracles) -> None:
    sitk: Any = import_module("SimpleITK")

    known = oracles["dcmqi_ct_3slice"]
    ct = open_ct(real / "dcmqi" / "ct-3slice")
    for name, figures in known["labels"].items():
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(real / "dcmqi" / f"{name}.nrrd")))
        mask = (np.equal(stored.T, figures["label"]))[::-1, ::-1]
        assert int(mask.sum()) == figures["voxels"]
        assert float(ct.hu[mask].mean(dtype=np.float64)) == pytest.approx(figures["hu_mean"], abs=1e-3)


def test_segmentations_beside_the_slices_are_left_out_with_a_notice(real: Path) -> None:
    ct = open_ct(real / "dcmqi")
    assert ct.scan_id == open_ct(real / "dcmqi" / "ct-3slice").scan_id
    assert codes(ct) == ["files_left_out"]
    assert "SEG" in ct.info.notices[0].message


def test_the_same_scan_as_nifti_and_dicom_has_one_id(real: Path) -> None:
    nifti = open_ct(real / "sts" / "STS_019" / "CT_image.nii.gz")
    dicom = open_ct(real / "sts" / "STS_019" / "dicom_CT_image")
    assert nifti.scan_id == dicom.scan_id
    assert np.array_equal(nifti.hu, dicom.hu)
    assert nifti.info.source_format != dicom.info.source_format


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "SAL", "ILP"])
def test_any_stored_orientation_gives_the_same_volume_and_id(
    small: tuple[Any, Any], write_nifti: WriteNifti, axes: str
) -> None:
    ornt: Any = import_module("nibabel.orientations")
    hu, affine = small
    turn = ornt.ornt_transform(ornt.axcodes2ornt("RAS"), ornt.axcodes2ornt(axes))
    stored = ornt.apply_orientation(hu, turn)
    ct = open_ct(write_nifti(stored, affine @ ornt.inv_ornt_aff(turn, hu.shape)))
    original = ct_from_array(hu, affine)
    assert ct.info.source_axcodes == axes
    assert np.array_equal(ct.hu, hu)
    assert ct.affine == pytest.approx(affine)
    assert ct.scan_id == original.scan_id


def test_the_id_changes_with_a_voxel_and_with_the_grid(small: tuple[Any, Any]) -> None:
    hu, affine = small
    other, moved = hu.copy(), affine.copy()
    other[3, 4, 5] += 1
    moved[0, 3] += 1.0
    ids = {ct_from_array(*scan).scan_id for scan in ((hu, affine), (other, affine), (hu, moved))}
    assert len(ids) == 3
    assert all(len(scan_id) == 24 for scan_id in ids)


def test_dicom_zip_and_nifti_of_a_synthetic_scan_agree(
    small: tuple[Any, Any], write_nifti: WriteNifti, write_dicom: WriteDicom, tmp_path: Path
) -> None:
    hu, affine = small
    folder = write_dicom(hu, affine)
    packed = tmp_path / "scan.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"deep/er/{file.name}")
    scans = [open_ct(path) for path in (write_nifti(hu, affine), folder, packed)]
    assert len({scan.scan_id for scan in scans}) == 1
    assert [scan.info.file_name for scan in scans] == ["ct.nii.gz", "series", "scan.zip"]


def test_zip_entries_that_point_outside_are_unpacked_inside(
    small: tuple[Any, Any], write_dicom: WriteDicom, tmp_path: Path
) -> None:
    hu, affine = small
    packed = tmp_path / "below" / "scan.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in write_dicom(hu, affine).iterdir():
            archive.write(file, f"../../escaped-{file.name}")
    before = {path.name for path in tmp_path.rglob("*")}
    assert open_ct(packed).shape == hu.shape
    assert {path.name for path in tmp_path.rglob("*")} == before


def test_gantry_tilt_is_kept_as_shear(small: tuple[Any, Any], write_dicom: WriteDicom) -> None:
    hu, affine = small
    tilted = affine.copy()
    tilted[1, 2] = 3.0
    ct = open_ct(write_dicom(hu, tilted))
    assert ct.affine == pytest.approx(tilted, abs=1e-4)
    assert ct.voxel_ml == pytest.approx(8 * 8 * 12 / 1000)


def test_localizers_and_single_pictures_are_left_out(small: tuple[Any, Any], write_dicom: WriteDicom) -> None:
    hu, affine = small
    folder = write_dicom(hu, affine, "both")
    write_dicom(
        hu[:, :, :3], affine, "both", series="1.2.9", tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    )
    write_dicom(hu[:, :, :1], affine, "both", series="1.2.7")
    ct = open_ct(folder)
    assert ct.shape == hu.shape
    assert "1 × single CT image" in ct.info.notices[0].message
    assert "3 × localizer" in ct.info.notices[0].message


def test_slope_and_intercept_are_honoured(small: tuple[Any, Any], tmp_path: Path) -> None:
    nibabel: Any = import_module("nibabel")

    hu, affine = small
    image = nibabel.Nifti1Image(((hu + 1024) / 2).astype(np.int16), affine)
    image.header.set_slope_inter(2.0, -1024.0)
    (tmp_path / "scaled.nii").write_bytes(image.to_bytes())
    header = open_ct(tmp_path / "scaled.nii")
    assert header.hu == pytest.approx(np.trunc((hu + 1024) / 2) * 2 - 1024)


def test_a_fourth_axis_of_one_is_dropped_and_volume_picks_one_of_several(
    small: tuple[Any, Any], write_nifti: WriteNifti
) -> None:
    hu, affine = small
    alone = open_ct(write_nifti(hu, affine))
    assert open_ct(write_nifti(hu[..., None], affine, "one.nii.gz")).scan_id == alone.scan_id
    several = write_nifti(np.stack([hu + 5, hu], axis=-1), affine, "two.nii.gz")
    assert open_ct(several, volume=1).scan_id == alone.scan_id
    assert open_ct(several, volume=0).scan_id != alone.scan_id
    with pytest.raises(ScanError, match="no volume 2"):
        open_ct(several, volume=2)


def test_a_constant_fill_becomes_air_but_rare_low_values_stay(small: tuple[Any, Any]) -> None:
    hu, affine = small
    filled, rare = hu.copy(), hu.copy()
    filled[:4] = -3024
    rare[0, 0, 0] = -2000
    assert ct_from_array(filled, affine).info.padding_hu == -3024
    assert float(ct_from_array(filled, affine).hu.min()) == -1024
    assert ct_from_array(rare, affine).info.padding_hu is None
    assert ct_from_array(rare, affine).info.hu_min == -2000


def test_an_mr_is_opened_with_a_warning(small: tuple[Any, Any], write_nifti: WriteNifti) -> None:
    hu, affine = small
    ct = open_ct(write_nifti(hu + 1000, affine))
    assert codes(ct) == ["looks_like_mr"]
    assert ct.info.notices[0].severity == "warning"
    assert codes(open_ct(write_nifti(hu, affine, "ct.nii"))) == []


def test_a_file_that_says_nothing_of_orientation_gives_a_notice(
    small: tuple[Any, Any], write_nifti: WriteNifti
) -> None:
    assert codes(open_ct(write_nifti(small[0], None))) == ["no_orientation"]


def test_two_different_spacings_in_one_header_give_a_notice(
    small: tuple[Any, Any], write_nifti: WriteNifti
) -> None:
    path = write_nifti(*small)
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[80:84] = np.float32(1.5).tobytes()
    path.write_bytes(gzip.compress(bytes(data), 1))
    ct = open_ct(path)
    assert codes(ct) == ["spacing_disagrees"]
    assert ct.spacing_mm == pytest.approx((8.0, 8.0, 12.0))


def test_a_gzip_of_several_members_is_read_whole(
    small: tuple[Any, Any], write_nifti: WriteNifti, tmp_path: Path
) -> None:
    path = write_nifti(*small)
    data = gzip.decompress(path.read_bytes())
    parts = [data[at : at + 30_000] for at in range(0, len(data), 30_000)]
    (tmp_path / "members.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in parts) + b"\0" * 64)
    assert len(parts) > 1
    assert open_ct(tmp_path / "members.nii.gz").scan_id == open_ct(path).scan_id
