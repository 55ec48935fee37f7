"""``data validate``: lines for themselves, among each other, and with their scans; every file here is a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.data.examples import GOOD, HU, LABELS, fields, numbered, write_lines, write_patient
from tumorchain_agent.cli import main
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.training.data import scans
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.validate import Validation, validate_file


def check(path: Path, **options: Any) -> list[tuple[int, Reason, str]]:
    return [(each.line, each.reason, each.message) for each in validate_file(path, **options).problems]


def test_a_good_file_is_summed_up_by_patient_subtask_and_side(tmp_path: Path) -> None:
    lines = [numbered(k, patient=k % 4, split="test" if k % 4 == 0 else "train") for k in range(8)]
    lines.append(numbered(9, patient=1, task="external", subtask="m3d-vqa/plane"))
    found = validate_file(write_lines(tmp_path / "a.jsonl", *lines))
    assert found.good
    assert (found.lines, found.bad_lines, found.problems) == (9, 0, ())
    assert (found.summary.patients.train, found.summary.patients.test) == (3, 1)
    assert [(each.task, each.subtask, each.samples.both) for each in found.summary.subtasks] == [
        ("position", "organ", 8),
        ("external", "m3d-vqa/plane", 1),
    ]
    assert "| position / organ | 6 | 2 | 25.0 % |" in found.summary.table()


def test_the_same_question_of_the_same_scan_and_a_second_id_are_duplicates(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        numbered(1),
        fields(id="other", question="Else?"),
        numbered(1, id="again"),
        numbered(3, patient=3, id="other"),
        numbered(1, id="second scan", scan="P-1/late.nii.gz"),
        numbered(1, id="second subtask", subtask="segment"),
    )
    assert check(path) == [
        (3, Reason.DUPLICATE, "asks the same of the same scan as line 1; remove one of them"),
        (4, Reason.DUPLICATE, "id 'other' is that of line 2; give it another"),
    ]


def test_a_patient_on_both_sides_and_a_scan_of_two_patients_are_leaks(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        numbered(1, patient=1),
        numbered(2, patient=2, split="test"),
        numbered(3, patient=1, split="test"),
        numbered(4, patient=4, scan="P-2/ct.nii.gz"),
    )
    assert check(path) == [
        (
            3,
            Reason.BOTH_SIDES,
            "P-1 is in test here and in train on line 1; put all samples of a patient on one side",
        ),
        (
            4,
            Reason.SHARED_SCAN,
            "P-2/ct.nii.gz is a scan of P-2 on line 2; one of the two names is wrong",
        ),
    ]


def test_only_the_first_bad_lines_are_named_but_all_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", *(numbered(k, split="val") for k in range(9)), numbered(9))
    found = validate_file(path, first=3)
    assert [each.line for each in found.problems] == [1, 2, 3]
    assert (found.lines, found.bad_lines, found.reasons) == (10, 9, {Reason.BAD_LINE: 9})
    assert found.summary.samples.both == 1
    assert not found.good


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve lines about patients whose files are good, spoiled in one way each, or missing."""
    for name in ("P-1", "P-2", "P-3", "P-4", "P-5", "P-6"):
        write_patient(tmp_path, name)
    cut = tmp_path / "P-2" / "ct.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-3000])
    spoiled = HU.copy()
    spoiled[3, 3, 3] = np.nan
    write_patient(tmp_path, "P-7", hu=spoiled)
    (tmp_path / "P-3" / "labels.nii.gz").unlink()
    cut = tmp_path / "P-4" / "labels.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-100])
    write_patient(tmp_path, "P-8", labels=LABELS[:-1])
    pancreas = [GOOD["rounds"][0], {"organs": ["pancreas", "liver"], "text": "Answer: liver."}]
    absent = [pancreas[0], {**pancreas[1], "absent": ["pancreas"]}]
    called_absent = [pancreas[0], {**pancreas[1], "absent": ["pancreas", "liver"]}]
    return write_lines(
        tmp_path / "cohort.jsonl",
        numbered(1, patient=1, scan_id=open_ct(tmp_path / "P-1" / "ct.nii.gz").scan_id),
        numbered(2, patient=2),
        numbered(3, patient=3),
        numbered(4, patient=4),
        numbered(5, patient=5, rounds=pancreas),
        numbered(6, patient=5, rounds=absent),
        numbered(7, patient=5, rounds=called_absent),
        numbered(8, patient=6, scan_id="0" * 24),
        numbered(9, patient=7),
        numbered(10, patient=8),
        numbered(11, patient=9),
        numbered(12, patient=1, label_map=...),
    )


def test_scans_that_are_missing_cut_off_or_hold_nan_and_unfit_label_maps_are_named(cohort: Path) -> None:
    assert validate_file(cohort).good, "without --scans no file is opened"
    found = check(cohort, scans=True)
    assert [(line, reason) for line, reason, _ in found] == [
        (2, Reason.TRUNCATED_FILE),
        (3, Reason.MISSING_LABEL_MAP),
        (4, Reason.TRUNCATED_FILE),
        (5, Reason.ORGAN_LACKING),
        (7, Reason.ORGAN_PRESENT),
        (8, Reason.ANOTHER_SCAN),
        (9, Reason.NOT_FINITE),
        (10, Reason.UNFIT_LABEL_MAP),
        (11, Reason.MISSING_SCAN),
    ]
    words = {line: message for line, _, message in found}
    assert "P-5/labels.nii.gz lacks pancreas, which a round is shown" in words[5]
    assert "holds 1 voxels of NaN" in words[9]
    assert "P-9/ct.nii.gz does not exist" in words[11]


def test_each_scan_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path.parent.name)
        return open_ct(path, **options)

    monkeypatch.setattr(scans, "open_ct", counted)
    write_patient(tmp_path, "P-0")
    write_patient(tmp_path, "P-1")
    lines = [numbered(k, patient=k % 3) for k in range(9)]
    found = validate_file(write_lines(tmp_path / "a.jsonl", *lines), scans=True)
    assert opened == ["P-0", "P-1", "P-2"]
    assert (found.bad_lines, found.reasons) == (3, {Reason.MISSING_SCAN: 3})


def save_volume(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)


def test_model_volumes_are_checked_as_well(tmp_path: Path) -> None:
    volume = np.full((1, 32, 256, 256), 0.5, np.float32)
    save_volume(tmp_path / "P-1" / "v.npy", volume)
    save_volume(tmp_path / "P-2" / "v.npy", volume[0, :16])
    save_volume(tmp_path / "P-3" / "v.npy", np.where(volume > 0, np.nan, 0).astype(np.float32))
    save_volume(tmp_path / "P-4" / "v.npy", volume * 300)
    save_volume(tmp_path / "P-5" / "v.npy", volume)
    cut = tmp_path / "P-5" / "v.npy"
    cut.write_bytes(cut.read_bytes()[:-10])
    lines = [numbered(k, scan=f"P-{k}/v.npy", label_map=...) for k in range(1, 7)]
    lines.append(numbered(7, patient=1, scan="P-1/v.npy"))
    found = check(write_lines(tmp_path / "a.jsonl", *lines), scans=True)
    assert [(line, reason) for line, reason, _ in found] == [
        (2, Reason.UNREADABLE_SCAN),
        (3, Reason.NOT_FINITE),
        (4, Reason.UNREADABLE_SCAN),
        (5, Reason.TRUNCATED_FILE),
        (6, Reason.MISSING_SCAN),
        (7, Reason.UNFIT_LABEL_MAP),
    ]


def test_command_names_the_first_bad_lines_and_exits_with_2(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", str(cohort), "--scans", "--first", "2"]) == 2
    shown = capsys.readouterr()
    lines = shown.err.strip().splitlines()
    assert shown.out == ""
    assert lines[0].startswith("cohort.jsonl line 2 (patient P-2): ct.nii.gz is cut off")
    assert lines[1].startswith("cohort.jsonl line 3 (patient P-3): label map")
    assert lines[2].startswith("error: 9 of 12 lines of cohort.jsonl are bad (2 × truncated file, ")
    assert len(lines) == 3


def test_command_shows_a_table_of_a_good_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_patient(tmp_path)
    path = write_lines(tmp_path / "a.jsonl", fields())
    assert main(["data", "validate", str(path), "--scans"]) == 0
    assert "| **patients** | 1 | 0 | 0.0 % |" in capsys.readouterr().out


def test_command_prints_json_good_or_bad(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, code, bad in (([], 0, 0), (["--scans"], 2, 9)):
        assert main(["data", "validate", str(cohort), "--json", *options]) == code
        found = Validation.model_validate_json(capsys.readouterr().out)
        assert (found.lines, found.bad_lines, len(found.problems)) == (12, bad, bad)


def test_command_keeps_control_characters_of_a_file_off_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", fields(patient="\x1b[2Jx", split="\x1b[31m"))
    assert main(["data", "validate", str(path)]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_command_refuses_an_empty_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "a.jsonl")
    assert main(["data", "validate", str(path)]) == 2
    assert "a.jsonl is empty; write one sample a line" in capsys.readouterr().err


def test_the_example_in_the_tests_is_good(tmp_path: Path) -> None:
    assert json.loads(write_lines(tmp_path / "a.jsonl", GOOD).read_text()) == GOOD
    assert validate_file(tmp_path / "a.jsonl").good
