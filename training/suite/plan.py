"""What is asked of whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tumorchain_agent.training.modes import FULL, MODES, Mode
from tumorchain_agent.training.seeds import HELD_OUT_SEED, TRAINING_SEED

MasksFrom = Literal["segmentation", "truth"]
PATIENTS: Final = 260
"""Default cohort: about 2,200 questions."""
PROBE_PATIENTS: Final = 400
"""That a probe learns from."""
TITLES: Final = {
    "full": "full",
    "without_iir": "w/o IIR",
    "without_cot": "w/o CoT",
    "without_both": "w/o CoT, IIR",
}
"""Modes as Table 1 calls them."""


@dataclass(frozen=True)
class Column:
    """A way of asking the same questions of the same model."""

    mode: Mode = FULL
    blank: bool = False
    """Nothing is seen of the image: the text-only baseline."""

    @property
    def name(self) -> str:
        mode = next(name for name, mode in MODES.items() if mode == self.mode)
        return f"{mode}, text only" if self.blank else mode


@dataclass(frozen=True)
class Cohort:
    """Who is asked, and with what masks."""

    patients: int = PATIENTS
    first_seed: int = HELD_OUT_SEED
    masks: MasksFrom = "truth"
    probe_patients: int = PROBE_PATIENTS
    """From ``TRAINING_SEED`` on; 0 leaves the probe out."""
    grounding: bool = True
    """Counterfactual pairs and the ROI swap."""

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.patients)

    @property
    def probe_seeds(self) -> range:
        return range(TRAINING_SEED, TRAINING_SEED + self.probe_patients)


@dataclass(frozen=True)
class Plan:
    """What is asked of whom."""

    models: tuple[Path | None, ...] = (None,)
    """Checkpoint folders; ``None`` is nano."""
    modes: tuple[Mode, ...] = (FULL,)
    """The first is what the others, and the other models, are compared with."""
    cohort: Cohort = Cohort()

    def columns(self, model: int) -> tuple[Column, ...]:
        """Of a model by its number; text only is asked of the first model in the first mode."""
        blank = (Column(self.modes[0], blank=True),) if model == 0 else ()
        return (*(Column(mode) for mode in self.modes), *blank)
