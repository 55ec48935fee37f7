"""What ``ask --dicom`` writes, from real series, and that nothing of the patient leaks from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import WriteDicom, WriteNifti, torso, torso_grid
from tests.sample_answer import MEASUREMENTS, measurement, sample_answer
from tests.tools.dicom_case import GRIDS, PRIVATE, make_case
from tumorchain_agent import dicom_out
from tumorchain_agent.dicom_out import SEG_FILE, SR_FILE, write_dicom
from tumorchain_agent.errors import OutputError
from tumorchain_agent.mcp_server.segmentations import write_mask
from tumorchain_agent.records import DISCLAIMER, Measurement, Notice
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.scan import CT, open_ct
from tumorchain_agent.tools.write_seg import make_seg

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
NOW = datetime(2026, 1, 2, 3, 4, 5)
MEASURED: tuple[Measurement, ...] = (*MEASUREMENTS, measurement("aorta", 44.5, 150.25))


def nifti_of(labels: NDArray[np.uint8], ct: CT, folder: Path) -> bytes:
    write_mask(folder / "labels.nii.gz", labels, ct.affine)
    return (folder / "labels.nii.gz").read_bytes()


def written(scan: Path, ct: CT, labels: NDArray[np.uint8], folder: Path) -> tuple[Notice, ...]:
    answer = sample_answer(scan=ct.info)
    return write_dicom(folder / "dicom", scan, None, answer, MEASURED, nifti_of(labels, ct, folder), NOW)


def blobs(ct: CT, seed: int) -> NDArray[np.uint8]:
    """Boxes of ten structures, some beyond the edge, neighbours of one another."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(ct.shape, np.uint8, order="F")
    for key in (5, 1, 2, 3, 7, 20, 23, 52, 63, 117):
        middle, half = rng.integers(0, ct.shape), rng.integers(2, 30, 3)
        box = tuple(slice(max(0, a - b), a + b) for a, b in zip(middle, half, strict=True))
        labels[box] = key
    return labels


def texts(item: Any) -> Iterator[tuple[str, str]]:
    if item.get("ValueType") == "TEXT":
        yield str(item.ConceptNameCodeSequence[0].CodeMeaning), str(item.TextValue)
    for child in item.get("ContentSequence") or ():
        yield from texts(child)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "derived"),
    [
        ("totalsegmentator/example_ct_dicom", True),
        ("crlm/CRLM-CT-1004_dicom.zip", False),
        ("sts/STS_019/dicom_CT_image", False),
        ("sts/STS_019/CT_image.nii.gz", True),
    ],
)
def test_a_real_series_round_trips(name: str, derived: bool, real: Path, tmp_path: Path, seed: int) -> None:
    ct = open_ct(real / name)
    labels = blobs(ct, seed)
    notices = written(real / name, ct, labels, tmp_path)
    taken = load_label_map(tmp_path / "dicom" / SEG_FILE, ct)
    assert np.array_equal(taken.labels, labels)
    assert [notice.code for notice in notices] == (["derived_series"] if derived else [])
    assert (tmp_path / "dicom" / "series").is_dir() is derived
    assert by_highdicom(tmp_path / "dicom" / SEG_FILE, ct, labels)
    if derived:
        again = open_ct(tmp_path / "dicom" / "series")
        assert again.shape == ct.shape
        assert np.abs(again.hu - ct.hu).max() <= 0.5


def by_highdicom(path: Path, ct: CT, labels: NDArray[np.uint8]) -> bool:
    """Whether highdicom places every segment's voxels where the label map has them."""
    highdicom: Any = import_module("highdicom")
    seg = highdicom.seg.segread(path)
    ids = {name: key for key, name in STRUCTURES.items()}
    to_index = np.linalg.inv(ct.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    for item in seg.SegmentSequence:
        number = int(item.SegmentNumber)
        volume = seg.get_volume(segment_numbers=[number], allow_missing_positions=True)
        step = to_index @ volume.affine
        index = np.argwhere(volume.array[..., 0]) @ step[:3, :3].T + step[:3, 3]
        mask = np.zeros(ct.shape, bool)
        mask[tuple(np.rint(index).astype(int).T)] = True
        if not np.array_equal(mask, labels == ids[str(item.SegmentLabel)]):
            return False
    return len(seg.SegmentSequence) == len(np.unique(labels)) - 1


def test_the_report_holds_measurements_of_each_segment_and_the_answers_text(
    write_dicom: WriteDicom, tmp_path: Path
) -> None:
    highdicom: Any = import_module("highdicom")
    case = make_case(write_dicom, GRIDS["axial"])
    assert written(case.folder, case.ct, case.labels, tmp_path) == ()
    report = highdicom.sr.srread(tmp_path / "dicom" / SR_FILE)
    groups = {
        group.tracking_identifier: group for group in report.content.get_volumetric_roi_measurement_groups()
    }
    assert list(groups) == ["spleen", "liver", "vertebrae_L3", "aorta"]
    numbers = {
        (str(item.name.meaning), item.derivation.meaning if item.derivation else ""): float(item.value)
        for item in groups["liver"].get_measurements()
    }
    assert numbers[("Volume", "")] == 1125.684
    assert numbers[("Attenuation Coefficient", "Mean")] == 54.2
    assert numbers[("Diameter", "Maximum")] == 214.6
    assert numbers[("Probability of abnormality by the classifier", "")] == 0.83
    judged = {item.name.meaning: item.value.meaning for item in groups["liver"].get_qualitative_evaluations()}
    assert judged["Abnormality classifier"] == "Abnormal"
    assert judged["Cut by the edge of the scan: sizes are lower bounds"] == "Present"
    said = dict(texts(report))
    assert said["Finding"].startswith("A hypodense lesion of about 3.1 cm")
    assert said["Impression"].startswith("Solitary hepatic mass")
    assert said["Organs not in the scan, not assessed"] == "esophagus"
    assert said["Comment"].startswith(DISCLAIMER)
    assert "checkpoint" in said["Comment"]
    assert said["TNM as the model wrote it, checked against AJCC 8"].startswith("T1b N0 MX (liver)")
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")


def test_the_report_refers_to_the_seg_and_the_seg_to_the_series(
    write_dicom: WriteDicom, tmp_path: Path
) -> None:
    pydicom: Any = import_module("pydicom")
    case = make_case(write_dicom, GRIDS["oblique"])
    written(case.folder, case.ct, case.labels, tmp_path)
    seg = pydicom.dcmread(tmp_path / "dicom" / SEG_FILE)
    report = pydicom.dcmread(tmp_path / "dicom" / SR_FILE)
    evidence = {
        str(item.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    slices = {str(pydicom.dcmread(file).SOPInstanceUID) for file in case.folder.iterdir()}
    assert evidence == slices | {str(seg.SOPInstanceUID)}
    assert {str(each.StudyInstanceUID) for each in (seg, report)} == {"1.2.826.0.1.3680043.8.99.1"}
    assert report.PatientID == seg.PatientID == "MRN-4711"
    assert len({str(each.SeriesInstanceUID) for each in (seg, report)}) == 2


def test_nothing_of_the_patient_is_in_logs_or_names(
    write_dicom: WriteDicom,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level("DEBUG")
    case = make_case(write_dicom, GRIDS["axial"], **{"0010|0010": "Grün Jörg"})
    written(case.folder, case.ct, case.labels, tmp_path)
    names = " ".join(str(path) for path in tmp_path.rglob("*"))
    told = caplog.text + "".join(capfd.readouterr()) + names + json.dumps(case.ct.info.model_dump())
    assert not [value for value in PRIVATE if value in told]


def test_a_nifti_gets_a_series_of_its_own_that_names_no_patient(
    write_nifti: WriteNifti, tmp_path: Path
) -> None:
    pydicom: Any = import_module("pydicom")
    affine, shape = torso_grid(16.0, 14.0, 20.0)
    hu, labels = torso(affine, shape)
    scan = write_nifti(np.round(hu), affine, "doe.nii.gz")
    ct = open_ct(scan)
    (notice,) = written(scan, ct, labels, tmp_path)
    assert notice.code == "derived_series"
    first = pydicom.dcmread(tmp_path / "dicom" / "series" / "00001.dcm")
    assert (str(first.PatientName), first.PatientIdentityRemoved) == ("", "YES")
    assert "doe" not in str(first)
    assert open_ct(tmp_path / "dicom" / "series").scan_id == ct.scan_id
    seg = pydicom.dcmread(tmp_path / "dicom" / SEG_FILE, stop_before_pixels=True)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID


def test_the_same_nifti_has_the_same_uids_again(write_nifti: WriteNifti, tmp_path: Path) -> None:
    affine, shape = torso_grid(24.0)
    hu, labels = torso(affine, shape)
    scan = write_nifti(np.round(hu), affine)
    ct = open_ct(scan)
    bytes_of = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        written(scan, ct, labels, tmp_path / folder)
        bytes_of.append((tmp_path / folder / "dicom" / "series" / "00003.dcm").read_bytes())
    assert bytes_of[0] == bytes_of[1]


def test_a_seg_that_reads_back_otherwise_is_not_put_in_place(
    write_dicom: WriteDicom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(write_dicom, GRIDS["axial"])
    honest = make_seg

    def mirrored(source: Any, labels: Any, affine: Any, provenance: Any) -> Any:
        return honest(source, np.asfortranarray(labels[::-1]), affine, provenance)

    monkeypatch.setattr(dicom_out, "make_seg", mirrored)
    with pytest.raises(OutputError, match=r"reads back with .* voxels in other places; nothing was written"):
        written(case.folder, case.ct, case.labels, tmp_path)


def test_a_scan_that_was_exchanged_meanwhile_is_refused(write_dicom: WriteDicom, tmp_path: Path) -> None:
    case = make_case(write_dicom, GRIDS["axial"])
    shutil.rmtree(case.folder)
    make_case(write_dicom, GRIDS["coronal"])
    with pytest.raises(OutputError, match="has changed since it was examined"):
        written(case.folder, case.ct, case.labels, tmp_path)
