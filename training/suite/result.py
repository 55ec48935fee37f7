"""What the suite has measured. Rates are in 0..1; intervals are 95 % bootstrap percentiles over patients."""

from __future__ import annotations

from typing import Literal

from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.training.suite.finished import VERSION

Interval = tuple[float, float]


class Rate(Record):
    """A share with its interval; ``None`` where there is nothing to count."""

    value: float | None
    interval: Interval | None
    count: int
    """Of what it is a share."""


class Cell(Record):
    """A subtask, a task (mean of its subtasks) or the average (mean of the 12 subtasks) in one column."""

    row: str
    accuracy: Rate
    unreadable: int
    """Answers out of which no class could be read; they count as wrong."""
    difference: float | None
    """To the first column, on the same patients."""
    difference_interval: Interval | None


class Stratum(Record):
    """Tumors of a size."""

    name: str
    present: Rate
    """Share that was called a tumor."""
    organ: Rate
    """Share whose organ was right."""


class HardCase(Record):
    """One of the paper's error types (13.2)."""

    name: str
    right: Rate


class TumorRates(Record):
    """Is there a tumor, and in which organ, from the subtask ``organ``."""

    sensitivity: Rate
    specificity: Rate
    balanced_accuracy: Rate
    present_2cm: Rate
    """Tumors of 2 cm and more that were called one."""
    organ_2cm: Rate
    strata: tuple[Stratum, ...]
    hard: tuple[HardCase, ...]


class ColumnResult(Record):
    """One way of answering all questions."""

    title: str
    kind: Literal["model", "text only", "majority"]
    checkpoint_id: str | None
    alpha: float | None
    """Of eq. 8, as the checkpoint tells it."""
    mode: str | None
    """``full``, ``without_iir``, ``without_cot``, ``without_both``."""
    cells: tuple[Cell, ...]
    tumors: TumorRates
    mean_rounds: float | None
    cut_off: int
    """Replies that reached the longest length."""


class PairRates(Record):
    """Counterfactual pairs, tumors of 2 cm and more: both answers are right, or at least they differ."""

    name: str
    accordingly: Rate
    changed: Rate


class SwapRates(Record):
    """Where one patient's own verdict on an organ is yes and the other's no: who follows the other's tokens."""

    followed: Rate
    tumor_shown: Rate
    """Tokens of a tumor put into a patient called healthy."""
    tumor_hidden: Rate
    """Tokens of a healthy organ put into a patient called ill."""
    cases: int
    """All that were tried."""


class UnfoundedRates(Record):
    """Patients without a tumor, asked for a property or a stage of theirs; what is neither can't be read."""

    denied: Rate
    """Answered that there is none."""
    made_up: Rate
    """Answered with a property or a stage."""


class ProbeResult(Record):
    """What can be read out of the encoder's ROI tokens without the LLM."""

    name: str
    patients: int
    """That it learned from."""
    tumors: TumorRates


class ModelResult(Record):
    """What was measured of a checkpoint beside the questions."""

    title: str
    checkpoint_id: str
    pairs: tuple[PairRates, ...]
    swap: SwapRates | None
    unfounded: UnfoundedRates | None = None
    probes: tuple[ProbeResult, ...]


class SuiteResult(Record):
    """``evaluate --suite phantom``."""

    disclaimer: str = DISCLAIMER
    version: str = VERSION
    first_seed: int
    patients: int
    tumors: int
    questions: int
    """Of each column."""
    masks: Literal["segmentation", "truth"]
    columns: tuple[ColumnResult, ...]
    models: tuple[ModelResult, ...]
