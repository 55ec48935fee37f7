"""Many phantoms in little time: a few anatomies are painted, and each patient is drawn anew on one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.tools.organs import ORGANS
from tumorchain_agent.training.phantom.patient import Case
from tumorchain_agent.training.phantom.volume import (
    cell_shares,
    make_pool,
    merged_labels,
    to_model_axes,
    windowed,
)
from tumorchain_agent.training.suite.patients import View
from tumorchain_agent.training.suite.questions import questions_of
from tumorchain_agent.training.suite.talks import EncodedScan, Talk

ANATOMIES = 4


def talks(folder: Path, count: int, seed: int, served: ServedCheckpoint, max_rounds: int) -> Iterator[Talk]:
    """A question about each of ``count`` patients, with true masks, encoded but not yet asked."""
    pool = make_pool(folder, ANATOMIES, seed % 100_000, workers=1)
    rng = np.random.default_rng(seed)
    for index in range(count):
        view = seen(pool.draw(rng, diseases=(0.3, 0.7)))
        questions = questions_of(view.truth, view.present)
        text = questions[index % len(questions)].text
        yield Talk(EncodedScan(view, served), text, max_rounds=max_rounds)


def seen(case: Case) -> View:
    """A phantom on nano's grid as the encoder takes it: twice the pixels in-plane."""
    coverage = cell_shares(merged_labels(case), len(ORGANS) + 1)
    volume = windowed(to_model_axes(case.hu)).repeat(2, axis=1).repeat(2, axis=2)[None]
    present = tuple(name for number, name in ORGANS.items() if coverage[number].any())
    return View(case.truth, "as drawn", volume, coverage, present, present)
