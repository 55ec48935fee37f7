"""Measurement, comparison and threshold questions of DeepTumorVQA's subtypes, answered from true masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.evaluation.dataset import Patient, numbered, patient, write
from tests.training.evaluation.wording import questions_of
from tumorchain_agent.cli import main
from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import aggregate

FIRST = 9_100_000
Folders = tuple[Path, Path, list[Patient]]


def make(folder: Path, count: int, seed: int) -> Folders:
    """A dataset, its masks, its patients."""
    rng = np.random.default_rng(seed)
    people = [patient(FIRST + seed % 100_000 + k, rng) for k in range(count)]
    questions = numbered(each for who in people for each in questions_of(who, rng))
    return write(folder / "data", folder / "masks", people, questions), folder / "masks", people


def results(folder: Path, masks: Path, form: str, out: Path) -> dict[str, Any]:
    """What the command writes for its one subject."""
    command = [
        "evaluate",
        "--suite",
        "deeptumorvqa",
        str(folder),
        "--masks-dir",
        str(masks),
        "--format",
        form,
    ]
    assert main([*command, "--out", str(out)]) == 0
    (found,) = out.glob("result-*.json")
    return dict(json.loads(found.read_text("utf-8")))


@pytest.mark.slow
def test_measured_answers_are_right_in_both_formats(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    folder, masks, _ = make(tmp_path, 3, seed)
    for form in ("mc", "freeform"):
        result = results(folder, masks, form, tmp_path / form)
        rows = result["results"]
        last = [row["trajectory"][-1] for row in rows]
        assert [each for each in last if each["how"] != "measured"] == []
        wrong = [(row["question_subtype"], row["pred_answer"], row["answer"]) for row in rows]
        by_subtype = result["metrics"]["by_subtype"]
        if form == "mc":
            assert result["metrics"]["overall"]["accuracy"] >= 0.99, wrong
        else:
            numeric = {name: m["mean_mra"] for name, m in by_subtype.items() if m["metric"] == "MRA"}
            assert len(numeric) == 11
            assert min(numeric.values()) >= 0.99, numeric
            binary = [m["accuracy"] for m in by_subtype.values() if "sensitivity" in m]
            assert min(binary) >= 0.99, by_subtype
        assert result["metrics"] == aggregate(rows, "mc" if form == "mc" else "freeform")
        assert all(row["trajectory"][0]["result"] for row in rows if len(row["trajectory"]) > 1)


@pytest.mark.slow
def test_without_lesion_masks_no_lesion_is_counted(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    folder, masks, _ = make(tmp_path, 1, seed)
    for path in (*masks.glob("*_lesions.nii.gz"), *masks.glob("*_segments.nii.gz")):
        path.unlink()
    path = folder / "benchmark" / "test_qa.json"
    table = json.loads(path.read_text("utf-8"))
    table["questions"] = [
        each
        for each in table["questions"]
        if each["question_subtype"] in ("lesion counting", "organ volume measurement")
    ]
    path.write_text(json.dumps(table))
    for row in results(folder, masks, "freeform", tmp_path / "out")["results"]:
        told = row["trajectory"][-1]
        if row["question_subtype"] == "lesion counting":
            assert told["how"] != "measured"
            assert told["note"].startswith("lesions of liver are not segmented: not measured")
        else:
            assert told["how"] == "measured"
    assert "not a medical device" in capsys.readouterr().out
