"""Every answer that training teaches reads back as its truth, and nothing else does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.training.phantom.truths import random_truth
from tumorchain_agent.model.wording import WITHOUT_COT, WITHOUT_IIR
from tumorchain_agent.training.modes import MODES
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.text import compose
from tumorchain_agent.training.suite.answers import FIELDS, NONE, answer_in, read_fields, score, true_fields
from tumorchain_agent.training.suite.questions import questions_of, unfounded_question_of
from tumorchain_agent.training.tasks import OF_ALL, SUBTASKS


def truths(seed: int, count: int = 60) -> list[Truth]:
    rng = np.random.default_rng(seed)
    organs = [*ORGANS, None]
    return [replace(random_truth(rng, organs[k % 6]), seed=k) for k in range(count)]


def test_every_taught_answer_reads_back_as_the_truth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = ORGANS[:4]
    for truth in truths(seed):
        for subtask in SUBTASKS:
            for mode in MODES.values():
                suspicion = dict.fromkeys(present, 0.5)
                sample = compose(rng, truth, subtask, suspicion, iir=mode.iir, cot=mode.cot)
                right = true_fields(truth, subtask, sample.asked_organ, present)
                read = read_fields(sample.texts[-1], subtask, sample.asked_organ)
                assert read == right, sample.texts[-1]
                assert score(right, read) == 1


@pytest.mark.parametrize(
    ("subtask", "text"),
    [
        ("organ", "The liver and the pancreas need a closer look."),
        ("organ", "Answer: the liver or the pancreas."),
        ("organ", "Answer: spleen."),
        ("organ", "Answer:"),
        ("segment", "Answer: liver."),
        ("shape", "Answer: ill-defined."),
        ("tumor", "Answer: N0."),
        ("node", "Answer: NX."),
        ("report", "Findings: something. Answer: who knows."),
        ("tumor_position", "Answer: perhaps."),
        ("organ", ""),
    ],
)
def test_what_states_no_class_of_the_subtask_is_unreadable(subtask: str, text: str) -> None:
    assert read_fields(text, subtask, "liver") is None
    truth = dict.fromkeys(FIELDS[subtask], NONE)
    assert score(truth, None) == 0


def test_the_last_answer_counts() -> None:
    assert answer_in("Answer: liver. On reflection. answer : Pancreatic tail.\n") == "Pancreatic tail"
    assert read_fields("Answer: gastric fundus.", "segment") == {"section": "stomach:fundus"}
    assert read_fields("Answer: tail of the pancreas.", "segment") == {"section": "pancreas:tail"}
    assert read_fields("Answer: single.", "count") == {"count": "solitary"}


def test_yes_about_another_organ_is_not_yes() -> None:
    assert read_fields("Answer: yes, a tumor of the liver.", "tumor_position", "liver") == {"present": "yes"}
    assert read_fields("Answer: yes, a tumor of the liver.", "tumor_position", "stomach") == {
        "present": "another organ"
    }
    assert read_fields("Answer: no tumor.", "tumor_position", "stomach") == {"present": "no"}
    assert read_fields("Answer: esophagus not assessed.", "tumor_position", "esophagus") == {
        "present": "not assessed"
    }


def test_a_report_is_scored_by_the_share_of_its_fields() -> None:
    right = {"organ": "pancreas", "size": "2 to 4 cm", "t": "T2", "n": "N1", "m": "M0"}
    assert score(right, read_fields("Answer: cT2 N1 M0, pancreas, 2 to 4 cm.", "report")) == 1
    assert score(right, read_fields("Answer: cT2 N0 M0, liver, 20 to 40 mm.", "report")) == pytest.approx(0.6)
    assert score(right, read_fields("Answer: cT2N1.", "report")) == pytest.approx(0.4)
    assert score(right, read_fields("Answer: no tumor.", "report")) == 0


def test_healthy_patients_are_asked_three_questions_and_ill_ones_twelve() -> None:
    for truth in truths(1, 24):
        asked = [question.subtask for question in questions_of(truth, ORGANS)]
        assert tuple(asked) == (SUBTASKS if truth.organ else OF_ALL)
        assert questions_of(truth, ORGANS) == questions_of(truth, ORGANS)


def test_a_healthy_patient_is_asked_once_of_a_tumor_and_the_truth_is_that_there_is_none() -> None:
    found: Counter[str] = Counter()
    for truth in truths(2, 600):
        question = unfounded_question_of(truth)
        assert (question is None) == (truth.organ is not None)
        if question is not None:
            assert question == unfounded_question_of(truth)
            assert set(question.truth.values()) == {NONE}
            found[question.subtask] += 1
    assert set(found) == set(SUBTASKS) - set(OF_ALL)


def test_yes_and_no_balance_over_a_cohort_and_no_question_is_in_a_modes_words() -> None:
    rng = np.random.default_rng(0)
    answers: Counter[str] = Counter()
    for k in range(1500):
        organ = ORGANS[k % 5] if rng.random() < 0.6 else None
        truth = replace(random_truth(rng, organ), seed=k)
        for question in questions_of(truth, ORGANS):
            assert WITHOUT_COT not in question.text
            assert WITHOUT_IIR not in question.text
            if question.subtask == "tumor_position":
                answers[question.truth["present"]] += 1
    assert answers["yes"] / 1500 == pytest.approx(0.5, abs=0.05)
    assert answers["no"] + answers["yes"] == 1500
