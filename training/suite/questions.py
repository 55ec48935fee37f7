"""What a held-out phantom is asked; a patient's questions don't depend on who else is in the cohort."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np

from tumorchain_agent.records import Record
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.text import ask
from tumorchain_agent.training.suite.answers import true_fields
from tumorchain_agent.training.tasks import OF_ALL, SUBTASKS

TUMOR_SHARE: Final = 0.6
"""Of the cohort, as ``patient.generate`` draws it."""
_TAG: Final = 20260507
_UNFOUNDED_TAG: Final = 20261122


class Question(Record):
    """One question with what is true of it."""

    subtask: str
    text: str
    """Without the words of a mode."""
    asked_organ: str | None
    truth: dict[str, str]
    """Field → class (``answers``)."""


def questions_of(truth: Truth, present: Collection[str]) -> list[Question]:
    """One question for each subtask that applies, in the order of Table 1; ``present`` are organs in the scan."""
    rng = np.random.default_rng([_TAG, truth.seed])
    asked = _asked_organ(rng, truth)
    subtasks = [name for name in SUBTASKS if truth.organ is not None or name in OF_ALL]
    return [
        _question(rng, truth, name, asked if name == "tumor_position" else None, present) for name in subtasks
    ]


def unfounded_question_of(truth: Truth) -> Question | None:
    """One that presupposes a tumor, of a patient without any; ``None`` where there is one."""
    if truth.organ is not None:
        return None
    rng = np.random.default_rng([_UNFOUNDED_TAG, truth.seed])
    subtask = str(rng.choice([name for name in SUBTASKS if name not in OF_ALL]))
    return _question(rng, truth, subtask, None, ORGANS)


def _question(
    rng: np.random.Generator, truth: Truth, subtask: str, organ: str | None, present: Collection[str]
) -> Question:
    return Question(
        subtask=subtask,
        text=ask(rng, subtask, organ),
        asked_organ=organ,
        truth=true_fields(truth, subtask, organ, present),
    )


def _asked_organ(rng: np.random.Generator, truth: Truth) -> str:
    """The organ that ``tumor_position`` asks about: an ill one so often that yes and no balance over the cohort."""
    ill = rng.random() < 0.5 / TUMOR_SHARE and truth.abnormal_organs
    choices = truth.abnormal_organs if ill else [o for o in ORGANS if o not in truth.abnormal_organs]
    return str(rng.choice(choices))
