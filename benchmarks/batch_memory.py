"""Memory of a batch: all its processes together at row 8 and at row 64, 64 scans on Ray Data."""

from __future__ import annotations

import csv
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
from bench import Row, Table, main, skipped

from tumorchain_agent.batch_run import outcomes
from tumorchain_agent.batch_table import read_table
from tumorchain_agent.batch_worker import Reasoning
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.phantom.export import write_cohort

TITLE = "Memory of a batch of 64 scans"
SCANS, EARLY = 64, 8


def resident() -> int:
    """Bytes of this process and all below it; what they share counts once (PSS)."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


class Peak:
    """The highest memory since the last look, sampled four times a second."""

    def __init__(self) -> None:
        self._highest, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            self._highest = max(self._highest, resident())

    def take(self) -> int:
        highest, self._highest = max(self._highest, resident()), 0
        return highest

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def tables() -> Iterator[Table]:
    if find_spec("ray") is None:
        yield skipped(TITLE, "Ray is not installed")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        list(write_cohort(folder / "cohort", SCANS, 100, spacing=None, workers=2))
        with (folder / "table.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["scan", "question", "masks"])
            for patient in sorted(path for path in (folder / "cohort").iterdir() if path.is_dir()):
                lines.writerow([patient / "ct.nii.gz", "Is there a tumor?", patient / "labels.nii.gz"])
        rows = [(row, "k") for row in read_table(folder / "table.csv")]
        peaks, failed = [], 0
        peak = Peak()
        for outcome in outcomes(rows, Settings(cache_dir=folder / "cache"), Reasoning(), workers=1):
            peaks.append(peak.take())
            failed += outcome.status == "failed"
        peak.close()
    early, late = max(peaks[:EARLY]), max(peaks)
    row = Row(
        f"peak memory up to row {SCANS}, {failed} failed", f"up to row {EARLY} ({early / 2**20:.0f} MiB)",
        f"{late / early:.3f}×", "≤ 1.1×", late <= 1.1 * early and not failed and len(peaks) == SCANS,
        {"early_bytes": early, "late_bytes": late},
    )  # fmt: skip
    yield Table(TITLE, (row,))


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
