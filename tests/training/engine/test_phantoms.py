"""Phantoms, whose truth is exact: what is extracted from their reports, and what becomes of a fault in each case."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.training.engine.injected import Injected, Tampering, catalogue
from tests.training.engine.making import config_for, outcomes, run, write_cases
from tests.training.engine.scripted import Experts
from tests.training.engine.server import ModelServer, serving
from tests.training.engine.test_extraction import share_right
from tests.training.engine.test_faults import CHECKERS
from tumorchain_agent.training.data.validate import validate_file
from tumorchain_agent.training.phantom.patient import Truth
from tumorchain_agent.training.phantom.volume import generate_nano

PHANTOMS = int(os.environ.get("TUMORCHAIN_ENGINE_PHANTOMS") or 16)
"""300 and more give a figure to report, and take minutes."""


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    first = 7_700_000 if PHANTOMS >= 300 else int(np.random.default_rng().integers(10**6, 2**31))
    print(f"phantoms {first} to {first + PHANTOMS - 1}")
    return [generate_nano(seed).truth for seed in range(first, first + PHANTOMS)]


@pytest.mark.slow
def test_what_is_extracted_from_reports_of_phantoms_is_their_truth(
    truths: list[Truth], tmp_path: Path
) -> None:
    assert share_right(truths, tmp_path) >= 0.99


@pytest.mark.slow
def test_right_answers_about_phantoms_all_become_samples(truths: list[Truth], tmp_path: Path) -> None:
    with serving(ModelServer(Experts.of(truths))) as server:
        done = run(config_for(write_cases(tmp_path / "cases.jsonl", truths), server.url), tmp_path / "out")
    print(f"{done.statistics.summary.samples.both} samples of {len(truths)} phantoms")
    assert [outcome.id for outcome in outcomes(tmp_path / "out") if outcome.caught] == []
    assert validate_file(tmp_path / "out/samples.jsonl").good


@pytest.mark.slow
def test_every_fault_that_befalls_a_phantom_is_caught(
    truths: list[Truth], tmp_path: Path, rng: np.random.Generator
) -> None:
    experts = Experts.of(truths)
    faults = spread_out(experts.truths, rng)
    good = next(iter(experts.truths))
    del faults[good]
    cases = write_cases(tmp_path / "cases.jsonl", list(experts.truths.values()))
    with serving(ModelServer(experts, Tampering(faults, experts.truths, once=False))) as server:
        run(config_for(cases, server.url), tmp_path / "out")
    ends = dict(zip(experts.truths, outcomes(tmp_path / "out"), strict=True))
    missed = [fault.name for key, fault in faults.items() if ends[key].by not in CHECKERS]
    by = Counter(ends[key].by for key in faults)
    print(f"{len(faults)} faults of {len({f.name for f in faults.values()})} kinds, caught by {dict(by)}")
    assert missed == []


def spread_out(truths: dict[str, Truth], rng: np.random.Generator) -> dict[str, Injected]:
    """A fault for each case: of those that can befall it, one that befell fewest others."""
    used: Counter[str] = Counter()
    found: dict[str, Injected] = {}
    for key, truth in truths.items():
        able = [fault for fault in catalogue() if fault.fits(truth)]
        least = min(used[fault.name] for fault in able)
        rarest = [fault for fault in able if used[fault.name] == least]
        found[key] = rarest[int(rng.integers(len(rarest)))]
        used[found[key].name] += 1
    return found
