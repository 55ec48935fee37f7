"""DICOM in: choosing among series, phases, enhanced CT, tilt, and the errors that list what there is."""

from __future__ import annotations

import re
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteDicom
from tests.tools.dicom_case import GRIDS, UIDS, Case, make_case, provenance
from tumorchain_agent.cli import main
from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.dicom_source import open_source
from tumorchain_agent.tools.input_gate import inspect_input
from tumorchain_agent.tools.read_dicom import list_series, pick_series
from tumorchain_agent.tools.read_seg import read_seg
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.tools.write_seg import make_seg

MANY = 10**9
AFFINE = GRIDS["axial"]


@pytest.fixture
def case(write_dicom: WriteDicom) -> Case:
    return make_case(write_dicom, AFFINE)


def rounded(case: Case) -> Any:
    """HU [column, row, slice] as stored."""
    from tests.conftest import torso

    return np.round(torso(case.affine, (32, 26, 18))[0])


@pytest.fixture
def study(case: Case, write_dicom: WriteDicom) -> Path:
    """Series 2 and 7, and twice a series 4, in one folder, as an export of a whole study is."""
    hu = rounded(case)
    for number, series in enumerate(("1.2.7", "1.2.2", "1.2.3.4", "1.2.4.4")):
        write_dicom(hu + number, case.affine, f"study/{number}", series=series)
    return case.folder.parent / "study"


def test_several_series_are_listed_and_chosen_by_number_or_uid(study: Path, case: Case) -> None:
    assert [stack.name for stack in list_series(study, max_voxels=MANY)] == ["2", "4a", "4b", "7"]
    with pytest.raises(
        ScanError, match=r"holds 4 series \(series 2 CT: 18 slices 32×26, 20 mm apart; .*--series 2"
    ):
        open_ct(study)
    for wanted, above in (("7", 0), ("2", 1), ("1.2.4.4", 3), ("4a", 2)):
        ct = open_ct(study, volume=pick_series(study, wanted, max_voxels=MANY))
        assert float(ct.hu.min()) == pytest.approx(float(rounded(case).min()) + above)


@pytest.mark.parametrize("wanted", ["4", "3", "1.2", "", "../7"])
def test_a_series_that_is_not_there_is_told_with_those_that_are(study: Path, wanted: str) -> None:
    with pytest.raises(ScanError, match=r"has no series .*series 2 CT.*series 4a CT.*--series 2"):
        pick_series(study, wanted, max_voxels=MANY)
    with pytest.raises(ScanError, match="has no volume 4"):
        open_ct(study, volume=4)


def test_the_series_left_out_are_named_in_the_answer(study: Path) -> None:
    (notice,) = open_ct(study, volume=1).info.notices
    assert notice.code == "files_left_out"
    assert "other series (2), 1 × other series (4b), 1 × other series (7)" in notice.message


def test_a_series_of_a_zip_is_chosen_like_one_of_a_folder(study: Path, tmp_path: Path) -> None:
    packed = tmp_path / "study.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(study.rglob("*.dcm")):
            archive.write(file, str(file.relative_to(study)))
    index = pick_series(packed, "4b", max_voxels=MANY)
    assert open_ct(packed, volume=index).scan_id == open_ct(study, volume=index).scan_id


def test_phases_of_one_series_are_told_apart_by_their_acquisition(
    case: Case, write_dicom: WriteDicom
) -> None:
    hu = rounded(case)
    for phase in ("2", "10"):
        tags = {"0020|0012": phase, "0008|0018": f"1.2.99.{phase}"}
        write_dicom(hu + int(phase), case.affine, f"phases/{phase}", series="1.2.5", tags=tags)
    folder = case.folder.parent / "phases"
    assert [stack.name for stack in list_series(folder, max_voxels=MANY)] == ["5a", "5b"]
    late = open_ct(folder, volume=pick_series(folder, "5b", max_voxels=MANY))
    assert float(late.hu.max()) == float(hu.max()) + 10
    with pytest.raises(ScanError, match=r"has 2 stacks of series 1\.2\.5"):
        pick_series(folder, "1.2.5", max_voxels=MANY)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--series", "9"], r"has no series 9 \(series 2 CT: 18 slices"),
        (["--series", "2", "--volume", "1"], "pass one of them"),
        (["--dicom", "--json"], "--dicom writes files: with --json, name a folder with --out"),
    ],
)
def test_the_command_line_refuses_before_any_work(
    study: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = [] if "--json" in options else ["--out", str(tmp_path / "out")]
    assert main(["ask", str(study), "Is there a tumor?", *options, *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line), line
    assert not (tmp_path / "out").exists()


def test_a_series_of_a_nifti_is_refused(
    case: Case, write_nifti: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = write_nifti(rounded(case), case.affine)
    assert main(["ask", str(scan), "Is there a tumor?", "--series", "1"]) == 2
    assert "--series is for a DICOM folder or zip" in capsys.readouterr().err


@pytest.mark.parametrize("modality", ["MR", "PT", "US", "mr", "M\nR"])
def test_a_series_that_is_no_ct_is_refused_by_its_modality(
    modality: str, case: Case, write_dicom: WriteDicom
) -> None:
    folder = write_dicom(rounded(case), case.affine, "other", tags={"0008|0060": modality})
    shown = modality.upper().replace("\n", "?")
    with pytest.raises(ScanError, match="pass the folder of one CT series") as caught:
        open_ct(folder)
    told = "only 18 × US picture" if modality == "US" else f"no CT, but 18 × {shown} image"
    assert f"other holds {told}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ScanError, match="other holds"):
        list_series(folder, max_voxels=MANY)


@pytest.mark.parametrize("modality", ["MR", "PT", ""])
def test_the_ct_is_chosen_among_series_of_other_modalities(
    modality: str, case: Case, write_dicom: WriteDicom
) -> None:
    write_dicom(rounded(case), case.affine, "both/ct")
    write_dicom(rounded(case) + 9, case.affine, "both/other", series="1.2.9", tags={"0008|0060": modality})
    ct = open_ct(case.folder.parent / "both")
    assert ct.scan_id == case.ct.scan_id
    (notice,) = ct.info.notices
    assert f"left out 18 × single {modality or 'DICOM'} image" in notice.message
    assert inspect_input(ct).modality.why.endswith("the DICOM header says CT")


def test_localizers_of_a_ct_beside_an_mr_are_no_ct(case: Case, write_dicom: WriteDicom) -> None:
    localizer = {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_dicom(rounded(case), case.affine, "both/ct", tags=localizer)
    write_dicom(rounded(case), case.affine, "both/mr", series="1.2.9", tags={"0008|0060": "MR"})
    with pytest.raises(ScanError, match="holds no CT, but 18 × MR image"):
        open_ct(case.folder.parent / "both")


def test_a_series_that_does_not_say_its_modality_is_read_and_nobody_claims_that_it_is_ct(
    case: Case, write_dicom: WriteDicom
) -> None:
    folder = write_dicom(rounded(case), case.affine, "unknown", tags={"0008|0060": ""})
    ct = open_ct(folder)
    assert ct.scan_id == case.ct.scan_id
    assert [notice.code for notice in ct.info.notices] == ["modality_unknown"]
    told, known = inspect_input(ct).modality, inspect_input(case.ct).modality
    assert told.why.endswith("the DICOM header doesn't say its modality")
    assert "says CT" in known.why
    assert told.confidence <= known.confidence


@pytest.mark.parametrize(("modality", "told"), [("MR", "1 × multi-frame MR image"), ("CT", "no enhanced CT")])
def test_a_multi_frame_file_of_another_kind_is_told_by_its_modality(
    modality: str, told: str, tmp_path: Path
) -> None:
    pydicom: Any = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    example: Any = import_module("pydicom.examples")
    dataset = pydicom.dcmread(example.get_path("rt_dose"))
    dataset.Modality = modality
    (tmp_path / "other").mkdir()
    dataset.save_as(tmp_path / "other" / "all.dcm")
    with pytest.raises(ScanError, match=told):
        open_ct(tmp_path / "other")


def test_gantry_tilt_is_named_with_its_angle(write_dicom: WriteDicom) -> None:
    tilted = make_case(write_dicom, GRIDS["gantry tilt"])
    (notice,) = tilted.ct.info.notices
    assert notice.code == "gantry_tilt"
    assert "gantry tilt of 15.0°" in notice.message
    assert tilted.ct.affine == pytest.approx(open_ct(tilted.folder).affine)


def test_oblique_slices_without_tilt_are_not_called_tilted(write_dicom: WriteDicom) -> None:
    assert make_case(write_dicom, GRIDS["oblique"]).ct.info.notices == ()


def enhanced(case: Case, path: Path) -> Path:
    """The same slices in one multi-frame file, converted by highdicom."""
    highdicom: Any = import_module("highdicom.legacy")
    pydicom: Any = import_module("pydicom")
    files = [pydicom.dcmread(file) for file in sorted(case.folder.iterdir())]
    for dataset in files:
        dataset.PatientOrientation = None
        dataset.AcquisitionNumber = 1
    converted = highdicom.LegacyConvertedEnhancedCTImage(
        legacy_datasets=files,
        series_instance_uid="1.2.3.77",
        series_number=3,
        sop_instance_uid="1.2.3.77.1",
        instance_number=1,
    )
    path.parent.mkdir()
    converted.save_as(path)
    return path.parent


@pytest.mark.parametrize("name", ["axial", "oblique", "slices from head to foot"])
def test_an_enhanced_ct_is_the_same_scan_as_its_single_slices(
    name: str, write_dicom: WriteDicom, tmp_path: Path
) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    case = make_case(write_dicom, GRIDS[name])
    folder = enhanced(case, tmp_path / "enhanced" / "all.dcm")
    ct = open_ct(folder)
    assert np.array_equal(ct.hu, case.ct.hu)
    assert ct.affine == pytest.approx(case.ct.affine, abs=1e-4)
    seg = make_seg(open_source(folder, None, ct), case.labels, ct.affine, provenance(ct))
    seg.save_as(tmp_path / "seg.dcm")
    seen = np.zeros_like(case.labels)
    for segment in read_seg(tmp_path / "seg.dcm", ct.affine, ct.shape):
        seen[segment.mask] = segment.structure or 0
    assert np.array_equal(seen, case.labels)
    assert seg.StudyInstanceUID == UIDS["0020|000d"]


def test_an_enhanced_ct_that_lacks_frames_places_is_refused(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    pydicom: Any = import_module("pydicom")
    folder = enhanced(case, tmp_path / "enhanced" / "all.dcm")
    dataset = pydicom.dcmread(folder / "all.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence
    dataset.save_as(folder / "all.dcm")
    with pytest.raises(ScanError, match="frames don't say where they lie"):
        open_ct(folder)


def test_an_enhanced_ct_that_lacks_a_slice_is_refused(case: Case, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    next(file for file in case.folder.iterdir() if file.name.endswith("-8.dcm")).unlink()
    with pytest.raises(ScanError, match=r"all.dcm, 20.00 mm elsewhere|lacks slices"):
        open_ct(enhanced(case, tmp_path / "enhanced" / "all.dcm"))
