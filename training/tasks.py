"""The paper's 4 tasks and 12 subtasks (2.1, Table 1), by the names that data, phantoms and evaluation use."""

from __future__ import annotations

from typing import Final, Literal

Task = Literal["position", "lesion", "tnm", "report"]

TASKS: Final[dict[Task, tuple[str, ...]]] = {
    "position": ("organ", "tumor_position", "segment"),
    "lesion": ("shape", "boundary", "density", "count", "others"),
    "tnm": ("tumor", "node", "metastasis"),
    "report": ("report",),
}
"""Task → its subtasks, in the order of Table 1."""

SUBTASKS: Final[tuple[str, ...]] = tuple(name for names in TASKS.values() for name in names)

TASK_OF: Final[dict[str, Task]] = {name: task for task, names in TASKS.items() for name in names}
"""Subtask → its task."""

SUBTASK_ODDS: Final = {
    "organ": 5.0, "tumor_position": 4.0, "report": 4.0, "segment": 1.5, "shape": 1.0, "boundary": 1.0, "density": 1.0,
    "count": 1.0, "others": 1.0, "tumor": 1.5, "node": 1.0, "metastasis": 1.0,
}  # fmt: skip
"""How often training asks a phantom about what."""

OF_ALL: Final = ("organ", "tumor_position", "report")
"""Subtasks that every patient is asked; the others presuppose a tumor."""

UNFOUNDED: Final = 0.1
"""How often, of its odds, training asks a healthy phantom what presupposes a tumor: that there is none must stay an
answer, but where many such questions are, it is the likeliest one as soon as a tumor is hard to see."""


def subtask_odds(*, healthy: bool) -> dict[str, float]:
    """How often training asks a patient about what; the odds don't add up to 1."""
    if not healthy:
        return dict(SUBTASK_ODDS)
    return {name: odds if name in OF_ALL else UNFOUNDED * odds for name, odds in SUBTASK_ODDS.items()}
