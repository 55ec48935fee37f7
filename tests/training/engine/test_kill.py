"""The engine killed at random points: it ends in the same bytes, and asks for nothing twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.training.engine.making import config_for, made_up, run, write_cases
from tests.training.engine.scripted import Ask, Experts
from tests.training.engine.server import ModelServer, serving

FILES = ("samples.jsonl", "set_aside.jsonl", "statistics.json", "statistics.md", "statistics.svg")
KILLS, IN_FLIGHT = 10, 4


class Killer:
    """Kills the process when it has asked so often. With SIGKILL it waits until all that was answered is stored.

    Requests that come while it kills are not answered, so that nothing is paid for that can't be kept.
    """

    def __init__(self, server: ModelServer, store: Path, at: int, how: signal.Signals) -> None:
        self.server, self.store, self.at, self.how = server, store, at, how
        self.process: subprocess.Popen[bytes] | None = None
        self.started, self.asked, self.lock = threading.Event(), 0, threading.Lock()
        self.paid = len(server.answered)

    def __call__(self, ask: Ask, key: str) -> bool:
        self.started.wait(60)
        with self.lock:
            self.asked += 1
            if self.asked < self.at:
                self.paid += 1
                return True
            if self.asked == self.at:
                self._kill()
        return self.how == signal.SIGTERM

    def _kill(self) -> None:
        assert self.process is not None
        if self.how == signal.SIGKILL:
            with closing(sqlite3.connect(self.store, timeout=30)) as store:
                while store.execute("SELECT count(*) FROM calls").fetchone()[0] < self.paid:
                    threading.Event().wait(0.005)
        os.kill(self.process.pid, self.how)


@pytest.mark.slow
def test_a_run_killed_at_ten_random_points_ends_in_the_same_bytes_and_repeats_no_call(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    truths = [made_up(seed) for seed in range(500, 530)]
    cases = write_cases(tmp_path / "cases.jsonl", truths)
    with serving(ModelServer(Experts.of(truths))) as server:
        run(config_for(cases, server.url, concurrency=IN_FLIGHT), tmp_path / "whole")
        total = server.asked
    with serving(ModelServer(Experts.of(truths))) as server:
        config = config_for(cases, server.url, concurrency=IN_FLIGHT)
        settings = config.model_dump(mode="json", exclude_none=True)
        (tmp_path / "engine.yaml").write_text(yaml.safe_dump(settings))
        for left in range(KILLS, 0, -1):
            how = signal.SIGKILL if left % 2 else signal.SIGTERM
            room = total - len(server.answered) - left * (IN_FLIGHT + 1)
            at = int(rng.integers(1, 1 + max(1, min(room, 2 * room // left))))
            print(f"{how.name} after {len(server.answered)} + {at} of {total} calls")
            server.gate = killer = Killer(server, tmp_path / "out/engine.sqlite", at, how)
            code = engine(tmp_path, killer)
            assert code == (-9 if how == signal.SIGKILL else 130)
            assert not (tmp_path / "out/samples.jsonl").exists()
        server.gate = None
        assert engine(tmp_path, None) == 0
    assert server.repeated == 0
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def engine(folder: Path, killer: Killer | None) -> int:
    command = [sys.executable, "-m", "tumorchain_agent.cli", "engine", "run", "engine.yaml", "--out", "out"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if killer is not None:
        killer.process = process
        killer.started.set()
    return process.wait(120)
