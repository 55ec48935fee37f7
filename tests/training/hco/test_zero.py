"""DeepSpeed ZeRO-2 in two processes on a CPU against one process without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.training.hco import tiny
from tumorchain_agent.cli import main
from tumorchain_agent.model.checkpoint import load_llm, load_vision

ROOT = Path(__file__).resolve().parents[3]
RATE = 1e-3
TWICE = """
import shutil, sys
from pathlib import Path
import torch
from accelerate.state import AcceleratorState
from tumorchain_agent.cli import main

config, out = sys.argv[1], Path(sys.argv[2])
for again in (False, True):
    if main(["train", config, "--out", str(out)]):
        sys.exit(1)
    torch.distributed.barrier()
    if not again and torch.distributed.get_rank() == 0:
        (out / "last").rename(out.parent / "uninterrupted")
        shutil.rmtree(out / "checkpoints" / "step-00000004")
    torch.distributed.barrier()
    AcceleratorState._reset_state(reset_partial_state=True)
"""
"""Trains, takes the newest checkpoint away and trains on from the one before."""


def in_two_processes(*arguments: object) -> None:
    """``python ARGUMENTS`` under torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*launch, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def write(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def scalars(out: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def exported(folder: Path) -> torch.Tensor:
    tower, _ = load_vision(folder)
    llm = load_llm(folder)
    return torch.cat([p.detach().flatten() for p in [*tower.parameters(), *llm.parameters()]])


@pytest.mark.slow
def test_two_processes_of_zero_2_train_as_one_process_without_it(records: Path, tmp_path: Path) -> None:
    stages = [
        {"name": "align", "form": "align", "rates": {"projector": RATE}, "steps": 2},
        {
            "name": "cot",
            "form": "cot",
            "rates": dict.fromkeys(("encoder", "projector", "cls", "llm"), RATE),
            "steps": 3,
        },
    ]
    common = tiny.settings(records, encoder=tiny.VIT, stages=stages)
    one = write(tmp_path / "one.yaml", common | {"batch": 2, "accumulation": 2})
    two = write(tmp_path / "two.yaml", common | {"batch": 2, "accumulation": 1, "engine": "zero2"})
    assert main(["train", str(one), "--out", str(tmp_path / "plain")]) == 0
    in_two_processes("-m", "tumorchain_agent.cli", "train", two, "--out", tmp_path / "zero")
    for name in ("train/text", "train/norm"):
        expected = scalars(tmp_path / "plain", name)
        assert len(expected) == 5
        assert scalars(tmp_path / "zero", name) == pytest.approx(expected, rel=2e-4)
    difference = (exported(tmp_path / "zero" / "last") - exported(tmp_path / "plain" / "last")).abs()
    assert (
        float(difference.mean()) < 0.01 * RATE
    )  # AdamW makes rounding as large as a step where a gradient is 0


@pytest.mark.slow
def test_zero_2_in_bf16_resumes_where_it_was_interrupted(records: Path, tmp_path: Path) -> None:
    half = {"engine": "zero2", "precision": "bf16", "encoder": tiny.VIT}
    config = write(tmp_path / "config.yaml", tiny.settings(records, stage={"steps": 4}, **half))
    script = tmp_path / "twice.py"
    script.write_text(TWICE, encoding="utf-8")
    in_two_processes(script, config, tmp_path / "out")
    assert (tmp_path / "out" / "checkpoints" / "step-00000004").is_dir()
    assert torch.equal(exported(tmp_path / "out" / "last"), exported(tmp_path / "uninterrupted"))
