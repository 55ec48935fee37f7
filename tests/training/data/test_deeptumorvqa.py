"""DeepTumorVQA, versions 1 and 2, in files made by the documented formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.examples import HU, write_patient
from tumorchain_agent.cli import main
from tumorchain_agent.training.data.deeptumorvqa import SAME_QUESTION, paper_subtask, read
from tumorchain_agent.training.data.files import Problem, read_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.rows import Source
from tumorchain_agent.training.data.validate import validate_file
from tumorchain_agent.training.tasks import SUBTASKS

QUESTION = "How would you classify the splenic enlargement based on volume?"
EXAMPLE: dict[str, Any] = {
    "qid": "bench_00017",
    "image_id": "BDMAP_00008446",
    "spacing": "[0.83 0.83 5.0]",
    "shape": "(512, 512, 116)",
    "sex": None,
    "age": None,
    "question": QUESTION,
    "answer": "Normal (no splenomegaly)",
    "mc_question": f"{QUESTION} A: Normal (no splenomegaly) B: Moderate C: Severe D: Mild",
    "correct_option": "A",
    "organ": "spleen",
    "lesion": False,
    "question_type": "medical reasoning",
    "question_subtype": "splenomegaly grading",
    "requires_tools": ["segment_organ", "measure", "lookup_medical_knowledge"],
}
"""The one documented example."""
COUNTING = EXAMPLE | {
    "qid": "bench_2",
    "question": "How many lesions?",
    "answer": "3",
    "mc_question": "How many lesions? A: 1 B: 2 C: 3.0 D: 4",
    "correct_option": "C",
    "organ": "liver",
    "question_subtype": "lesion counting",
}
V1_COLUMNS = (
    "Question ID", "Image ID", "spacing", "shape", "sex", "age", "scanner", "contrast", "question", "answer",
    "multiple-choice question", "correct option", "organ", "lesion", "question type", "question subtype",
)  # fmt: skip
"""Columns of version 1 as documented."""


def items(path: Path, **options: Any) -> list[CoTSample | Problem]:
    return [item for _, item in read(Source(path, path.parent / "out.jsonl", **options))]


def samples(path: Path, **options: Any) -> list[CoTSample]:
    found = items(path, **options)
    assert all(isinstance(item, CoTSample) for item in found), found
    return [item for item in found if isinstance(item, CoTSample)]


def write_v2(folder: Path, *questions: Any) -> Path:
    document = {"version": "2.0", "num_questions": len(questions), "question_types": ["recognition"]}
    path = folder / "test_qa.json"
    path.write_text(json.dumps({**document, "questions": questions}, indent=1), encoding="utf-8")
    return path


def write_v1(path: Path, *rows: dict[str, Any]) -> Path:
    """Version 1 names its fields otherwise, and its subtypes partly with underscores."""
    names = {"Question ID": "qid", "multiple-choice question": "mc_question"}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(V1_COLUMNS)
        for row in rows:
            fields = [names.get(column, column.lower().replace(" ", "_")) for column in V1_COLUMNS]
            writer.writerow([row.get(name, "-") if row.get(name) is not None else "" for name in fields])
    return path


def test_the_documented_example_is_read(tmp_path: Path) -> None:
    (found,) = samples(write_v2(tmp_path, EXAMPLE))
    assert found == CoTSample(
        format_version=1,
        id="deeptumorvqa/bench_00017",
        patient="BDMAP_00008446",
        scan="ct/BDMAP_00008446/ct.nii.gz",
        task="external",
        subtask="deeptumorvqa/splenomegaly grading",
        question=QUESTION,
        choices={"A": "Normal (no splenomegaly)", "B": "Moderate", "C": "Severe", "D": "Mild"},
        correct="A",
        conclusion="Normal (no splenomegaly)",
        answer="Normal (no splenomegaly)",
        answer_type="choice",
        split="test",
        provenance={
            "source": "deeptumorvqa",
            "row": 1,
            "question_subtype": "splenomegaly grading",
            "organ": "spleen",
            "lesion": False,
            "question_type": "medical reasoning",
            "requires_tools": ["segment_organ", "measure", "lookup_medical_knowledge"],
            "spacing": "[0.83 0.83 5.0]",
            "shape": "(512, 512, 116)",
        },
    )


def test_json_lines_and_the_json_file_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "test_qa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (EXAMPLE, COUNTING)))
    assert samples(path) == samples(write_v2(tmp_path, EXAMPLE, COUNTING))


def test_version_1_and_the_training_csv_name_their_columns_otherwise(tmp_path: Path) -> None:
    old = EXAMPLE | {"question_subtype": "splenomegaly_grading", "qid": "17"}
    path = write_v1(tmp_path / "train_qa.csv", old, COUNTING)
    first, second = samples(path)
    assert (first.id, first.subtask, first.split) == (
        "deeptumorvqa/17",
        "deeptumorvqa/splenomegaly grading",
        "train",
    )
    assert first.choices == samples(write_v2(tmp_path, EXAMPLE))[0].choices
    assert "sex" not in first.provenance
    assert "scanner" not in first.provenance
    assert (second.task, second.subtask) == ("lesion", "count")


def test_a_split_column_wins_over_the_files_name_and_the_option_over_both(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image ID", "question", "answer", "question subtype", "split"])
        writer.writerows([["x", "q?", "a", "fatty liver", "val"], ["y", "q?", "a", "fatty liver", "train"]])
    assert [each.split for each in samples(path)] == ["test", "train"]
    assert [each.split for each in samples(path, split="train")] == ["train", "train"]


def test_free_answers_are_numbers_where_they_are_numbers(tmp_path: Path) -> None:
    path = write_v2(tmp_path, EXAMPLE, COUNTING, COUNTING | {"qid": "b3", "answer": 12.5})
    found = samples(path, open_ended=True)
    assert [(each.answer, each.answer_type) for each in found] == [
        ("Normal (no splenomegaly)", "open"),
        ("3", "number"),
        ("12.5", "number"),
    ]
    assert {each.choices is None for each in found} == {True}


def test_the_choices_text_is_the_answer_and_what_the_row_says_is_kept(tmp_path: Path) -> None:
    (found,) = samples(write_v2(tmp_path, COUNTING))
    assert (found.answer, found.provenance["answer"]) == ("3.0", "3")


def test_subtypes_that_ask_what_the_paper_asks_carry_its_subtask(shared: Path) -> None:
    facts = json.loads((shared / "facts" / "deeptumorvqa_subtypes.json").read_text(encoding="utf-8"))
    known = {entry["subtype_name"] for entry in facts["subtypes"]}
    assert len(known) == 42
    assert set(SAME_QUESTION) <= known
    assert set(SAME_QUESTION.values()) <= set(SUBTASKS)
    tasks = {name: paper_subtask(name, "liver")[0] for name in known}
    assert sum(task != "external" for task in tasks.values()) == len(SAME_QUESTION)


@pytest.mark.parametrize(
    ("subtype", "organ", "subtask"),
    [
        ("lesion counting", "colon", ("lesion", "count")),
        ("lesion counting", "Pancreas", ("lesion", "count")),
        ("lesion counting", "kidney_left", ("external", "deeptumorvqa/lesion counting")),
        ("lesion counting", "kidney", ("external", "deeptumorvqa/lesion counting")),
        ("lesion counting", "the moon", ("external", "deeptumorvqa/lesion counting")),
        ("lesion counting", None, ("external", "deeptumorvqa/lesion counting")),
        ("largest lesion location", "pancreas", ("position", "segment")),
        ("pancreatic tumor staging", "pancreas", ("tnm", "tumor")),
        ("fatty liver", "liver", ("external", "deeptumorvqa/fatty liver")),
    ],
)
def test_only_the_papers_organs_have_its_subtasks(
    subtype: str, organ: str | None, subtask: tuple[str, str]
) -> None:
    assert paper_subtask(subtype, organ) == subtask


def test_a_row_that_can_not_be_read_is_named_with_its_number(tmp_path: Path) -> None:
    path = write_v2(
        tmp_path,
        EXAMPLE,
        EXAMPLE | {"image_id": None},
        EXAMPLE | {"correct_option": "-"},
        EXAMPLE | {"correct_option": "E"},
        EXAMPLE | {"mc_question": "Which one?"},
        EXAMPLE | {"question_subtype": ""},
        "text",
        EXAMPLE | {"qid": "last"},
    )
    found = items(path)
    told = [each.text("row").partition(";")[0] for each in found if isinstance(each, Problem)]
    assert told == [
        "row 2: image_id is missing",
        "row 3: correct_option is missing",
        "row 4: correct_option is E, which is none of the choices A, B, C, D",
        "row 5: no choices A: … B: … are found in 'Which one?'",
        "row 6: question_subtype is missing",
        "row 7: is 'text', not an object",
    ]
    assert [isinstance(each, CoTSample) for each in (found[0], found[7])] == [True, True]


def test_a_file_that_is_cut_off_is_told_after_its_good_rows(tmp_path: Path) -> None:
    path = write_v2(tmp_path, EXAMPLE, COUNTING)
    path.write_text(path.read_text()[:-30])
    first, problem = items(path)
    assert isinstance(first, CoTSample)
    assert isinstance(problem, Problem)
    assert "test_qa.json is not JSON near character" in problem.message


def test_command_converts_a_file_that_validates_with_its_scans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_patient(tmp_path / "ct", EXAMPLE["image_id"], hu=HU)
    path, out = write_v2(tmp_path, EXAMPLE, COUNTING), tmp_path / "cot" / "test.jsonl"
    assert main(["data", "convert", "deeptumorvqa", str(path), str(out)]) == 0
    assert "| lesion / count | 0 | 1 | 100.0 % |" in capsys.readouterr().out
    assert validate_file(out, scans=True).good
    assert [each.scan for each in read_samples(out)] == ["../ct/BDMAP_00008446/ct.nii.gz"] * 2


def test_command_refuses_a_name_that_is_no_question_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    assert (
        main(["data", "convert", "deeptumorvqa", str(tmp_path / "test.parquet"), str(tmp_path / "a.jsonl")])
        == 2
    )
    assert "is not named .csv, .json or .jsonl" in capsys.readouterr().err
