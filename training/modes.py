"""The four modes in which one model is trained: with or without IIR, with or without CoT.

The question's own words tell the model which one is meant (``model.wording.in_mode``), so that the ablation of
Table 1 is one of inference over the same weights, and not of four trainings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Mode:
    """Whether organs are examined round by round, and whether the last round reasons before it answers."""

    iir: bool = True
    cot: bool = True


FULL: Final = Mode()
MODES: Final[dict[str, Mode]] = {
    "full": FULL,
    "without_iir": Mode(iir=False),
    "without_cot": Mode(cot=False),
    "without_both": Mode(iir=False, cot=False),
}


class ModeOdds(BaseModel):
    """How often a question is trained on in each mode; only their ratios matter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    full: float = Field(default=0.7, ge=0)
    without_iir: float = Field(default=0.1, ge=0)
    without_cot: float = Field(default=0.1, ge=0)
    without_both: float = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("all modes have odds 0: give one of them more")
        return self

    def draw(self, rng: np.random.Generator) -> Mode:
        odds = np.array([getattr(self, name) for name in MODES])
        return list(MODES.values())[int(rng.choice(len(odds), p=odds / odds.sum()))]
