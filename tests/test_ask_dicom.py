"""``ask --series … --dicom`` from the file to the objects, with real parts; the patient stays in the DICOM files."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteDicom, torso
from tests.test_ask import QUESTION, save_random_checkpoint
from tests.tools.dicom_case import GRIDS, PRIVATE, Case, make_case
from tumorchain_agent.cli import main
from tumorchain_agent.cli_viewer import make_page
from tumorchain_agent.mcp_server.segmentations import write_mask
from tumorchain_agent.records import Answer
from tumorchain_agent.tools.labels import load_label_map

pytestmark = pytest.mark.slow


@pytest.fixture
def case(write_dicom: WriteDicom, tmp_path: Path) -> Case:
    """Series 1, with its labels, beside a series 2, below one folder; and a checkpoint."""
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    found = make_case(write_dicom, GRIDS["axial"])
    other = np.round(torso(found.affine, (32, 26, 18))[0]) + 7
    write_dicom(other, found.affine, "series/other", series="1.2.2")
    write_mask(tmp_path / "labels.nii.gz", found.labels, found.ct.affine)
    save_random_checkpoint(tmp_path / "model")
    return found


def ask(case: Case, masks: str, out: str, capsys: pytest.CaptureFixture[str]) -> tuple[Answer, str]:
    words = ["ask", str(case.folder), QUESTION, "--series", "1", "--dicom", "--masks", masks, "--out", out]
    code = main([*words, "--model", "model", "--max-rounds", "2", "--json"])
    told = capsys.readouterr()
    assert code == 0, told.err
    return Answer.model_validate_json(told.out), told.out + told.err


def test_ask_writes_seg_and_sr_and_keeps_the_patient_out_of_everything_else(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pydicom: Any = import_module("pydicom")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    answer, told = ask(case, "labels.nii.gz", "out", capsys)
    assert answer.scan.scan_id == case.ct.scan_id
    seg, report = (
        pydicom.dcmread(tmp_path / "out/dicom" / name) for name in ("segmentation.dcm", "report.dcm")
    )
    assert np.array_equal(
        load_label_map(tmp_path / "out/dicom/segmentation.dcm", case.ct).labels, case.labels
    )
    assert (seg.PatientID, report.PatientID) == ("MRN-4711", "MRN-4711")
    assert f"checkpoint {answer.versions.checkpoint_id}" in seg.SoftwareVersions
    written = [
        path
        for folder in ("out", "cache")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file() and "dicom" not in path.relative_to(tmp_path).parts
    ]
    seen = told.encode() + b"".join(path.read_bytes() + str(path).encode() for path in written)
    assert len(written) > 10
    assert not [value for value in PRIVATE if value.encode() in seen]

    again, _ = ask(case, "out/dicom/segmentation.dcm", "again", capsys)
    assert again.segmentation is not None
    assert "pancreas" in again.segmentation.organs_unknown
    assert load_label_map(tmp_path / "again/dicom/segmentation.dcm", case.ct).info.organs_present == (
        answer.segmentation.organs_present if answer.segmentation else ()
    )

    page = make_page(tmp_path / "out", None, tmp_path)
    assert json.loads(page.data)["question"] == QUESTION
