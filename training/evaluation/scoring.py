"""Answers → accuracy per task, subtask and organ (Tables 1 and 6), with 95 % bootstrap intervals by patient."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.tools.organs import mentioned_organs
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import relative_accuracy
from tumorchain_agent.training.evaluation.runner import Item, Line
from tumorchain_agent.training.suite.result import Rate
from tumorchain_agent.training.suite.scores import Bootstrap

OVERALL: Final = "all"
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")


class Cell(Record):
    """One row's figure of one subject."""

    group: str
    """``all``, ``task``, ``subtask`` or ``organ``."""
    row: str
    subject: str
    rate: Rate
    """Mean points of scored questions: 1 for right; of numbers their relative accuracy."""
    unanswered: int
    """Questions without a readable answer; they count as wrong."""
    unscored: int
    """Open questions that no judge could score: left out of the rate."""
    measured: int
    """Questions that were answered from measurements."""


class Scores(Record):
    disclaimer: str = DISCLAIMER
    benchmark: str
    questions: int
    patients: int
    judge: str
    """What compares open answers."""
    cells: tuple[Cell, ...]


def points(sample: CoTSample, line: Line) -> float | None:
    """1 or 0, of a number its relative accuracy; ``None`` for an open answer, which a judge must compare."""
    if line.said.how == "unanswered":
        return 0.0
    if sample.choices is not None:
        return float(line.said.text == sample.correct)
    if sample.answer_type == "number":
        said, right = _NUMBER.search(line.said.text), _NUMBER.search(sample.answer)
        return relative_accuracy(float(said[0]), float(right[0])) if said and right else 0.0
    return None


def organ_of(sample: CoTSample) -> str | None:
    """The organ that a question is about, where the sample or its words tell one."""
    for key in ("tumor_organ", "organ", "asked_organ"):
        told = sample.provenance.get(key)
        if isinstance(told, str):
            found = mentioned_organs(told.replace("_", " "))
            if found:
                return found[0].removesuffix("_left").removesuffix("_right")
    found = mentioned_organs(sample.question)
    return found[0].removesuffix("_left").removesuffix("_right") if len(found) == 1 else None


def score(
    benchmark: str,
    items: Sequence[Item],
    answers: Mapping[str, Sequence[Line]],
    judged: Mapping[tuple[str, str], float | None],
    judge: str,
) -> Scores:
    """``answers``: subject → its lines in the items' order. ``judged``: (subject, id) → points of open answers."""
    patients = list(dict.fromkeys(item.sample.patient for item in items))
    bootstrap = Bootstrap(len(patients))
    cells = []
    for group, row, chosen in _rows(items):
        for subject, lines in answers.items():
            cells.append(_cell(group, row, subject, items, lines, chosen, patients, bootstrap, judged))
    return Scores(
        benchmark=benchmark, questions=len(items), patients=len(patients), judge=judge, cells=tuple(cells)
    )


def _rows(items: Sequence[Item]) -> list[tuple[str, str, list[int]]]:
    """Group, row, and the places of its items."""
    keys: tuple[tuple[str, Callable[[CoTSample], str | None]], ...] = (
        (OVERALL, lambda _: OVERALL),
        ("task", lambda sample: str(sample.provenance.get("question_type") or sample.task)),
        ("subtask", lambda sample: str(sample.provenance.get("question_subtype") or sample.subtask)),
        ("organ", organ_of),
    )
    found: dict[tuple[str, str], list[int]] = {}
    for group, key in keys:
        for place, item in enumerate(items):
            row = key(item.sample)
            if row is not None:
                found.setdefault((group, row), []).append(place)
    return [(group, row, places) for (group, row), places in found.items()]


def _cell(
    group: str,
    row: str,
    subject: str,
    items: Sequence[Item],
    lines: Sequence[Line],
    chosen: Sequence[int],
    patients: Sequence[str],
    bootstrap: Bootstrap,
    judged: Mapping[tuple[str, str], float | None],
) -> Cell:
    number = {patient: k for k, patient in enumerate(patients)}
    sums = np.zeros((2, len(patients)))
    unscored = 0
    for place in chosen:
        sample, line = items[place].sample, lines[place]
        value = points(sample, line)
        value = judged.get((subject, sample.id)) if value is None else value
        if value is None:
            unscored += 1
            continue
        sums[:, number[sample.patient]] += (value, 1)
    return Cell(
        group=group,
        row=row,
        subject=subject,
        rate=bootstrap.rate((sums[0], sums[1])),
        unanswered=sum(lines[place].said.how == "unanswered" for place in chosen),
        unscored=unscored,
        measured=sum(lines[place].said.how == "measured" for place in chosen),
    )
