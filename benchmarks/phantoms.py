"""Patients per second at nano's resolution: ``python benchmarks/phantoms.py [--patients N] [--workers N]``.

Two ways: written as files (``tumorchain-agent phantom --resolution nano``), and as training draws them (anatomies
painted into a pool, then patients drawn from it with all their targets).
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from bench import machine

from tumorchain_agent.training.phantom.export import write_cohort
from tumorchain_agent.training.phantom.volume import Pool, make_pool
from tumorchain_agent.training.targets import PhantomStream, case_targets
from tumorchain_agent.training.workers import worker_pool

WANTED = 5.0
"""Patients a second, on 2 cores."""


@dataclass(frozen=True)
class Rates:
    """Patients a second: by the clock, and on as many cores without other work."""

    clock: float
    free: float


def measured(name: str, patients: int, workers: int, work: Callable[[], object]) -> Rates:
    """Run ``work``, whose child processes end with it; print and return its rates."""
    before = _busy()
    start = time.monotonic()
    work()
    seconds = time.monotonic() - start
    core_s = (_busy() - before) / patients
    rates = Rates(patients / seconds, workers / core_s)
    print(f"{name}: {rates.clock:.2f} patients/s by the clock, {core_s:.3f} core-s a patient")
    return rates


def _busy() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def draw(folder: Path, seed: int) -> None:
    """One patient for training, targets included."""
    case_targets(Pool.open(folder).draw(np.random.default_rng(seed)))


def draw_crop(folder: Path, seed: int) -> None:
    """The same of an organ's crop, for ROI zoom."""
    next(iter(PhantomStream(Pool.open(folder), seed, zoom_share=1.0)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    n, workers = args.patients, args.workers
    print(f"{machine()}; {workers} workers, {n} patients of 128 x 128 x 32 voxels")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = write_cohort(folder / "cohort", n, 0, spacing=None, workers=workers)
        written = measured("written as files", n, workers, lambda: list(cohort))
        painted = measured(
            "painted into a pool", n, workers, lambda: make_pool(folder / "pool", n, 0, workers)
        )
        pool = folder / "pool"
        drawn = measured("drawn from the pool", n, workers, lambda: _draw_all(draw, pool, n, workers))
        measured("an organ's crop of each", n, workers, lambda: _draw_all(draw_crop, pool, n, workers))
    both = Rates(*(1 / (1 / getattr(painted, k) + 1 / getattr(drawn, k)) for k in ("clock", "free")))
    for name, rates in (("written as files", written), ("painted and drawn", both)):
        print(f"{name}: {rates.clock:.2f} patients/s by the clock, {rates.free:.2f} on {workers} free cores")
    least = min(written.clock, both.clock)
    print(f"wanted: {WANTED:.0f} by the clock on 2 cores; {'reached' if least >= WANTED else 'missed'}")
    return 0 if least >= WANTED else 1


def _draw_all(one: Callable[[Path, int], None], folder: Path, count: int, workers: int) -> None:
    with worker_pool(workers) as pool:
        list(pool.map(one, repeat(folder), range(count), chunksize=8))


if __name__ == "__main__":
    raise SystemExit(main())
