"""What is found wrong with an expert's output, and the end of a case that can't be mended."""

from __future__ import annotations

from collections.abc import Sequence

from tumorchain_agent.errors import DataError
from tumorchain_agent.records import Record
from tumorchain_agent.training.engine.config import Stage

Checker = str
"""Who found it: an expert's name, or ``validator``."""


class Fault(Record):
    """One thing that is wrong."""

    kind: str
    """Stable name that statistics count, e.g. ``wrong_side``."""
    message: str


class Caught(Record):
    """A fault with who found it."""

    by: str
    kind: str
    message: str


class SetAsideError(DataError):
    """A case that can't be mended: who says so, and why."""

    def __init__(self, by: Checker, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{each.kind}: {each.message}" for each in faults[:3]))
        self.by = by
        self.faults = tuple(faults)


def caught(by: Stage | Checker, faults: Sequence[Fault]) -> list[Caught]:
    return [Caught(by=by, kind=each.kind, message=each.message[:300]) for each in faults]
