"""Mentor-Intern Collaborative Search (Chiron-o1, 3.2), in the place of the reasoner.

Mentors know the answer and propose the next step; interns don't, and finish from the steps so far at two temperatures.
A path's MICS-score is the share of finishes that are right (eq. 4). The best path is gone on with until all interns are
right, or to the greatest depth; where all mentors score zero the search is begun anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, Literal

from pydantic import Field

from tumorchain_agent.records import Record
from tumorchain_agent.training.engine.config import Mics
from tumorchain_agent.training.engine.experts import Desk
from tumorchain_agent.training.engine.faults import Fault, SetAsideError
from tumorchain_agent.training.engine.features import Extraction, FiveOrgan
from tumorchain_agent.training.engine.logic import Chain, Line, Step
from tumorchain_agent.training.engine.prompts import prompt

TrendKind = Literal["increasing", "constant", "non-increasing", "fluctuating"]


class Answer(Record):
    """What mentors lead to and interns are to find."""

    organ: FiveOrgan | None
    malignant: bool
    n: str | None = None
    m: str | None = None


class Finish(Answer):
    """Of an intern."""

    thoughts: str = ""


class Continuation(Record):
    """Of a mentor: the steps that follow, and what they come to."""

    steps: tuple[Step, ...] = Field(min_length=1, max_length=20)
    organ: FiveOrgan | None
    malignant: bool
    t: str | None = None
    n: str | None = None
    m: str | None = None
    conclusion: Line


class Same(Record):
    """Of the judge."""

    same: bool


class Trend(Record):
    """The score of a path, step by step, and whose step was taken."""

    scores: tuple[float, ...]
    mentors: tuple[int, ...]
    kind: TrendKind
    finishes: int
    """That the interns made in all."""


@dataclass
class _Search:
    steps: list[Step] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    history: dict[int, list[float]] = field(default_factory=dict)
    """Of each mentor, its scores so far."""
    rest: dict[int, Continuation] = field(default_factory=dict)
    """What the mentor that was chosen last still has to say."""
    finishes: int = 0


def answer_of(found: Extraction) -> Answer:
    """The answer of a case: organ and malignancy, N and M where pathology states them."""
    lesion, pathology = found.features.lesion, found.pathology
    organ = lesion.organ if lesion else None
    n, m = (pathology.n, pathology.m) if pathology else (None, None)
    return Answer(organ=organ, malignant=lesion is not None, n=n, m=m)


def trend_kind(scores: Sequence[float]) -> TrendKind:
    """How a path's score goes; ``increasing`` never falls and ends higher than it began."""
    if len(set(scores)) <= 1:
        return "constant"
    if all(a <= b for a, b in pairwise(scores)):
        return "increasing"
    return "non-increasing" if all(a >= b for a, b in pairwise(scores)) else "fluctuating"


async def search(
    desk: Desk, config: Mics, key: str, given: Mapping[str, Any], answer: Answer, notes: Sequence[str] = ()
) -> tuple[Chain, Trend]:
    """The chain of the best path. SetAsideError when every search fails."""
    for attempt in range(config.searches):
        found = await _one(desk, config, key, given, answer, notes, attempt)
        if found is not None:
            return found
        desk.tally.note(
            "reasoner", [Fault(kind="search_failed", message="no mentor's step led an intern to the answer")]
        )
    fault = Fault(kind="search_failed", message=f"{config.searches} searches led no intern to the answer")
    raise SetAsideError("reasoner", [fault])


async def _one(
    desk: Desk,
    config: Mics,
    key: str,
    given: Mapping[str, Any],
    answer: Answer,
    notes: Sequence[str],
    attempt: int,
) -> tuple[Chain, Trend] | None:
    state = _Search()
    best: Continuation | None = None
    for _ in range(config.depth):
        proposals: dict[int, tuple[Continuation, float]] = {}
        for index in range(len(config.mentors)):
            proposal = state.rest.get(index) or await _propose(
                desk, config, key, given, answer, notes, attempt, index, state
            )
            score = await _score(
                desk, config, key, given, answer, attempt, [*state.steps, proposal.steps[0]], state
            )
            proposals[index] = (proposal, score)
        scores = {index: score for index, (_, score) in proposals.items()}
        if not any(scores.values()):
            return None
        winner = _select(scores, state)
        best = proposals[winner][0]
        state.steps.append(best.steps[0])
        state.scores.append(scores[winner])
        state.chosen.append(winner)
        for index, score in scores.items():
            state.history.setdefault(index, []).append(score)
        left = best.steps[1:]
        state.rest = {winner: best.model_copy(update={"steps": left})} if left else {}
        if scores[winner] == 1.0 or not left:
            break
    if best is None:
        return None
    return _chain(state, best), _trend(state)


def _select(scores: Mapping[int, float], state: _Search) -> int:
    """The best; of equals one not chosen before, or, of full scores, the most competitive (eq. 5)."""
    top = max(scores.values())
    equals = [index for index, score in scores.items() if score == top]

    def rank(index: int) -> tuple[float, float, int]:
        competitiveness = prod(state.history.get(index, ()))
        fresh = float(index not in state.chosen)
        first, second = (competitiveness, fresh) if top == 1.0 else (fresh, competitiveness)
        return (-first, -second, index)

    return min(equals, key=rank)


async def _propose(
    desk: Desk,
    config: Mics,
    key: str,
    given: Mapping[str, Any],
    answer: Answer,
    notes: Sequence[str],
    attempt: int,
    index: int,
    state: _Search,
) -> Continuation:
    told = {**given, "answer": answer.model_dump(), "steps": [each.model_dump() for each in state.steps]}
    turns = prompt("mentor", key, told, notes)
    nth = attempt * len(config.mentors) + index
    return await desk.ask("mentor", config.mentors[index], turns, Continuation, nth=nth)


async def _score(
    desk: Desk,
    config: Mics,
    key: str,
    given: Mapping[str, Any],
    answer: Answer,
    attempt: int,
    steps: Sequence[Step],
    state: _Search,
) -> float:
    """Eq. 4: the share of right finishes from a path."""
    turns = prompt("intern", key, {**given, "steps": [each.model_dump() for each in steps]})
    right = total = 0
    for index, intern in enumerate(config.interns):
        for temperature in config.temperatures:
            total += 1
            nth = attempt * len(config.interns) + index
            try:
                finish = await desk.ask("intern", intern, turns, Finish, temperature=temperature, nth=nth)
            except SetAsideError:
                continue
            right += await _same(desk, config, key, finish, answer)
    state.finishes += total
    return right / total


async def _same(desk: Desk, config: Mics, key: str, finish: Finish, answer: Answer) -> bool:
    if config.judge is not None:
        told = {"one": finish.model_dump(exclude={"thoughts"}), "other": answer.model_dump()}
        return (await desk.ask("judge", config.judge, prompt("judge", key, told), Same)).same
    known = {name: value for name, value in answer if value is not None or name == "organ"}
    return all(getattr(finish, name) == value for name, value in known.items())


def _chain(state: _Search, last: Continuation) -> Chain:
    fields = last.model_dump(exclude={"steps"})
    return Chain(steps=(*state.steps, *last.steps[1:]), **fields)


def _trend(state: _Search) -> Trend:
    return Trend(
        scores=tuple(state.scores),
        mentors=tuple(state.chosen),
        kind=trend_kind(state.scores),
        finishes=state.finishes,
    )
