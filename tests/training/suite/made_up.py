"""Finished lines without any model: answers that are right with a given chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.training.phantom.truths import random_truth
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.suite.answers import NONE
from tumorchain_agent.training.suite.finished import Answered, Answers, Features, OrganFeatures
from tumorchain_agent.training.suite.questions import questions_of
from tumorchain_agent.training.suite.work import facts_of

CHECKPOINT = "0123456789abcdef"


def truths(count: int, first_seed: int = 0) -> list[Truth]:
    """Three of five with a tumor."""
    rng = np.random.default_rng(first_seed)
    organs = [ORGANS[k % 5] if k % 5 < 3 else None for k in range(count)]
    return [replace(random_truth(rng, o), seed=first_seed + k) for k, o in enumerate(organs)]


def answers(truth: Truth, right: float, rng: np.random.Generator, column: str = "full") -> Answers:
    """Every question right with this chance, else read as nonsense or not at all."""

    def read(fields: dict[str, str]) -> dict[str, str] | None:
        if rng.random() < right:
            return fields
        return None if rng.random() < 0.5 else dict.fromkeys(fields, "nonsense")

    return Answers(
        checkpoint_id=CHECKPOINT,
        masks="truth",
        seed=truth.seed,
        column=column,
        facts=facts_of(truth),
        answers=tuple(
            Answered(
                subtask=q.subtask,
                question=q.text,
                asked_organ=q.asked_organ,
                truth=q.truth,
                read=read(q.truth),
                organs=((), ("liver",)),
                texts=("First.", "Second."),
                cut_off=False,
            )
            for q in questions_of(truth, ORGANS)
        ),
    )


def features(truth: Truth, rng: np.random.Generator, width: int = 6, signal: float = 3.0) -> Features:
    """Token statistics in which an ill organ stands out by ``signal`` standard deviations in one place."""
    found = {}
    for organ in ORGANS:
        mean, most, sd = rng.standard_normal((3, width))
        most[0] += signal * (organ in truth.abnormal_organs)
        found[organ] = OrganFeatures(
            intensity=float(rng.uniform(0.4, 0.6)),
            p_abnormal=0.5,
            mean=tuple(mean.tolist()),
            most=tuple(most.tolist()),
            sd=tuple(sd.tolist()),
        )
    return Features(
        checkpoint_id=CHECKPOINT,
        masks="truth",
        seed=truth.seed,
        facts=facts_of(truth),
        abnormal=truth.abnormal_organs,
        organs=found,
    )


def organ_of(truth: Truth) -> str:
    return truth.organ or NONE
