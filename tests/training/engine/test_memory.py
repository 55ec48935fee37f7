"""Memory doesn't grow with the number of reports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.training.engine.making import config_for, made_up, write_cases
from tests.training.engine.scripted import Experts
from tests.training.engine.server import ModelServer, serving

REPORTS = int(os.environ.get("TUMORCHAIN_ENGINE_REPORTS") or 260)
"""10,000 are for a figure to report: minutes."""
FEW = 60
_CHILD = """
import sys
from tumorchain_agent.cli import main
code = main(["engine", "run", "engine.yaml", "--out", sys.argv[1]])
(line,) = [each for each in open("/proc/self/status") if each.startswith("VmHWM")]
print("peak", line.split()[1])
sys.exit(code)
"""
"""``ru_maxrss`` of a child begins with its parent's memory, which says nothing of this run."""


def peak_mb(folder: Path, count: int) -> float:
    """Most memory of a run over so many reports."""
    truths = [made_up(seed) for seed in range(20_000, 20_000 + count)]
    cases = write_cases(folder / "cases.jsonl", truths)
    with serving(ModelServer(Experts.of(truths))) as server:
        config = config_for(cases, server.url).model_dump(mode="json", exclude_none=True)
        (folder / "engine.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-c", _CHILD, f"out-{count}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert f"{count:,} cases" in done.stdout
    return float(done.stdout.split()[-1]) / 1024


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_reports_take_no_more_memory_than_few(tmp_path: Path) -> None:
    few, many = peak_mb(tmp_path, FEW), peak_mb(tmp_path, REPORTS)
    print(f"{FEW} reports: {few:.0f} MB; {REPORTS:,} reports: {many:.0f} MB")
    assert many < few + 12 + 0.002 * REPORTS
