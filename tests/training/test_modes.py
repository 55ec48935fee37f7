"""With and without IIR and CoT: what is asked, what is said, and how often each mode is trained."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from tumorchain_agent.model.wording import WITHOUT_COT, WITHOUT_IIR, in_mode
from tumorchain_agent.tools.organs import mentioned_organs
from tumorchain_agent.training.modes import FULL, MODES, Mode, ModeOdds
from tumorchain_agent.training.phantom.patient import Truth, generate
from tumorchain_agent.training.phantom.text import compose
from tumorchain_agent.training.tasks import SUBTASKS

SUSPICION = {"liver": 0.2, "pancreas": 0.7, "stomach": 0.4, "colorectum": 0.1}
"""Of a scan that doesn't hold the esophagus."""


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    ill = generate(40, (4.0, 4.0, 6.0), organ="pancreas").truth
    return [ill, generate(11, (4.0, 4.0, 6.0), tumor_share=0.0).truth]


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_modes_samples_have_its_rounds_and_its_words(mode: Mode, truths: list[Truth]) -> None:
    rng = np.random.default_rng(5)
    for truth in truths:
        for subtask in SUBTASKS:
            sample = compose(rng, truth, subtask, SUSPICION, iir=mode.iir, cot=mode.cot)
            assert (WITHOUT_IIR in sample.question) is not mode.iir
            assert (WITHOUT_COT in sample.question) is not mode.cot
            assert len(sample.texts) == len(sample.organs)
            assert (len(sample.texts) > 1) is mode.iir
            assert sample.organs[0] == ()
            last = sample.texts[-1]
            assert last.startswith("Findings:" if mode.cot else "Answer:")
            assert last.count("Answer:") == 1


def test_without_cot_the_answer_is_the_one_that_reasoning_ends_with(truths: list[Truth]) -> None:
    for truth in truths:
        for subtask in SUBTASKS:
            for iir in (True, False):
                both = [
                    compose(np.random.default_rng(3), truth, subtask, SUSPICION, iir=iir, cot=cot)
                    for cot in (True, False)
                ]
                assert both[0].organs == both[1].organs
                assert both[0].texts[-1].endswith(both[1].texts[-1])


def test_without_iir_all_organs_of_the_scan_are_spoken_of_and_a_missing_one_is_not_assessed(
    truths: list[Truth],
) -> None:
    healthy = truths[1]
    assert healthy.organ is None
    asked = set()
    for k in range(40):
        sample = compose(np.random.default_rng(k), healthy, "tumor_position", SUSPICION, iir=False)
        asked.add(sample.asked_organ)
        text = sample.texts[0]
        assert set(SUSPICION) <= set(mentioned_organs(text))
        assert ("not assessed" in text) is (sample.asked_organ == "esophagus")
    assert len(asked) == 5


def test_a_modes_words_name_no_organ() -> None:
    assert mentioned_organs(in_mode("", iir=False, cot=False)) == []


def test_a_question_in_full_mode_stands_as_it_is() -> None:
    assert in_mode("TNM stage?") == "TNM stage?"
    assert in_mode("TNM stage?", iir=False, cot=False) == f"TNM stage? {WITHOUT_IIR} {WITHOUT_COT}"


def test_modes_are_drawn_by_their_odds() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(ModeOdds().draw(rng) for _ in range(2000))
    assert drawn[FULL] / 2000 == pytest.approx(0.7, abs=0.04)
    assert all(count / 2000 == pytest.approx(0.1, abs=0.03) for mode, count in drawn.items() if mode != FULL)
    assert ModeOdds(full=0, without_cot=2, without_iir=0, without_both=0).draw(rng) == Mode(cot=False)
    with pytest.raises(ValidationError, match="all modes have odds 0"):
        ModeOdds(full=0, without_cot=0, without_iir=0, without_both=0)
