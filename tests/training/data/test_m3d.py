"""M3D-VQA and M3D-Cap, in files made by the documented formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tumorchain_agent.cli import main
from tumorchain_agent.training.data import m3d
from tumorchain_agent.training.data.files import Problem, read_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.rows import Source
from tumorchain_agent.training.data.validate import validate_file

HEADER = (
    "Image Path", "Text", "Question Type", "Question", "Choice A", "Choice B", "Choice C", "Choice D",
    "Answer", "Answer Choice",
)  # fmt: skip
"""The columns, in order, as documented."""
IMAGE = "M3D_Cap_npy/ct_case/000123/Axial.npy"
ROWS: list[tuple[str, ...]] = [
    (IMAGE, "Report.", "1", "In which plane?", "Axial", "Coronal", "Sagittal", "Oblique", "Axial", "A"),
    (IMAGE, "Report.", "2", "Which phase?", "Arterial", "Venous", "NA", "NA", "Venous", "B"),
    (IMAGE, "Report.", "3", "Which organ is enlarged?", "NA", "NA", "NA", "NA", "The spleen", "NA"),
    (IMAGE, "Report.", "4", "What is it?", "Cyst", "NA", "Mass", "Stone", "A mass.", "C"),
    (IMAGE, "Report.", "5", "Where is it?", "Left", "Right", "Both", "Neither", "Left", "A"),
]


def write_vqa(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def read_vqa(path: Path, **options: Any) -> list[CoTSample | Problem]:
    return [item for _, item in m3d.read_vqa(Source(path, path.with_suffix(".jsonl"), **options))]


def samples(items: list[CoTSample | Problem]) -> list[CoTSample]:
    assert all(isinstance(item, CoTSample) for item in items), items
    return [item for item in items if isinstance(item, CoTSample)]


def test_each_question_type_is_an_external_subtask(tmp_path: Path) -> None:
    found = samples(read_vqa(write_vqa(tmp_path / "M3D_VQA_test.csv", *ROWS)))
    assert [each.subtask.removeprefix("m3d-vqa/") for each in found] == [
        "plane",
        "phase",
        "organ",
        "abnormality",
        "position",
    ]
    assert {each.task for each in found} == {"external"}
    assert {each.split for each in found} == {"test"}
    assert {each.patient for each in found} == {"m3d:M3D_Cap_npy/ct_case/000123"}
    assert {each.scan for each in found} == {IMAGE}
    assert [each.id for each in found] == [f"m3d-vqa/M3D_VQA_test/{k}" for k in range(1, 6)]


def test_a_missing_choice_keeps_the_letters_of_the_others(tmp_path: Path) -> None:
    found = samples(read_vqa(write_vqa(tmp_path / "M3D_VQA_test.csv", *ROWS)))
    assert [each.answer_type for each in found] == ["choice", "choice", "open", "choice", "choice"]
    assert found[1].choices == {"A": "Arterial", "B": "Venous"}
    assert found[3].choices == {"A": "Cyst", "C": "Mass", "D": "Stone"}
    assert (found[3].correct, found[3].answer) == ("C", "Mass")
    assert (found[2].choices, found[2].answer) == (None, "The spleen")


def test_the_closed_prompt_is_that_of_the_benchmark(tmp_path: Path) -> None:
    (found,) = samples(read_vqa(write_vqa(tmp_path / "M3D_VQA_test.csv", ROWS[0])))
    assert found.prompt == "In which plane? Choices: A. Axial B. Coronal C. Sagittal D. Oblique"


def test_free_answers_can_be_taken_in_place_of_choices(tmp_path: Path) -> None:
    found = samples(read_vqa(write_vqa(tmp_path / "M3D_VQA_test.csv", *ROWS), open_ended=True))
    assert {each.answer_type for each in found} == {"open"}
    assert found[3].answer == "A mass."


def test_a_row_that_can_not_be_read_is_named_with_its_number(tmp_path: Path) -> None:
    def spoiled(**changes: str) -> tuple[str, ...]:
        return tuple(
            changes.get(name.replace(" ", "_"), value) for name, value in zip(HEADER, ROWS[0], strict=True)
        )

    path = write_vqa(
        tmp_path / "M3D_VQA_train.csv",
        spoiled(Question_Type="7"),
        spoiled(Answer_Choice="NA"),
        spoiled(Choice_A="NA"),
        spoiled(Question=""),
        spoiled(Image_Path="-"),
        spoiled(Choice_B="NA", Choice_C="NA", Choice_D="NA"),
        spoiled(Choice_B="axial"),
        ROWS[0],
    )
    found = read_vqa(path)
    told = [each.text("row") for each in found if isinstance(each, Problem)]
    assert [text.partition(";")[0] for text in told] == [
        "row 1: Question Type is '7'",
        "row 2: Answer Choice is missing",
        "row 3: Answer Choice is A, but Choice A is missing",
        "row 4: Question is missing",
        "row 5: Image Path is missing",
        "row 6: choices are fewer than two or say the same",
        "row 7: choices are fewer than two or say the same",
    ]
    assert isinstance(found[7], CoTSample)


def write_cap(folder: Path) -> Path:
    reports = {
        "1": "modality: CT\nstudy_findings: A mass in the\nliver.",
        "2": "title: none\ndiscussion: Multiple cysts.",
        "3": "An already prepared report.",
        "4": "  \n",
    }
    items = []
    for name, text in reports.items():
        place = folder / "ct_case" / name
        place.mkdir(parents=True)
        (place / "text.txt").write_text(text, encoding="utf-8")
        items.append({"image": f"ct_case/{name}/Axial.npy", "text": f"ct_case/{name}/text.txt"})
    missing = {"image": "ct_case/9/Axial.npy", "text": "ct_case/9/text.txt"}
    lists = {"train": items[:2], "validation": items[2:3], "test": [items[3], missing, {"image": "x.npy"}, 7]}
    path = folder / "M3D_Cap.json"
    path.write_text(json.dumps({**lists, "test500": items[:1]}, indent=1), encoding="utf-8")
    return path


def test_captions_become_report_questions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_cap(tmp_path)
    found = [item for _, item in m3d.read_captions(Source(path, tmp_path / "out" / "cap.jsonl"))]
    good = samples(found[:3])
    assert [each.answer for each in good] == [
        "A mass in the liver.",
        "Multiple cysts.",
        "An already prepared report.",
    ]
    assert [each.split for each in good] == ["train", "train", "test"]
    assert [each.scan for each in good] == [f"../ct_case/{k}/Axial.npy" for k in (1, 2, 3)]
    assert {(each.task, each.subtask) for each in good} == {("external", "m3d-cap/report")}
    told = [each.text("row") for each in found[3:] if isinstance(each, Problem)]
    wanted = [
        ("row 4: ", "says nothing"),
        ("row 5: ", "ct_case/9"),
        ("row 6: ", "text is missing"),
        ("row 7: ", "'7'"),
    ]
    assert len(told) == len(wanted)
    for text, (start, words) in zip(told, wanted, strict=True):
        assert text.startswith(start)
        assert words in text
    assert "test500 is passed over" in caplog.text


def test_command_converts_a_file_that_validates_with_its_volumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = tmp_path / "data" / IMAGE
    volume.parent.mkdir(parents=True)
    np.save(volume, np.random.default_rng(0).random((1, 32, 256, 256), np.float32))
    path, out = write_vqa(tmp_path / "M3D_VQA_val.csv", *ROWS), tmp_path / "out" / "val.jsonl.gz"
    command = ["data", "convert", "m3d-vqa", str(path), str(out), "--scans", str(tmp_path / "data")]
    assert main(command) == 0
    assert "| external / m3d-vqa/plane | 0 | 1 | 100.0 % |" in capsys.readouterr().out
    found = validate_file(out, scans=True)
    assert (found.lines, found.good) == (5, True)
    assert main(["data", "validate", str(out), "--scans"]) == 0


def test_command_writes_nothing_when_a_row_is_bad_unless_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ("x.npy", "", "9", "?", "a", "b", "c", "d", "a", "A")
    path, out = write_vqa(tmp_path / "M3D_VQA_train.csv", ROWS[0], bad, ROWS[1], bad), tmp_path / "a.jsonl"
    command = ["data", "convert", "m3d-vqa", str(path), str(out), "--first", "1"]
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines() == [
        "M3D_VQA_train.csv row 2: Question Type is '9'; write 1 to 5",
        "error: 2 of 4 rows of M3D_VQA_train.csv can't be read, nothing is written; "
        "mend them, or pass --skip-bad",
    ]
    assert not out.exists()
    assert main([*command, "--skip-bad"]) == 0
    assert "2 of 4 rows are left out" in capsys.readouterr().err
    assert [each.question for each in read_samples(out)] == ["In which plane?", "Which phase?"]


def test_command_asks_for_the_side_when_no_name_tells_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_vqa(tmp_path / "questions.csv", ROWS[0]), tmp_path / "a.jsonl"
    command = ["data", "convert", "m3d-vqa", str(path), str(out)]
    assert main(command) == 2
    assert "tells no split; pass --split train or --split test" in capsys.readouterr().err
    assert main([*command, "--split", "test"]) == 0
    assert next(read_samples(out)).split == "test"


def test_command_refuses_a_file_of_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "train.json").write_text('{"questions": [1]}')
    for kind, name, words in (
        ("m3d-vqa", "train.csv", "lacks the column Image Path"),
        (
            "m3d-cap",
            "train.json",
            "0 of 0 rows of train.json can't be read, nothing is written; is it a file",
        ),
        ("m3d-cap", "no.json", "does not exist"),
    ):
        assert main(["data", "convert", kind, str(tmp_path / name), str(tmp_path / "a.jsonl")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()
