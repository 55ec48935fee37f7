"""Reading other people's tables: choices written inline, missing values, large JSON, damaged files."""

from __future__ import annotations

import gzip
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tumorchain_agent.errors import DataError, InputError
from tumorchain_agent.training.data import json_items
from tumorchain_agent.training.data.files import Problem
from tumorchain_agent.training.data.json_items import list_items
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.rows import (
    csv_rows,
    inline_choices,
    json_lines,
    letter_of,
    present,
    side_named,
)

WORDS = st.text(alphabet=string.ascii_letters + string.digits + " .()<>=%-", min_size=1, max_size=20)
PLAIN = WORDS.map(str.strip).filter(bool)


@settings(deadline=None)
@given(PLAIN, st.lists(PLAIN, min_size=2, max_size=6))
def test_choices_written_inline_are_found_again(question: str, texts: list[str]) -> None:
    letters = string.ascii_uppercase[: len(texts)]
    written = " ".join([question, *(f"{key}: {text}" for key, text in zip(letters, texts, strict=True))])
    assert inline_choices(written) == (question, dict(zip(letters, texts, strict=True)))


@pytest.mark.parametrize(
    ("text", "question", "choices"),
    [
        ("Stage? A: T1, B: T2,\nC: T3", "Stage?", {"A": "T1", "B": "T2", "C": "T3"}),
        ("Is A: or B: right? A: first B: second", "Is A: or B: right?", {"A": "first", "B": "second"}),
        ("Ratio CA: 19-9? A:low B:high", "Ratio CA: 19-9?", {"A": "low", "B": "high"}),
        ("A: yes B: no", "", {"A": "yes", "B": "no"}),
    ],
)
def test_the_last_run_of_letters_is_the_choices(text: str, question: str, choices: dict[str, str]) -> None:
    assert inline_choices(text) == (question, choices)


@pytest.mark.parametrize("text", ["Which?", "Which? A: only", "Which? B: b C: c", "Which? A. a B. b"])
def test_a_question_without_choices_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="no choices"):
        inline_choices(text)


@pytest.mark.parametrize(
    ("written", "letter"), [("A", "A"), ("b", "B"), ("C.", "C"), ("D: none", "D"), ("(a)", "A")]
)
def test_a_letter_may_have_a_mark(written: str, letter: str) -> None:
    assert letter_of(written) == letter


def test_a_word_is_not_a_letter() -> None:
    with pytest.raises(DataError, match="'Cannot' is not the letter"):
        letter_of("Cannot")


def test_what_says_that_there_is_nothing_is_nothing() -> None:
    assert [present(value) for value in (None, "", " ", "NA", "na", "-", "nan", float("nan"))] == [None] * 8
    assert [present(value) for value in ("None", "N/A stage", " 0 ", 0, False)] == [
        "None",
        "N/A stage",
        "0",
        "0",
        "False",
    ]


def test_the_side_is_read_from_a_name() -> None:
    names = {
        "M3D_VQA_train.csv": "train",
        "M3D_VQA_yn_train.csv": "train",
        "M3D_VQA_val.csv": "test",
        "test_qa.json": "test",
        "val_qa_pool.csv": "test",
        "DeepTumorVQA_v1.csv": None,
        "train_test.csv": None,
        "latest.csv": None,
    }
    assert {name: side_named(name) for name in names} == names


def test_csv_rows_are_numbered_and_bad_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [b'\xef\xbb\xbfx,y\n1,"a\nb, c"\n', b"2\n", b"3,d,e\n", b"4,caf\xe9\n", "5,café\n".encode()]
    path.write_bytes(b"".join(rows))
    found = dict(csv_rows(path, ("x", "y")))
    assert found[1] == {"x": "1", "y": "a\nb, c"}
    assert found[5] == {"x": "5", "y": "café"}
    for number, words in ((2, "number of fields"), (3, "number of fields"), (4, "UTF-8")):
        problem = found[number]
        assert isinstance(problem, Problem)
        assert (problem.line, words in problem.message) == (number, True)


def test_a_csv_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,z\n1,2\n")
    with pytest.raises(InputError, match="lacks the column y"):
        list(csv_rows(tmp_path / "a.csv", ("x", "y")))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match="lacks the column x, y"):
        list(csv_rows(tmp_path / "a.csv", ("x", "y")))


def test_a_quote_that_is_not_closed_is_told_where_reading_ends(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,y\n1,2\n3,"' + "z" * 200_000)
    found = list(csv_rows(tmp_path / "a.csv", ("x", "y")))
    assert found[0] == (1, {"x": "1", "y": "2"})
    number, problem = found[1]
    assert isinstance(problem, Problem)
    assert (number, problem.reason) == (2, Reason.TRUNCATED_FILE)


def test_json_lines_are_objects_or_problems(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n[2]\n{"x"\n')
    first, second, third = (row for _, row in json_lines(tmp_path / "a.jsonl"))
    assert first == {"x": 1}
    assert isinstance(second, Problem)
    assert isinstance(third, Problem)
    assert "not an object" in second.message
    assert "not JSON" in third.message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@example({"a": [0.5, 1e30, -2e-07, 12], "b": 3.25})
@given(st.dictionaries(st.text(max_size=6), st.lists(JSON_VALUES, max_size=4) | JSON_VALUES, max_size=4))
def test_items_are_those_that_the_whole_file_has(document: dict[str, Any]) -> None:
    wanted = [(key, item) for key, value in document.items() if isinstance(value, list) for item in value]
    for text in (json.dumps(document), json.dumps(document, indent=2, ensure_ascii=False)):
        assert read_small(text) == wanted


def read_small(text: str) -> list[tuple[str, Any]]:
    """Items of a text that is read seven characters at a time."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "_CHUNK", 7)
        path = Path(folder) / "a.json"
        path.write_text(text, encoding="utf-8")
        return list(list_items(path))


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, 2', '{"a": [1, 2]', '{"a": [1 2]}', '{"a": [1,]}', '{"a" [1]}', "[1]", "", "{1: [2]}"],
)
def test_json_that_is_cut_off_or_wrong_is_told_after_what_is_good(text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json is not JSON near character \d+"):
        read_small(text)


def test_a_packed_json_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"a": [{"n": k, "x": hash(str(k))} for k in range(5000)]}).encode())
    (tmp_path / "a.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off or damaged"):
        list(list_items(tmp_path / "a.json.gz"))
