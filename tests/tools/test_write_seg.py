"""DICOM SEG out and in: voxel for voxel on the source's grid, by highdicom, by SimpleITK, and by our own reader."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import WriteDicom
from tests.tools.dicom_case import GRIDS, PRIVATE, UIDS, Case, make_case, provenance
from tumorchain_agent.errors import LabelMapError, OutputError
from tumorchain_agent.mcp_server.segmentations import write_mask
from tumorchain_agent.tools.dicom_source import open_source
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.read_seg import is_seg, read_seg
from tumorchain_agent.tools.write_seg import make_seg

pytest.importorskip("highdicom", reason="the extra dicom is not installed")


def write_seg(case: Case, path: Path) -> Path:
    source = open_source(case.folder, None, case.ct)
    make_seg(source, case.labels, case.ct.affine, provenance(case.ct)).save_as(path)
    return path


def by_highdicom(path: Path, case: Case) -> NDArray[np.uint8]:
    """Labels [column, row, slice], each voxel placed by highdicom's own affine."""
    highdicom: Any = import_module("highdicom")
    seg = highdicom.seg.segread(path)
    found = np.zeros_like(case.stored)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    for number in seg.segment_numbers:
        volume = seg.get_volume(segment_numbers=[number], allow_missing_positions=True)
        step = np.linalg.inv(case.affine) @ to_ras @ volume.affine
        inside = np.argwhere(volume.array[..., 0])
        index = inside @ step[:3, :3].T + step[:3, 3]
        assert np.abs(index - np.rint(index)).max() < 1e-3
        found[tuple(np.rint(index).astype(int).T)] = names_of(seg)[number]
    return found


def names_of(seg: Any) -> dict[int, int]:
    ids = {name: key for key, name in STRUCTURES.items()}
    return {int(item.SegmentNumber): ids[str(item.SegmentLabel)] for item in seg.SegmentSequence}


def by_simpleitk(path: Path, case: Case) -> NDArray[np.uint8]:
    """Labels [column, row, slice] of the series as SimpleITK reads it, each frame placed by its physical point."""
    sitk: Any = import_module("SimpleITK")
    pydicom: Any = import_module("pydicom")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(case.folder))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    series = reader.Execute()
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    found = np.zeros(sitk.GetArrayViewFromImage(series).shape, np.uint8)
    for plane, frame in zip(pixels, header.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        place = [float(mm) for mm in frame.PlanePositionSequence[0].ImagePositionPatient]
        column, row, level = series.TransformPhysicalPointToIndex(place)
        assert (column, row) == (0, 0)
        found[level][plane > 0] = names_of(header)[number]
    first = np.array(series.GetOrigin()) * [-1, -1, 1]
    flipped = np.abs(first - case.affine[:3, 3]).max() > 1
    return found.T[:, :, ::-1] if flipped else found.T


@pytest.mark.parametrize("name", GRIDS)
def test_seg_gives_the_mask_back_voxel_for_voxel(name: str, write_dicom: WriteDicom, tmp_path: Path) -> None:
    case = make_case(write_dicom, GRIDS[name])
    path = write_seg(case, tmp_path / "seg.dcm")
    assert {int(key) for key in np.unique(case.labels)} == {0, 1, 5, 29, 52}
    ours = np.zeros_like(case.labels)
    for segment in read_seg(path, case.ct.affine, case.ct.shape):
        ours[segment.mask] = segment.structure or 0
    assert np.array_equal(ours, case.labels)
    if name == "gantry tilt":
        assert [notice.code for notice in case.ct.info.notices] == ["gantry_tilt"]
        return
    assert np.array_equal(by_highdicom(path, case), case.stored)
    assert np.array_equal(by_simpleitk(path, case), case.stored)


def test_a_mask_of_tilted_slices_has_no_qform_that_would_lie(write_dicom: WriteDicom, tmp_path: Path) -> None:
    nibabel: Any = import_module("nibabel")
    for name, code in (("gantry tilt", 0), ("oblique", 1)):
        case = make_case(write_dicom, GRIDS[name])
        write_mask(tmp_path / "mask.nii.gz", case.labels, case.ct.affine)
        image = nibabel.load(tmp_path / "mask.nii.gz")
        assert int(image.header["qform_code"]) == code
        assert image.affine == pytest.approx(case.ct.affine, abs=1e-3)
        assert np.array_equal(load_label_map(tmp_path / "mask.nii.gz", case.ct).labels, case.labels)


def test_seg_refers_to_its_slices_and_says_what_made_it(write_dicom: WriteDicom, tmp_path: Path) -> None:
    pydicom: Any = import_module("pydicom")
    case = make_case(write_dicom, GRIDS["axial"])
    seg = pydicom.dcmread(write_seg(case, tmp_path / "seg.dcm"))
    sources = {str(pydicom.dcmread(file).SOPInstanceUID) for file in case.folder.iterdir()}
    referred = {
        str(item.ReferencedSOPInstanceUID)
        for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred == sources
    assert str(seg.FrameOfReferenceUID) == UIDS["0020|0052"]
    assert str(seg.StudyInstanceUID) == UIDS["0020|000d"]
    assert (str(seg.PatientName), seg.PatientID) == ("Grün^Jörg", "MRN-4711")
    assert seg.ContentDescription == "Research software, not a medical device."
    assert "checkpoint nano-12" in seg.SoftwareVersions
    assert (seg.ContentDate, seg.SegmentationType) == ("20260102", "BINARY")
    liver = next(item for item in seg.SegmentSequence if item.SegmentLabel == "liver")
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"


def test_a_seg_is_taken_as_masks_and_tells_what_it_never_looked_for(
    write_dicom: WriteDicom, tmp_path: Path
) -> None:
    case = make_case(write_dicom, GRIDS["oblique"])
    path = write_seg(case, tmp_path / "seg.dcm")
    assert is_seg(path)
    taken = load_label_map(path, case.ct)
    assert np.array_equal(taken.labels, case.labels)
    assert {"pancreas", "stomach"} <= set(taken.info.organs_unknown)
    assert "liver" in taken.info.organs_present


def test_a_seg_of_another_scan_is_refused(write_dicom: WriteDicom, tmp_path: Path) -> None:
    case = make_case(write_dicom, GRIDS["axial"])
    path = write_seg(case, tmp_path / "seg.dcm")
    moved = case.ct.affine.copy()
    moved[0, 3] += 4.0
    with pytest.raises(LabelMapError, match=r"not on the grid of the scan \(a frame lies 0\.29 voxels off\)"):
        read_seg(path, moved, case.ct.shape)
    with pytest.raises(LabelMapError, match="lies outside it"):
        read_seg(path, case.ct.affine, (10, 10, 10))
    other = case.ct.affine.copy()
    other[2, 2] *= 1.5
    with pytest.raises(OutputError, match="voxels of"):
        make_seg(open_source(case.folder, None, case.ct), case.labels, other, provenance(case.ct))


def test_no_value_of_the_patient_is_told_when_the_source_is_unfit(
    write_dicom: WriteDicom, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    case = make_case(write_dicom, GRIDS["axial"], **{"0010|0040": "Grün"})
    with pytest.raises(OutputError, match="lacks or garbles") as caught:
        make_seg(open_source(case.folder, None, case.ct), case.labels, case.ct.affine, provenance(case.ct))
    told = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert not [value for value in PRIVATE if value in told]
    assert caught.value.__cause__ is None


def test_an_empty_label_map_gives_no_seg(write_dicom: WriteDicom) -> None:
    case = make_case(write_dicom, GRIDS["axial"])
    with pytest.raises(OutputError, match="nothing was segmented"):
        make_seg(
            open_source(case.folder, None, case.ct), case.labels * 0, case.ct.affine, provenance(case.ct)
        )


def test_overlapping_segments_of_dcmqi_are_read(real: Path) -> None:
    from tumorchain_agent.tools.scan import open_ct

    sitk: Any = import_module("SimpleITK")
    folder = real / "dcmqi"
    ct = open_ct(folder / "ct-3slice")
    segments = {
        item.label: item.mask for item in read_seg(folder / "partial_overlaps.dcm", ct.affine, ct.shape)
    }
    assert list(segments) == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    layers = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"partial_overlaps-{part}.nrrd"))).T[::-1, ::-1]
        for part in (1, 2, 3)
    ]
    for number, mask in enumerate(segments.values(), start=1):
        assert any(np.array_equal(layer == number, mask) for layer in layers), f"segment {number}"
    assert np.stack(list(segments.values())).sum(axis=0).max() > 1
    with pytest.raises(LabelMapError, match=r"no segment with the SNOMED CT code .* GREEN, ORANGE"):
        load_label_map(folder / "partial_overlaps.dcm", ct)


def test_an_old_seg_with_snomed_rt_codes_is_taken_as_masks(real: Path) -> None:
    from tumorchain_agent.tools.scan import open_ct

    sitk: Any = import_module("SimpleITK")
    ct = open_ct(real / "dcmqi" / "ct-3slice")
    taken = load_label_map(real / "dcmqi" / "liver.dcm", ct)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(real / "dcmqi" / "liver_seg.nrrd"))).T[::-1, ::-1]
    assert taken.info.organs_present == ("liver",)
    assert np.array_equal(taken.labels == 5, stored > 0)
