"""Mentor-Intern Collaborative Search: scores, choices, early stop, and the chain that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.making import config_for, made_up, model, outcomes, run, write_cases
from tests.training.engine.scripted import Ask, Experts, case_key
from tests.training.engine.server import ModelServer, Said, serving
from tumorchain_agent.training.data.validate import validate_file
from tumorchain_agent.training.engine.config import Mics
from tumorchain_agent.training.engine.mics import trend_kind
from tumorchain_agent.training.engine.samples import Outcome

TRUTH = made_up(31, organ="pancreas")


def search(
    folder: Path, interns: Callable[[Ask], bool], *, mentors: int = 2, count: int = 2, **more: Any
) -> tuple[list[Ask], Outcome]:
    """Run one case; ``interns`` tells whether one comes to the answer."""
    asked: list[Ask] = []

    def tamper(ask: Ask, said: Said) -> Said:
        asked.append(ask)
        if ask.expert == "intern" and ask.case == key and not interns(ask):
            return Said(json.dumps({"organ": "liver", "malignant": True, "n": "N0", "m": "M0"}))
        return said

    cases = write_cases(folder / "cases.jsonl", [TRUTH, made_up(32, healthy=True)])
    experts = Experts.of([TRUTH, made_up(32, healthy=True)])
    key = case_key(TRUTH)
    with serving(ModelServer(experts, tamper)) as server:
        found = Mics(
            mentors=tuple(model(server.url, f"mentor-{n}") for n in range(mentors)),
            interns=tuple(model(server.url, f"intern-{n}") for n in range(count)),
            **more,
        )
        run(config_for(cases, server.url, mics=found), folder / "out")
    return [ask for ask in asked if ask.case == key], outcomes(folder / "out")[0]


def half_after_one(ask: Ask) -> bool:
    """At the first step only the interns of the lower temperature find the answer, at the second all."""
    return ask.temperature < 0.5 or len(ask.given["steps"]) >= 2


def test_the_search_stops_when_all_interns_are_right_and_keeps_its_scores(tmp_path: Path) -> None:
    asked, outcome = search(tmp_path, half_after_one)
    assert outcome.trend is not None
    assert outcome.trend.scores == (0.5, 1.0)
    assert outcome.trend.kind == "increasing"
    assert outcome.by is None
    assert {ask.temperature for ask in asked if ask.expert == "intern"} == {0.2, 0.8}
    assert not [ask for ask in asked if ask.expert == "reasoner"]
    assert validate_file(tmp_path / "out/samples.jsonl").good
    assert outcome.samples[0].provenance["mics"] == outcome.trend.model_dump(mode="json")


@pytest.mark.slow
def test_equal_mentors_take_turns(tmp_path: Path) -> None:
    _, outcome = search(tmp_path, lambda ask: ask.temperature < 0.5)
    assert outcome.trend is not None
    assert outcome.trend.mentors[:2] == (0, 1)
    assert outcome.trend.kind == "constant"
    assert len(outcome.trend.scores) <= 4


@pytest.mark.slow
def test_interns_are_not_told_the_answer_and_mentors_are(tmp_path: Path) -> None:
    asked, _ = search(tmp_path, half_after_one)
    assert all(
        ("answer" in ask.given) == (ask.expert == "mentor")
        for ask in asked
        if ask.expert in ("mentor", "intern")
    )


def test_a_search_where_no_intern_is_right_begins_anew_and_then_sets_the_case_aside(tmp_path: Path) -> None:
    asked, outcome = search(tmp_path, lambda ask: False, searches=2)
    assert (outcome.by, outcome.faults[0].kind) == ("reasoner", "search_failed")
    assert [each.kind for each in outcome.caught] == ["search_failed"] * 2
    mentors = [ask for ask in asked if ask.expert == "mentor"]
    assert len(mentors) == 2 * 2


@pytest.mark.slow
def test_depth_is_an_end(tmp_path: Path) -> None:
    _, outcome = search(tmp_path, lambda ask: ask.temperature < 0.5, depth=2)
    assert outcome.trend is not None
    assert len(outcome.trend.scores) == 2
    assert outcome.by is None


@pytest.mark.slow
def test_an_interns_nonsense_is_a_wrong_finish_and_no_end(tmp_path: Path) -> None:
    def tamper(ask: Ask, said: Said) -> Said:
        return Said("hm") if ask.expert == "intern" and ask.temperature > 0.5 else said

    cases = write_cases(tmp_path / "cases.jsonl", [TRUTH])
    with serving(ModelServer(Experts.of([TRUTH]), tamper)) as server:
        mics = Mics(mentors=(model(server.url),), interns=(model(server.url),), depth=1)
        run(config_for(cases, server.url, mics=mics), tmp_path / "out")
    (outcome,) = outcomes(tmp_path / "out")
    assert outcome.trend is not None
    assert outcome.trend.scores == (0.5,)


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([0.5, 0.5, 1.0], "increasing"),
        ([0.5], "constant"),
        ([1.0, 0.5], "non-increasing"),
        ([0.2, 0.8, 0.4], "fluctuating"),
    ],
)
def test_trends_have_four_kinds(scores: list[float], kind: str) -> None:
    assert trend_kind(scores) == kind
