"""ctrl-c as a terminal sends it: to the training and all its workers at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training.hco import tiny
from tumorchain_agent.cli import main

ROOT = Path(__file__).resolve().parents[3]
STEPS = 100
"""So many that the training is still at it when the signal arrives, also on a busy machine."""


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny.settings(records, stage={"steps": STEPS}, save_every=1000)
    settings["data"]["workers"] = 2
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tumorchain_agent.cli", "train", str(config), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        told = []
        for line in process.stderr:
            told.append(line)
            if "step 2 " in line:
                os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130, "".join(told)
    assert "is saved: the same command goes on from there" in told[-1], "".join(told)
    assert told[-1].startswith("error: interrupted after step ")
    assert not any("Traceback" in line for line in told)
    (saved,) = (out / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert 2 <= step < STEPS
    assert main(["train", str(config), "--out", str(out)]) == 0
    going_on = capsys.readouterr().err
    assert f"step {step + 1} " in going_on
    assert "step 2 " not in going_on
    assert f"trained {STEPS} steps" in going_on
