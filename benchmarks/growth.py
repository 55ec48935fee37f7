"""How cost grows, with the exponent k of time ~ sizeᵏ: slices, organs, rounds; clients: serving_concurrency.py."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import numpy as np
from agent_rounds import rounds_alone
from bench import Row, Table, clock, exponent, main
from numpy.typing import NDArray
from scans import hospital_scan, write_gz

from tumorchain_agent.tools.labels import label_map
from tumorchain_agent.tools.measure import measure_all
from tumorchain_agent.tools.organs import ORGANS, organ_ids
from tumorchain_agent.tools.preprocess import preprocess
from tumorchain_agent.tools.roi import organ_coverage
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.training.phantom.export import write_cohort

SLICES = (50, 100, 200, 400, 800)
COUNTS = (1, 4, 14, 56)
ROUNDS = (1, 2, 4, 6)
REPEATS = 3


def _row(what: str, sizes: Sequence[int], seconds: Sequence[float], unit: str = "s") -> Row:
    text = ", ".join(f"{size}: {value:.2f} {unit}" for size, value in zip(sizes, seconds, strict=True))
    k = exponent(sizes, seconds)
    return Row(
        what,
        f"k = {k:.2f}",
        text,
        details={"exponent": k, **dict(zip(map(str, sizes), seconds, strict=True))},
    )


def _median(work: Callable[[], object]) -> float:
    work()
    return statistics.median(clock(work) for _ in range(REPEATS))


def _by_slices(folder: Path) -> Iterator[Row]:
    read, measured = [], []
    for count in SLICES:
        ct, labels = hospital_scan(count)
        path = folder / f"{count}.nii.gz"
        write_gz(ct, path, 1)
        known = label_map(labels, ct, source="given", task="given", weights_id="", seconds=0)
        read.append(_median(lambda path=path: preprocess(open_ct(path))))  # type: ignore[misc]
        measured.append(_median(lambda ct=ct, known=known: measure_all(ct, known)))  # type: ignore[misc]
        path.unlink()
    yield _row("slices of 512×512: read and preprocess", SLICES, read)
    yield _row("slices of 512×512: measure all organs", SLICES, measured)


def _by_organs() -> Row:
    """A grid of equal bricks, so that only the number of organs differs."""
    ct, _ = hospital_scan(100)
    model = preprocess(ct)
    side, seconds = 8, []
    bricks = np.indices(ct.shape) // np.array([-(-n // side) for n in ct.shape])[:, None, None, None]
    number = (bricks[0] + side * bricks[1] + side * side * bricks[2]) % len(ORGANS)
    for count in COUNTS:
        ids = np.array([organ_ids(organ)[0] for organ in list(ORGANS.values())[:count]], np.uint8)
        labels = np.asfortranarray(ids[number % count])
        known = label_map(labels, ct, source="given", task="given", weights_id="", seconds=0)

        def work(known: object = known, labels: NDArray[np.uint8] = labels) -> None:
            organ_coverage(labels, ct.affine, model)
            measure_all(ct, known)  # type: ignore[arg-type]

        seconds.append(_median(work))
    return _row("organs that fill 512×512×100: Γ and measurements", COUNTS, seconds)


def _by_rounds(folder: Path) -> Row:
    list(write_cohort(folder / "cohort", 1, 0, spacing=None, workers=1))
    totals = [
        rounds * statistics.median(anyio.run(rounds_alone, folder, rounds, 8)) / 1000 for rounds in ROUNDS
    ]
    return _row("rounds: the agent's own time, scripted LLM", ROUNDS, totals)


def tables() -> Iterator[Table]:
    with tempfile.TemporaryDirectory() as name:
        rows = (*_by_slices(Path(name)), _by_organs(), _by_rounds(Path(name)))
    yield Table("How cost grows", rows)


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
