"""A large CT through the whole agent: how much memory all of its processes hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import big_scan

POLL_S = 0.1


def resident_gb(pid: int) -> float:
    """Memory of a process and its descendants; what they share counts once (proportional set size)."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:
        return 0.0
    return total / 1e9


@pytest.mark.slow
def test_a_512_by_512_by_600_ct_is_answered_under_4_gb(tmp_path: Path) -> None:
    big_scan(tmp_path / "big.nii.gz")
    words = ["ask", str(tmp_path / "big.nii.gz"), "Is there a lesion in the liver?", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tumorchain_agent.cli", *words],
        env=os.environ | {"TUMORCHAIN_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL,
    )
    peak_gb = 0.0
    while process.poll() is None:
        peak_gb = max(peak_gb, resident_gb(process.pid))
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
    print(f"peak {peak_gb:.2f} GB")
    assert process.returncode == 0
    assert 0.5 < peak_gb < 4.0
