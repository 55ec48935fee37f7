"""The agent and a baseline in one table: what is measured never reaches an LLM, the rest is the LLM's or nobody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteNifti, torso, torso_grid
from tests.training.evaluation.endpoint import MODEL, pictures_of, scripted, text_of
from tumorchain_agent.cli import main
from tumorchain_agent.model.checkpoint import NANO_DIR
from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import aggregate

VOLUME, GALL, SHAPE = (
    "What is the volume of the spleen?",
    "Is the gallbladder dilated?",
    "Describe the liver's contour.",
)


def question(number: int, text: str, answer: str, options: str, correct: str) -> dict[str, Any]:
    return {
        "qid": f"q{number}", "image_id": "BDMAP_1", "spacing": "[6 6 6]", "shape": "(56, 40, 48)", "sex": None,
        "age": None, "question": text, "answer": answer, "mc_question": f"{text} {options}", "correct_option": correct,
        "organ": "liver", "lesion": False, "question_type": "measurement", "question_subtype": f"kind {number}",
        "requires_tools": [],
    }  # fmt: skip


@pytest.fixture
def folders(
    tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, float]:
    """Dataset, masks, and the spleen's volume in ml."""
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    affine, shape = torso_grid(6.0)
    hu, labels = torso(affine, shape)
    place, masks = tmp_path / "data" / "benchmark" / "ct" / "BDMAP_1", tmp_path / "masks"
    place.mkdir(parents=True)
    masks.mkdir()
    write_nifti(hu, affine, "ct.nii.gz").rename(place / "ct.nii.gz")
    write_nifti(labels, affine, "labels.nii.gz", np.uint8).rename(masks / "BDMAP_1.nii.gz")
    spleen = float((labels == 1).sum() * 0.216)
    rows = [
        question(1, VOLUME, f"{spleen:.2f}", f"A: {spleen / 2:.1f} B: {spleen:.1f} C: {2 * spleen:.1f}", "B"),
        question(2, GALL, "No", "A: Yes B: No", "B"),
        question(3, SHAPE, "Smooth", "A: Nodular B: Smooth", "B"),
    ]
    (place.parents[1] / "test_qa.json").write_text(json.dumps({"questions": rows}))
    return tmp_path / "data", masks, spleen


def reply(request: dict[str, Any]) -> str:
    text = text_of(request)
    if "Reply with JSON" in text:
        return json.dumps({"correct": "Answer: Even" in text})
    if VOLUME in text:
        return "C"
    return "Answer: B" if GALL in text else "Nothing can be said."


@pytest.mark.slow
def test_measured_answers_need_no_llm_and_the_baseline_sees_slices_alone(
    folders: tuple[Path, Path, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, masks, spleen = folders
    monkeypatch.setenv("TUMORCHAIN_MASKS_DIR", str(masks))
    with scripted(reply) as server:
        command = ["evaluate", "--suite", "deeptumorvqa", str(data), "--who", "both", "--evidence", "images"]
        assert (
            main([*command, "--llm-url", server.url, "--llm-model", MODEL, "--out", str(tmp_path / "out")])
            == 0
        )
        with_pictures = [request for request in server.requests if len(pictures_of(request)) == 8]
    assert len(with_pictures) == 3
    agents = [text_of(request) for request in server.requests if request not in with_pictures]
    assert agents
    assert not any(VOLUME in text for text in agents)
    table = capsys.readouterr().out
    assert "| all | 3 | 66.7 (66.7–66.7) | 33.3 (33.3–33.3) |" in table
    assert f"| agent ({MODEL}, images) | 1 | 1 | 0 |" in table
    (path,) = (tmp_path / "out").glob("result-agent-*.json")
    result = json.loads(path.read_text())
    rows = result["results"]
    assert [row["raw_output"] for row in rows] == ["B", "Answer: B", "Nothing can be said."]
    assert [row["trajectory"][-1]["final_answer"] for row in rows] == ["B", "B", "unanswered"]
    assert result["metrics"] == aggregate([{**row, "pred_answer": row["raw_output"]} for row in rows], "mc")
    assert result["metrics"]["overall"]["accuracy"] == 0.3333, "the package reads A in 'Answer: B'"
    first = rows[0]["trajectory"]
    assert first[0]["result"].startswith("measurement://")
    assert first[-1]["text"] == f"Measured volume: spleen {spleen:.1f} ml."


def test_other_masks_are_measured_anew_and_the_same_ones_are_not(
    folders: tuple[Path, Path, float], tmp_path: Path, write_nifti: WriteNifti
) -> None:
    data, masks, spleen = folders
    out = tmp_path / "out"
    command = ["evaluate", "--suite", "deeptumorvqa", str(data), "--format", "freeform", "--limit", "1"]

    def answers(folder: Path) -> list[str]:
        assert main([*command, "--masks-dir", str(folder), "--out", str(out)]) == 0
        return [json.loads(line)["said"]["text"] for line in (out / "answers.jsonl").read_text().splitlines()]

    other = tmp_path / "other"
    other.mkdir()
    affine, shape = torso_grid(6.0)
    labels = torso(affine, shape)[1]
    write_nifti(
        np.where(labels == 1, 5, np.where(labels == 5, 1, labels)), affine, "o.nii.gz", np.uint8
    ).rename(other / "BDMAP_1.nii.gz")
    liver = float((labels == 5).sum() * 0.216)
    first = answers(masks)
    assert [float(text) for text in first] == [pytest.approx(spleen, abs=0.1)]
    both = answers(other)
    assert [float(text) for text in both] == [pytest.approx(spleen, abs=0.1), pytest.approx(liver, abs=0.1)]
    assert answers(other) == both
    assert answers(masks) == both


def test_a_line_that_does_not_tell_what_it_rests_on_is_not_gone_on_from(
    folders: tuple[Path, Path, float], tmp_path: Path
) -> None:
    data, masks, spleen = folders
    path = tmp_path / "out" / "answers.jsonl"
    command = ["evaluate", "--suite", "deeptumorvqa", str(data), "--format", "freeform", "--limit", "1"]
    command += ["--masks-dir", str(masks), "--out", str(path.parent)]
    assert main(command) == 0
    line = json.loads(path.read_text())
    del line["made_with"]
    line["said"]["text"] = "7"
    path.write_text(json.dumps(line) + "\n")
    assert main(command) == 0
    texts = [json.loads(each)["said"]["text"] for each in path.read_text().splitlines()]
    assert [float(text) for text in texts] == [7, pytest.approx(spleen, abs=0.1)]


def test_open_answers_are_compared_by_a_judge_behind_an_address(
    folders: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks, _ = folders

    def open_reply(request: dict[str, Any]) -> str:
        text = text_of(request)
        return reply(request) if "Reply with JSON" in text else "No." if GALL in text else "Answer: Even"

    with scripted(open_reply) as server:
        command = [
            "evaluate",
            "--suite",
            "deeptumorvqa",
            str(data),
            "--masks-dir",
            str(masks),
            "--format",
            "freeform",
        ]
        urls = [
            "--llm-url",
            server.url,
            "--llm-model",
            MODEL,
            "--judge-url",
            server.url,
            "--judge-model",
            MODEL,
        ]
        assert main([*command, "--evidence", "text", *urls, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["judge"] == MODEL
    whole = {cell["row"]: cell["rate"]["value"] for cell in scores["cells"] if cell["group"] == "subtask"}
    assert whole["kind 3"] == 1.0
    assert whole["kind 1"] == pytest.approx(1.0, abs=0.001)


def test_checkpoints_are_compared_in_columns_of_one_table(
    folders: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, masks, _ = folders
    models = [tmp_path / name for name in ("alpha-0", "alpha-1")]
    for model in models:
        model.symlink_to(NANO_DIR)
    command = ["evaluate", "--suite", "deeptumorvqa", str(data), "--masks-dir", str(masks), "--limit", "1"]
    named = [word for model in models for word in ("--model", str(model))]
    assert main([*command, *named]) == 0
    assert "| | n | agent (alpha-0, tokens) | agent (alpha-1, tokens) |" in capsys.readouterr().out
    assert main([*command, "--model", str(models[0]), "--model", str(tmp_path / "x" / "alpha-0")]) == 2
    assert "two checkpoints are called alpha-0" in capsys.readouterr().err
