"""DeepSpeed ZeRO-2 in two processes on a CPU against one process without it, through the command line."""

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
from tumorchain_agent.model.checkpoint import load_llm, load_vision

ROOT = Path(__file__).resolve().parents[3]
RATE = 1e-3


def train(config: Path, out: Path, processes: int) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "tumorchain_agent.cli", "train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, str(config), "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def write(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def scalars(out: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def exported(out: Path) -> torch.Tensor:
    tower, _ = load_vision(out / "last")
    llm = load_llm(out / "last")
    return torch.cat([p.detach().flatten() for p in [*tower.parameters(), *llm.parameters()]])


@pytest.mark.slow
def test_two_processes_of_zero_2_train_as_one_process_without_it(tmp_path: Path) -> None:
    records = tiny.cohort(tmp_path / "cohort")
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
    plain = train(one, tmp_path / "plain", 1)
    assert plain.returncode == 0, plain.stderr[-3000:]
    zero = train(two, tmp_path / "zero", 2)
    assert zero.returncode == 0, zero.stderr[-3000:]
    for name in ("train/text", "train/norm"):
        expected = scalars(tmp_path / "plain", name)
        assert len(expected) == 5
        assert scalars(tmp_path / "zero", name) == pytest.approx(expected, rel=2e-4)
    difference = (exported(tmp_path / "zero") - exported(tmp_path / "plain")).abs()
    assert (
        float(difference.mean()) < 0.01 * RATE
    )  # AdamW makes rounding as large as a step where a gradient is 0


@pytest.mark.slow
def test_zero_2_in_bf16_resumes_where_it_was_interrupted(tmp_path: Path) -> None:
    records = tiny.cohort(tmp_path / "cohort")
    half = {"engine": "zero2", "precision": "bf16", "encoder": tiny.VIT}
    common = tiny.settings(records, stage={"steps": 4}, **half)
    config = write(tmp_path / "config.yaml", common)
    done = train(config, tmp_path / "out", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    uninterrupted = exported(tmp_path / "out")
    newest = tmp_path / "out" / "checkpoints" / "step-00000004"
    newest.rename(tmp_path / "taken-away")
    (tmp_path / "out" / "last").rename(tmp_path / "taken-away-too")
    again = train(config, tmp_path / "out", 2)
    assert again.returncode == 0, again.stderr[-3000:]
    assert newest.is_dir()
    assert torch.equal(exported(tmp_path / "out"), uninterrupted)
