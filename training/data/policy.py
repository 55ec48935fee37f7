"""What training does with bad samples: skip or fail, but never in silence and never with a volume of zeros."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TypeVar

from pydantic import Field

from tumorchain_agent.errors import DataError
from tumorchain_agent.records import Record

log = logging.getLogger(__name__)

NAMED = 20
"""Bad samples that a report names; all are counted."""

T = TypeVar("T")


class OnBadData(StrEnum):
    """What to do with a bad sample."""

    SKIP = "skip"
    FAIL = "fail"


class Reason(StrEnum):
    """Why a line, or the files that it names, can't be used."""

    BAD_LINE = "bad_line"
    DUPLICATE = "duplicate"
    BOTH_SIDES = "patient_on_both_sides"
    SHARED_SCAN = "scan_of_two_patients"
    MISSING_SCAN = "missing_scan"
    MISSING_LABEL_MAP = "missing_label_map"
    TRUNCATED_FILE = "truncated_file"
    NOT_FINITE = "nan_in_volume"
    UNREADABLE_SCAN = "unreadable_scan"
    UNFIT_LABEL_MAP = "unfit_label_map"
    ORGAN_LACKING = "organ_lacking_in_label_map"
    ORGAN_PRESENT = "absent_organ_in_label_map"
    ANOTHER_SCAN = "another_scan"

    @property
    def words(self) -> str:
        return self.value.replace("_", " ").replace("nan", "NaN")


class BadSample(Record):
    """A sample that takes the place of its data in a stream, with what is wrong and how to mend it."""

    sample: str
    """Its id, or ``line 12``."""
    reason: Reason
    message: str

    def __str__(self) -> str:
        return f"{self.sample}: {self.message}"


class BadDataReport(Record):
    """What came of an epoch's samples."""

    good: int = 0
    reasons: dict[Reason, int] = Field(default_factory=dict)
    named: tuple[BadSample, ...] = ()
    """The first of them."""

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())

    def __add__(self, other: BadDataReport) -> BadDataReport:
        """The report of two processes that shared an epoch."""
        reasons = Counter(self.reasons) + Counter(other.reasons)
        return BadDataReport(
            good=self.good + other.good, reasons=dict(reasons), named=(self.named + other.named)[:NAMED]
        )

    def __str__(self) -> str:
        if not self.bad:
            return f"no bad sample among {self.good:,}"
        counts = ", ".join(f"{count:,} × {reason.words}" for reason, count in sorted(self.reasons.items()))
        more = f"; and {self.bad - len(self.named):,} more" if self.bad > len(self.named) else ""
        named = "; ".join(map(str, self.named))
        return f"{self.bad:,} of {self.good + self.bad:,} samples are bad ({counts}): {named}{more}"


class BadDataCounter:
    """Counts and names the bad samples of an epoch as a stream passes through it.

    Worker processes put a BadSample where a sample's data can't be had; the main process reads the stream
    through :meth:`good`. ``so_far`` goes on where a resumed epoch stopped.
    """

    def __init__(self, on_bad: OnBadData, so_far: BadDataReport | None = None) -> None:
        self.on_bad = on_bad
        self.so_far = so_far or BadDataReport()

    def good(self, items: Iterable[T | BadSample]) -> Iterator[T]:
        """The items that are data. Under ``fail`` the first bad one raises DataError."""
        for item in items:
            if isinstance(item, BadSample):
                self.add(item)
            else:
                self.so_far = self.so_far.model_copy(update={"good": self.so_far.good + 1})
                yield item

    def add(self, bad: BadSample) -> None:
        """Count one. DataError under ``fail``."""
        if self.on_bad is OnBadData.FAIL:
            raise DataError(f"{bad}; mend it, or skip bad data in the configuration")
        self.so_far += BadDataReport(reasons={bad.reason: 1}, named=(bad,))

    def end_epoch(self) -> BadDataReport:
        """Log what was bad and start anew. DataError when there was no good sample at all."""
        report, self.so_far = self.so_far, BadDataReport()
        if report.bad and not report.good:
            raise DataError(f"nothing is left to train on: {report}")
        log.log(logging.WARNING if report.bad else logging.INFO, "epoch ended: %s", report)
        return report
