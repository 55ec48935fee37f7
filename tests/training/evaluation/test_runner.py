"""Benchmarks of files through the command: a vision LLM on slices as a baseline, tables, and going on after a cut."""

from __future__ import annotations

import base64
import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import WriteNifti, torso, torso_grid
from tests.training.evaluation.endpoint import MODEL, pictures_of, scripted, text_of
from tumorchain_agent.cli import main
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.data.m3d import COLUMNS as M3D_COLUMNS
from tumorchain_agent.training.data.rad3d import COLUMNS as RAD_COLUMNS
from tumorchain_agent.training.evaluation.prompts import read_prompt
from tumorchain_agent.training.evaluation.reading import read_answer

DIRECT = ("--who", "direct", "--llm-model", MODEL)


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]], missing: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval=missing)
        table.writeheader()
        table.writerows(rows)
    return path


def m3d(folder: Path) -> Path:
    np.save(folder / "a.npy", np.random.default_rng(0).random((1, 32, 64, 64), np.float32))
    choices = {"Choice A": "Axial", "Choice B": "Coronal", "Choice C": "Sagittal", "Choice D": "Oblique"}
    rows = [
        {"Image Path": "a.npy", "Question Type": "1", "Question": "Which plane?", **choices, "Answer": "Axial",
         "Answer Choice": "A"},
        {"Image Path": "a.npy", "Question Type": "4", "Question": "Which finding?", "Answer": "A hypodense mass"},
        {"Image Path": "a.npy", "Question Type": "4", "Question": "Which other finding?", "Answer": "No ascites"},
    ]  # fmt: skip
    return write_csv(folder / "M3D_VQA_test.csv", M3D_COLUMNS, rows, "NA")


def said(request: dict[str, Any]) -> str:
    text = text_of(request)
    for words, reply in {
        "plane": "The answer is A. Axial",
        "Which finding": "There is a low-density mass.",
        "other finding": "Ascites.",
        "nodule": "No",
        "size": "Cannot tell.",
    }.items():
        if words in text:
            return reply
    raise AssertionError(text)


def test_m3d_vqa_is_asked_of_a_vision_llm_and_open_answers_compared_by_facts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = m3d(tmp_path), tmp_path / "out"
    with scripted(said) as server:
        command = [
            "evaluate",
            "--suite",
            "m3d-vqa",
            str(path),
            *DIRECT,
            "--llm-url",
            server.url,
            "--out",
            str(out),
        ]
        assert main(command) == 0
        assert len(server.requests) == 3
        assert main(command) == 0
        assert len(server.requests) == 3
    pictures = pictures_of(server.requests[0])
    assert len(pictures) == 8
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))).size == (64, 64)
    shown = capsys.readouterr().out
    assert "| m3d-vqa/plane | 1 | 100.0 (100.0–100.0) |" in shown
    assert "| m3d-vqa/abnormality | 2 | 50.0 (50.0–50.0) |" in shown
    assert "not a medical device" in shown
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [float(row["value"]) for row in rows if row["group"] == "all"] == [pytest.approx(2 / 3)]
    assert ET.parse(out / "chart.svg").getroot().tag.endswith("svg")
    assert json.loads((out / "scores.json").read_text())["judge"] == "facts (deterministic)"


def test_3d_rad_counts_an_unreadable_answer_as_wrong_and_says_so(
    tmp_path: Path, write_nifti: WriteNifti, capsys: pytest.CaptureFixture[str]
) -> None:
    affine, shape = torso_grid(12.0)
    write_nifti(torso(affine, shape)[0], affine, "valid_1_a_1.nii.gz")
    common = {"VolumeName": "valid_1_a_1.nii.gz"}
    rows = [
        {**common, "Task": "Task4", "Subtask": "nodule", "Question": "Is there a nodule?", "Answer": "No",
         "QuestionType": "Close"},
        {**common, "Task": "Task3", "Subtask": "size", "Question": "What size has it?", "Answer": "12 mm",
         "QuestionType": "Open"},
    ]  # fmt: skip
    path = write_csv(tmp_path / "test" / "Task4.csv", RAD_COLUMNS, rows, "-")
    with scripted(said) as server:
        command = ["evaluate", "--suite", "3d-rad", str(path.parent), "--scans", str(tmp_path), *DIRECT]
        assert main([*command, "--llm-url", server.url, "--json"]) == 0
    cells = {(c["group"], c["row"]): c for c in json.loads(capsys.readouterr().out)["cells"]}
    assert cells["subtask", "3d-rad/Task4"]["rate"]["value"] == 1
    assert (cells["all", "all"]["rate"]["value"], cells["all", "all"]["unanswered"]) == (0.5, 1)


def test_chains_of_reasoning_are_scored_where_the_questions_have_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["phantom", str(tmp_path), "--seed", "7200003", "--resolution", "nano"]) == 0
    assert main(["data", "from-phantoms", str(tmp_path), str(tmp_path / "all.jsonl")]) == 0
    chains = [sample for sample in read_samples(tmp_path / "all.jsonl") if sample.rounds]
    told, silent = chains[0], chains[-1]
    assert told.question != silent.question
    path, out = tmp_path / "two.jsonl", tmp_path / "out"
    path.write_text("".join(sample.model_dump_json(by_alias=True) + "\n" for sample in (told, silent)))

    def reply(request: dict[str, Any]) -> str:
        return " ".join(told.texts) if told.question in text_of(request) else "I can't tell."

    with scripted(reply) as server:
        command = ["evaluate", "--suite", "tumorcot", str(path), *DIRECT, "--out", str(out)]
        capsys.readouterr()
        assert main([*command, "--llm-url", server.url]) == 0
    shown = capsys.readouterr().out
    results = [json.loads(line) for line in (out / "chains.jsonl").read_text().splitlines()]
    assert {each["id"]: each["score"]["overall_score"] for each in results} == {told.id: 100, silent.id: 0}
    assert "CoT_e" in shown
    assert "triples (deterministic)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "m3d-vqa"], "takes one path"),
        (["--suite", "nothing", "x"], "there is no such suite; name one of phantom, deeptumorvqa, m3d-vqa"),
        (["--suite", "tumorcot", "missing.jsonl"], "missing.jsonl does not exist; check the path"),
        (["--suite", "phantom", "--limit", "3"], "--limit belongs to --suite deeptumorvqa"),
        (["--suite", "m3d-vqa", "{m3d}", "--ablate"], "--ablate belongs to --suite phantom"),
        (["--suite", "m3d-vqa", "{m3d}"], "a.npy is a .npy model volume: it has no spacing and no HU"),
        (
            ["--suite", "m3d-vqa", "{m3d}", "--who", "direct"],
            "a baseline is a vision LLM behind an address: pass",
        ),
        (
            ["--suite", "m3d-vqa", "{m3d}", "--scans", "/nowhere", "--who", "direct"],
            "does not exist, nor do 0 others",
        ),
        (
            ["--suite", "m3d-vqa", "{m3d}", "--judge-model", "x"],
            "--judge-model x needs the address of its server",
        ),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(m3d(tmp_path))
    assert main(["evaluate", *(each.replace("{m3d}", path) for each in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error.partition("tumorchain-agent: ")[2]


OPTIONS = "Which? A: Left kidney B: Right kidney\nAnswer with ONLY the single letter (A or B)."


@pytest.mark.parametrize(
    ("prompt", "text", "read"),
    [
        (OPTIONS, "B", "B"),
        (OPTIONS, "(B) Right kidney", "B"),
        (OPTIONS, "It is larger. Answer: the right kidney", "B"),
        (OPTIONS, "A mass is seen somewhere.", None),
        (OPTIONS, "Cannot tell.", None),
        (OPTIONS, "Left kidney or right kidney", None),
        ("Larger?\nAnswer with 'yes' or 'no'.", "Answer: yes, it is.", "yes"),
        ("Larger?\nAnswer with 'yes' or 'no'.", "Unclear.", None),
        ("Volume?\nAnswer with a single number (no units, no extra words).", "About 12.5 cm³.", "12.5"),
        ("Volume?\nAnswer with a single number (no units, no extra words).", "Between 12 and 14.", None),
    ],
)
def test_a_models_text_is_read_strictly(prompt: str, text: str, read: str | None) -> None:
    assert read_answer(text, read_prompt(prompt)) == read
