"""What a piece of blocking work knows of its caller, and the lanes that keep heavy work from piling up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tumorchain_agent.errors import Cancelled

Progress = Callable[[str, float], None]
"""``progress(phase, fraction)`` with the fraction of the whole call in [0, 1]; callable from any thread."""

CancelCheck = Callable[[], bool]

WAIT_S = 0.1


def _silent(phase: str, fraction: float) -> None:
    """No one listens."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Job:
    """The caller of some blocking work: where its progress goes, and whether it is still wanted."""

    progress: Progress = _silent
    cancelled: CancelCheck = _never

    def part(self, low: float, high: float) -> Job:
        """The same job for a part of the work, whose 0..1 is the whole's ``low``..``high``."""
        report = self.progress
        return replace(self, progress=lambda phase, fraction: report(phase, low + (high - low) * fraction))

    def check(self, what: str) -> None:
        """Raises :class:`Cancelled` when the caller has gone."""
        if self.cancelled():
            raise Cancelled(f"{what} was cancelled; call again to start over, finished parts are kept")


class Lane:
    """One piece of heavy work at a time; who waits sees the progress of the work in front."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._front: tuple[str, float] = (name, 0.0)

    @contextmanager
    def hold(self, job: Job) -> Iterator[Job]:
        """Wait for the lane, then hold it. Raises :class:`Cancelled` when the caller goes while waiting."""
        while not self._lock.acquire(timeout=WAIT_S):
            job.check(f"waiting to {self.name}")
            phase, fraction = self._front
            job.progress(f"waiting for another call: {phase}", fraction)
        try:
            job.check(self.name)
            self._front = (self.name, 0.0)
            yield replace(job, progress=self._seen_by_others(job.progress))
        finally:
            self._lock.release()

    def _seen_by_others(self, report: Progress) -> Progress:
        def progress(phase: str, fraction: float) -> None:
            self._front = (phase, fraction)
            report(phase, fraction)

        return progress


class Lanes:
    """A lane for each name, made on first use: the same result is made once however many ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}

    def __getitem__(self, name: str) -> Lane:
        with self._lock:
            return self._lanes.setdefault(name, Lane(name))
