"""Before the stages the encoder may be trained on phantoms, and conversations may do without crops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.hco import tiny
from tumorchain_agent.model.checkpoint import read_info
from tumorchain_agent.training.data.policy import BadDataCounter, OnBadData
from tumorchain_agent.training.hco.batches import Order, Reader, Shape
from tumorchain_agent.training.hco.build import build
from tumorchain_agent.training.hco.config import TrainConfig
from tumorchain_agent.training.hco.feeder import Feeder
from tumorchain_agent.training.hco.trainer import train

PHANTOMS = {
    "anatomies": 2,
    "validation_anatomies": 2,
    "patients": 6,
    "validation_patients": 2,
    "described": 0,
}
FROZEN = {"projector": 4e-3, "llm": 4e-3}


def config(folder: Path, zoom_shown: float = 1.0, minutes: float = 0.03) -> TrainConfig:
    return tiny.config(
        folder / "cot.jsonl",
        data={"records": None, "phantoms": PHANTOMS},
        zoom={"organs": ["liver"], "max_tokens": 8},
        pretrain={"minutes": minutes, "batch": 1, "workers": 0, "zoom_share": 0.5},
        stage={"rates": FROZEN, "steps": 2, "zoom_shown": zoom_shown},
        batch=6,
        questions_per_scan=3,
    )


@pytest.mark.slow
def test_the_stages_begin_with_the_encoder_that_was_trained_before_them(tmp_path: Path) -> None:
    run = build(config(tmp_path), tmp_path / "out")
    saved = torch.load(tmp_path / "out/vision/vision.pt", weights_only=True)
    assert saved["state"]["step"] > 0
    train(run)
    for name, value in run.model.tower.encoder.state_dict().items():
        assert torch.equal(value, saved["model"][f"encoder.{name}"]), name
    again = build(config(tmp_path), tmp_path / "out")
    assert torch.load(tmp_path / "out/vision/vision.pt", weights_only=True)["state"] == saved["state"]
    assert torch.equal(again.model.tower.cls.weight, saved["model"]["cls.weight"])
    info = read_info(tmp_path / "out" / "last")
    assert info.untrained == ()
    assert info.zoom is not None


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_conversations_show_crops_or_do_without(share: float, tmp_path: Path) -> None:
    told = config(tmp_path, share).model_copy(update={"pretrain": None})
    run = build(told, tmp_path / "out")
    feeder = Feeder(told, told.stages[0], run.model, run.tokenizer, BadDataCounter(OnBadData.FAIL), None)
    reader = Reader(Order(run.source, 3, 0, 0), Shape(6, 1), None)
    shown = []
    for each in reader[reader.units(0)]:
        prepared = feeder.prepared(replace(each, tokens=torch.zeros(2048, 16)))
        assert prepared is not None
        shown += [bool(any(conversation.crops)) for conversation in prepared.encoded]
    assert any(shown) is bool(share)


def test_which_conversations_show_crops_is_told_by_seed_and_unit_alone() -> None:
    feeder = Feeder.__new__(Feeder)
    feeder.config = SimpleNamespace(seed=3)  # type: ignore[assignment]
    feeder.stage = SimpleNamespace(zoom_shown=0.8)  # type: ignore[assignment]
    units: list[Any] = [SimpleNamespace(number=number) for number in range(500)]
    first, again = ([feeder._shows_crops(unit, k) for unit in units for k in range(2)] for _ in range(2))
    assert first == again
    assert sum(first) / len(first) == pytest.approx(0.8, abs=0.05)
