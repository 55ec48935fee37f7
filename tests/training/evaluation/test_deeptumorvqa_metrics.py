"""DeepTumorVQA v2's metrics as documented, quirks included."""

from __future__ import annotations

from typing import Any

import pytest

from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import (
    aggregate,
    read_binary,
    read_letter,
    read_number,
    relative_accuracy,
    score_binary,
    score_categorical,
    score_numeric,
)
from tumorchain_agent.training.evaluation.subjects import UNANSWERED


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b: the liver", "B"), ("The answer is C.", "C"), ("Cannot tell", "C"), ("Option (d)", "D"),
        ("<think>A or B?</think> D", "D"), ("<think>A, but wait", ""), ("", ""), ("It is E", ""), (UNANSWERED, ""),
    ],
)  # fmt: skip
def test_a_letter_is_read_as_the_benchmark_reads_it(text: str, letter: str) -> None:
    assert read_letter(text) == letter


def test_numbers_and_yes_and_no_are_the_first_that_fit() -> None:
    assert [read_number(t) for t in ("about -12.5 HU, not 3", "5.", "none")] == [-12.5, 5.0, None]
    texts = ("Yes.", "no lesion", "I'd say yes, no doubt", "there is no lesion", "nothing", UNANSWERED)
    assert [read_binary(t) for t in texts] == ["yes", "no", "yes", "no", "no", ""]


def test_relative_accuracy_is_0_at_worst_and_of_zero_all_or_nothing() -> None:
    cases = [(9.0, 10.0), (30.0, 10.0), (-10.0, -10.0), (0.0, 0.0), (1.0, 0.0)]
    assert [relative_accuracy(*each) for each in cases] == [0.9, 0.0, 1.0, 1.0, 0.0]


def test_numeric_answers_count_by_tolerance_and_references_without_a_number_are_passed_over() -> None:
    found = score_numeric([("104", "100"), ("85", "100"), ("none", "100"), ("1", "unknown")])
    assert found["mean_mra"] == round((0.96 + 0.85) / 3, 4)
    assert found["tolerance_acc"] == {
        "tol_5%": 0.3333,
        "tol_10%": 0.3333,
        "tol_20%": 0.6667,
        "tol_50%": 0.6667,
    }
    assert (found["n_total"], found["n_scored"]) == (4, 3)


def test_an_unreadable_yes_or_no_is_wrong_but_counts_as_no_in_the_specificity() -> None:
    found = score_binary([("yes", "Yes"), (UNANSWERED, "Yes"), (UNANSWERED, "No"), ("yes", "No")])
    assert (found["accuracy"], found["sensitivity"], found["specificity"]) == (0.25, 0.5, 0.5)


def test_categories_are_compared_without_punctuation_and_partly_by_inclusion() -> None:
    found = score_categorical(
        [("Left kidney.", "left kidney"), ("The left kidney", "Left kidney"), ("right", "left")]
    )
    assert (found["accuracy"], found["partial_accuracy"]) == (0.3333, 0.6667)


def row(subtype: str, kind: str, said: str, right: str) -> dict[str, Any]:
    return {
        "question_subtype": subtype,
        "question_type": kind,
        "pred_answer": said,
        "correct_option": right,
        "answer": "",
    }


def test_averages_are_over_questions_and_not_over_subtypes() -> None:
    rows = [row("fatty liver", "medical reasoning", "A", "A")]
    rows += [row("adjacent organ", "visual reasoning", "B", "A") for _ in range(3)]
    rows += [row("lesion outlier", "visual reasoning", "A", "A")]
    found = aggregate(rows, "mc")
    assert found["overall"] == {"accuracy": 0.4, "n_total": 5, "n_subtypes": 3}
    assert found["by_super_type"]["visual reasoning"] == {"accuracy": 0.25, "n_total": 4}
