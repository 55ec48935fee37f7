"""Dice of the segmentation weights against a reference: counted as defined, and on a real CT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tumorchain_agent.cli import main
from tumorchain_agent.tools.organs import ORGANS
from tumorchain_agent.training.segmentation_evaluation import dice, overlaps

LIVER = next(number for number, name in ORGANS.items() if name == "liver")


def test_dice_is_twice_the_overlap_over_both_sizes(rng: np.random.Generator) -> None:
    truth, predicted = (rng.integers(0, 57, (9, 8, 7)).astype(np.uint8) for _ in range(2))
    counts = overlaps(truth, predicted)
    a, b = truth == LIVER, predicted == LIVER
    assert dice(counts, LIVER) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-4)
    assert counts.sum() == truth.size


@pytest.mark.slow
def test_the_nano_weights_are_measured_on_a_real_ct(
    real: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUMORCHAIN_SEGMENTATION", "nano")
    folder = real / "totalsegmentator"
    scan, reference = folder / "example_ct.nii.gz", folder / "example_seg_fast_force_split.nii.gz"
    assert main(["evaluate", "--segmentation", str(scan), str(reference), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    organs = {organ["organ"]: organ for organ in score["organs"]}
    assert organs["liver"]["reference_ml"] == pytest.approx(1125.68, abs=0.01)
    assert 0.5 < organs["liver"]["dice"] <= 1
    assert organs["prostate"]["dice"] is None
    assert 0 < score["mean_dice_five"] <= 1
