"""A line of TumorCoT data: what is good, what is refused and in which words, and the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from tests.training.data.examples import CHOICE, GOOD, fields, sample
from tumorchain_agent.model.template import Message
from tumorchain_agent.tools.organs import ORGANS
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.record import CoTSample, is_number, sample_schema
from tumorchain_agent.training.tasks import SUBTASKS, TASKS

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = ROOT / "schemas" / "tumorcot.schema.json"
ROUNDS = GOOD["rounds"]


def test_the_published_schema_is_that_of_the_source() -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == sample_schema()


def test_tasks_are_the_papers_four_with_their_twelve_subtasks(shared: Path) -> None:
    table = (shared / "seeds" / "000_f5b8ff02d91a675e.txt").read_text(encoding="utf-8")
    row = next(line for line in table.splitlines() if line.startswith("TumorChain-7B 99.97"))
    assert len(SUBTASKS) == len(row.split()) - 2, "a number for each subtask, then the average"
    assert [len(names) for names in TASKS.values()] == [3, 5, 3, 1]


GOOD_CHANGES: list[dict[str, Any]] = [
    {},
    CHOICE,
    {"rounds": []},
    {"rounds": ..., "label_map": ..., "provenance": {"source": "a book", "page": 3, "tags": ["x", None]}},
    {"rounds": [{"organs": [], "text": "Answer: liver."}]},
    {"rounds": [ROUNDS[0], {**ROUNDS[1], "absent": ["spleen"]}]},
    {"task": "external", "subtask": "m3d-vqa/plane"},
    {"task": "tnm", "subtask": "node", "answer": "N1"},
    {"answer": "12.5 cm3", "answer_type": "number"},
    {"scan": "../scans/ct.nii.gz", "scan_id": "0123456789abcdef01234567", "split": "test"},
]


@pytest.mark.parametrize("changes", GOOD_CHANGES, ids=str)
def test_a_good_line_fits_the_record_and_the_published_schema(changes: dict[str, Any]) -> None:
    line = fields(**changes)
    jsonschema.validate(line, sample_schema())
    read = CoTSample.model_validate_json(json.dumps(line))
    assert CoTSample.model_validate_json(read.line()) == read
    jsonschema.validate(json.loads(read.line()), sample_schema())


SCHEMA_SEES: list[tuple[dict[str, Any], str]] = [
    ({"question": ...}, "question is missing; add it"),
    ({"question": ..., "answer": ...}, "question, answer are missing; add them"),
    ({"format_version": 2}, "format_version is 2; write 1"),
    ({"sacn": "x"}, "sacn is no field (did you mean scan?)"),
    ({"patient": 7}, "patient is 7; it should be a valid string"),
    ({"patient": " \n"}, "patient is empty; fill it in"),
    ({"split": "val"}, "split is 'val'; write 'train' or 'test'"),
    ({"task": "stage"}, "task is 'stage'"),
    ({"subtask": "shape"}, "'shape' is no subtask of position; use one of organ, tumor_position, segment"),
    ({"task": "external"}, "write it as benchmark/kind"),
    ({"scan": "/data/ct.nii.gz"}, "scan: '/data/ct.nii.gz' is not relative"),
    ({"scan": "C:/ct.nii.gz"}, "not relative"),
    ({"label_map": "P-1\\labels.nii.gz"}, "with slashes"),
    ({"scan_id": "abc"}, "scan_id is 'abc'"),
    ({**CHOICE, "correct": ...}, "choices or correct is missing; add them"),
    ({**CHOICE, "choices": {"A": "liver"}, "correct": "A"}, "at least two that differ"),
    ({**CHOICE, "choices": {"a": "liver", "B": "spleen"}}, "choices.a is 'a'"),
    (
        {"choices": {"A": "liver", "B": "spleen"}, "correct": "A"},
        "answer_type is open, yet there are choices",
    ),
    (
        {"rounds": [{"organs": [], "text": ""}, ROUNDS[1]]},
        "rounds[0].text is empty; fill it in",
    ),
    (
        {"rounds": [ROUNDS[0], {**ROUNDS[1], "organs": ["livr"]}]},
        "rounds[1].organs[0]: 'livr' is not one of the 56 organs; did you mean liver?",
    ),
    (
        {"rounds": [ROUNDS[0], {**ROUNDS[1], "organs": ["colon"]}]},
        "'colon' is not the name of Table 10; write 'colorectum'",
    ),
    ({"rounds": [ROUNDS[1]]}, "the first round is shown an organ"),
]
ONLY_THE_RECORD_SEES: list[tuple[dict[str, Any], str]] = [
    ({**CHOICE, "correct": "C"}, "correct is C, which is none of the choices A, B"),
    ({**CHOICE, "correct": "A"}, "answer is not the text of choice A"),
    ({**CHOICE, "choices": {"A": "Liver ", "B": "liver"}}, "at least two that differ"),
    ({"answer": "30x13 mm", "answer_type": "number"}, "is not one number"),
    (
        {"rounds": [*ROUNDS, {"organs": ["liver"], "text": "Answer: liver."}]},
        "liver is examined more than once",
    ),
    ({"rounds": [*ROUNDS, {"organs": [], "text": "Answer: liver."}]}, "is shown no organ"),
    ({"rounds": [ROUNDS[0], {**ROUNDS[1], "absent": ["aorta"]}]}, "rounds[1].absent names aorta"),
    ({"conclusion": "Answer: spleen."}, "doesn't end with the conclusion"),
]


@pytest.mark.parametrize(("changes", "words"), SCHEMA_SEES + ONLY_THE_RECORD_SEES, ids=str)
def test_a_bad_line_is_refused_in_one_line_that_says_how_to_mend_it(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        CoTSample.model_validate_json(json.dumps(fields(**changes)))
    assert words in explain(caught.value)
    assert "\n" not in explain(caught.value)


@pytest.mark.parametrize("changes", [changes for changes, _ in SCHEMA_SEES], ids=str)
def test_the_published_schema_refuses_it_as_well(changes: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(fields(**changes), sample_schema())


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        sample(subtask="shape", conclusion="No.", rounds=ROUNDS[1:])
    told = explain(caught.value)
    assert all(part in told for part in ("no subtask", "first round", "end with the conclusion"))


def test_every_organ_of_table_10_may_be_examined() -> None:
    rounds = [{"organs": [], "text": "All."}, {"organs": list(ORGANS.values()), "text": "Answer: liver."}]
    assert len(sample(rounds=rounds).rounds[1].organs) == 56


def test_a_question_with_choices_is_asked_with_them() -> None:
    assert sample().prompt == "Which organ holds the tumor?"
    assert sample(**CHOICE).prompt == "Which organ holds the tumor? Choices: A. spleen B. liver"


def test_the_assistant_says_its_rounds_or_the_conclusion_alone() -> None:
    assert sample().texts == tuple(each["text"] for each in ROUNDS)
    assert sample(rounds=[]).texts == ("Answer: liver.",)
    assert [Message("assistant", (text,)).role for text in sample().texts] == ["assistant", "assistant"]


def test_a_sample_can_not_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        sample().split = "test"


@pytest.mark.parametrize("text", ["12", "-3.5", "1e3", "12.5 cm3", "40%", "55 HU", "7mm", "3 mm²"])
def test_a_number_may_have_a_unit(text: str) -> None:
    assert is_number(text)


@pytest.mark.parametrize("text", ["", "cm", "30x13 mm", "2-3", "12.5 to 13", "about 5", "N1", "1.2.3"])
def test_what_is_more_or_less_than_a_number_is_none(text: str) -> None:
    assert not is_number(text)
