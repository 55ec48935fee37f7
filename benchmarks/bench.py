"""What every benchmark shares: taking turns, tables, the machine, JSON.

A benchmark is a module of this folder with ``tables() -> Iterable[Table]`` that ends in
``raise SystemExit(main(tables))``.
``python benchmarks`` runs all of them, each in a process of its own. A figure is a ratio of two things that were
measured in turns, in one run, on one machine: A B B A A B …; the median of the pairs, and the middle 80 % of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

JSON_VARIABLE = "TUMORCHAIN_BENCH_JSON"
"""Where a benchmark writes its tables when the runner asks for them."""


SKIPPED = "skipped"


@dataclass(frozen=True)
class Row:
    """A line of a table; ``met`` is None where there is no target, or it can't be told here."""

    what: str
    against: str
    figure: str
    target: str = "–"
    met: bool | None = None
    details: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """Seconds of A and of B, taken in turns."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """B / A of each pair: how many times as fast A is."""
        return sorted(b / a for a, b in zip(self.a, self.b, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 80 % of the pairs."""
        cut = len(self.ratios) // 10
        return self.ratios[cut], self.ratios[-1 - cut]

    @property
    def text(self) -> str:
        low, high = self.interval
        return f"{self.ratio:.2f}× ({low:.2f}–{high:.2f}, {len(self.a)} pairs)"

    @property
    def details(self) -> dict[str, float | str]:
        low, high = self.interval
        medians = {"a_median_s": statistics.median(self.a), "b_median_s": statistics.median(self.b)}
        return {"ratio": self.ratio, "low": low, "high": high, "pairs": len(self.a), **medians}

    def row(self, what: str, against: str, least: float) -> Row:
        """A line whose target is that A is at least so many times as fast as B."""
        return Row(what, against, self.text, f"≥ {least:g}×", self.ratio >= least, self.details)


def in_turns(a: Callable[[], object], b: Callable[[], object], pairs: int = 5, warm: bool = True) -> Pairs:
    """Run A and B in turns, first A, then B first, and so on."""
    if warm:
        a()
        b()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for turn in range(pairs):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            seconds[index].append(clock((a, b)[index]))
    return Pairs(tuple(seconds[0]), tuple(seconds[1]))


def clock(work: Callable[[], object]) -> float:
    """Seconds by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """k of seconds ~ sizeᵏ, by least squares of the logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    return statistics.linear_regression(x, y).slope


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Processor, cores, memory, how busy, versions."""
    import numpy as np

    name, memory = platform.processor() or platform.machine(), "memory unknown"
    cpus, held = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpus.exists() and held.exists():
        lines = [
            line.split(":", 1)[1].strip() for line in cpus.read_text().splitlines() if "model name" in line
        ]
        name = lines[0] if lines else name
        memory = f"{int(held.read_text().split()[1]) / 2**20:.0f} GiB"
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    return f"{name}, {cores()} cores, {memory}, {load}, {versions}"


def show(table: Table) -> str:
    """As Markdown."""
    lines = [f"### {table.title}", "", "| what | against | figure | target | |", "|---|---|---|---|---|"]
    for row in table.rows:
        met = {True: "met", False: "missed", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.against} | {row.figure} | {row.target} | {met} |")
    return "\n".join([*lines, "", *table.notes, ""])


def main(tables: Callable[[], Iterable[Table]], description: str = "") -> int:
    """Run one benchmark; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, default=os.environ.get(JSON_VARIABLE), help="also write it here")
    args = parser.parse_args()
    print(machine(), flush=True)
    found = []
    for table in tables():
        print(show(table), flush=True)
        found.append(table)
    if args.json:
        text = json.dumps({"machine": machine(), "tables": [asdict(table) for table in found]}, indent=1)
        Path(args.json).write_text(text)
    return 1 if any(row.met is False for table in found for row in table.rows) else 0


def skipped(title: str, why: str) -> Table:
    """A benchmark that can't be run here, by name."""
    print(f"skipped: {title}: {why}", file=sys.stderr)
    return Table(title, (Row(title, "–", f"{SKIPPED}: {why}"),))
