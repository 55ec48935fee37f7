"""Results on disk by content key: made once, whoever asks, also after a crash and across processes.

Every result that was really computed leaves a line in ``work_log.jsonl``; one from the cache leaves none.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tumorchain_agent import __version__
from tumorchain_agent.mcp_server.jobs import WAIT_S, Job, Lanes
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.cache import Cache, content_key

T = TypeVar("T")

WORK_LOG = "work_log.jsonl"


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One result: what it depends on, and how it is read back."""

    name: str
    parts: tuple[str, ...]
    """All that the result depends on; with ``name`` and ``version`` its content key."""
    load: Callable[[Path], T]
    """From the file or folder; may raise FileNotFoundError when that is removed meanwhile."""
    suffix: str = ""
    version: str = __version__
    """Of the code that computes it: an update computes anew. Empty for what no code of ours decides."""

    @property
    def key(self) -> str:
        return content_key(self.name, self.version, *self.parts) + self.suffix


Make = Callable[[Path, Job], None]
"""Writes the result as one file, or folder, at the path."""


class Store:
    """The cache with single flight: one thread of one process makes a result, the others wait and read it."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.cache_dir
        self._cache = Cache(settings.cache_dir / "results", int(settings.cache_max_gb * 1e9))
        self._lanes = Lanes()

    def get(self, entry: Entry[T]) -> T | None:
        """The result if it is there, else ``None``."""
        path = self._cache.get(entry.key)
        if path is None:
            return None
        try:
            return entry.load(path)
        except FileNotFoundError:
            return None

    def get_or_make(
        self, entry: Entry[T], make: Make, job: Job, *, work: str | None = None
    ) -> tuple[T, bool]:
        """The result, and whether it came from the cache.

        ``work`` (the entry's name) is the lane that it is made in, one result at a time, and its name in the
        log. Raises :class:`~tumorchain_agent.errors.Cancelled` and whatever ``make`` raises; then nothing is
        stored.
        """
        found = self.get(entry)
        if found is not None:
            return found, True
        work = work or entry.name
        while True:
            with self._lanes[work].hold(job) as held, self._cache.lock(entry.key, wait=False) as alone:
                if alone:
                    return self._made(entry, make, held, work)
            job.check(f"waiting for another process to {work}")
            job.progress(f"waiting for another process: {work}", 0.0)
            time.sleep(WAIT_S)

    def _made(self, entry: Entry[T], make: Make, job: Job, work: str) -> tuple[T, bool]:
        """With the lock held: read what another has made meanwhile, or make it."""
        found = self.get(entry)
        if found is not None:
            return found, True
        started = time.monotonic()
        path = self._cache.put(entry.key, lambda target: make(target, job))
        self._log(work, entry.parts, time.monotonic() - started)
        return entry.load(path), False

    def _log(self, work: str, parts: tuple[str, ...], seconds: float) -> None:
        line = {
            "time": round(time.time(), 3),
            "pid": os.getpid(),
            "work": work,
            "parts": parts,
            "seconds": round(seconds, 3),
        }
        descriptor = os.open(self.root / WORK_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())
        finally:
            os.close(descriptor)


def read_work_log(cache_dir: Path) -> list[dict[str, Any]]:
    """What was computed with this cache folder, oldest first: work, parts, seconds, pid, time."""
    path = cache_dir / WORK_LOG
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
