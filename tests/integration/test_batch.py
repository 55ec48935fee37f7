"""``batch`` on a real Ray of this machine, with a real checkpoint of random weights."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.test_ask import HU, LABELS, save_random_checkpoint, write
from tumorchain_agent.batch_rows import BatchFolder, Outcome
from tumorchain_agent.batch_run import outcomes
from tumorchain_agent.batch_table import read_table
from tumorchain_agent.batch_worker import Reasoning
from tumorchain_agent.settings import Settings

pytest.importorskip("ray", reason="Ray, of the extra ray, is not installed")
pytestmark = pytest.mark.slow

TABLE = """id,scan,question,masks
liver,torso.nii.gz,Is there a lesion in the liver?,labels.nii.gz
spleen,torso.nii.gz,Is there a lesion in the spleen?,labels.nii.gz
gone,missing.nii.gz,Is there a lesion in the liver?,labels.nii.gz
wrong,torso.nii.gz,Is there a lesion in the liver?,torso.nii.gz
"""


@dataclass(frozen=True)
class Place:
    folder: Path

    def batch(self, table: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "table.csv").write_text(table)
        command = [
            "batch",
            "table.csv",
            "--out",
            "out",
            "--model",
            "model",
            "--max-rounds",
            "2",
            "--workers",
            "2",
        ]
        temporary = self.folder / "a temporary folder with a path too long for sockets"
        temporary.mkdir(exist_ok=True)
        names = {"TUMORCHAIN_CACHE_DIR": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        names["TMPDIR"] = str(temporary)
        return subprocess.run(
            [sys.executable, "-m", "tumorchain_agent.cli", *command],
            cwd=self.folder, env=os.environ | names, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def outcomes(self) -> dict[str, Outcome]:
        rows = read_table(self.folder / "table.csv")
        return {found.row.id: found for found in BatchFolder(self.folder / "out").outcomes(rows)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("batch")
    write(folder / "torso.nii.gz", HU.astype(np.int16))
    write(folder / "labels.nii.gz", LABELS)
    save_random_checkpoint(folder / "model")
    return Place(folder)


@pytest.fixture(scope="module")
def done(place: Place) -> subprocess.CompletedProcess[str]:
    return place.batch(TABLE)


def test_one_bad_row_costs_one_row(place: Place, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1, done.stderr
    assert "2 of 4 rows answered" in done.stdout
    found = place.outcomes()
    assert {name: each.status for name, each in found.items()} == {
        "liver": "answered", "spleen": "answered", "gone": "failed", "wrong": "failed",
    }  # fmt: skip
    assert (found["gone"].error_code, found["wrong"].error_code) == ("ScanError", "LabelMapError")
    answer = found["spleen"].answer
    assert answer is not None
    assert "spleen" in answer.organs_examined
    assert "gone: ScanError" in done.stderr
    assert {path.name for path in (place.folder / "out").iterdir()} == {
        "answers.parquet", "batch.json", "index.html", "rows", ".lock",
    }  # fmt: skip


def test_the_same_command_again_asks_only_what_has_no_answer(
    place: Place, done: subprocess.CompletedProcess[str]
) -> None:
    rows = place.folder / "out" / "rows"
    before = (rows / "liver.json").stat().st_mtime_ns
    mended = TABLE.replace("missing.nii.gz", "torso.nii.gz").replace(",torso.nii.gz\n", ",labels.nii.gz\n")
    again = place.batch(mended)
    assert again.returncode == 0, again.stderr
    assert "4 of 4 rows answered (2 from an earlier run)" in again.stdout
    assert (rows / "liver.json").stat().st_mtime_ns == before
    third = place.batch(mended)
    assert "4 of 4 rows answered (4 from an earlier run)" in third.stdout


def ray_processes() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if each.is_running()]


def test_a_killed_worker_costs_no_row_and_nobody_else_can_reach_ray(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = Settings(cache_dir=tmp_path / "cache", model=place.folder / "model")
    path = place.folder / "killed.csv"
    path.write_text(TABLE)
    (row, *_) = read_table(path)
    rows = [
        (row.model_copy(update={"id": f"r{n}", "question": f"{row.question} {n}"}), "k") for n in range(5)
    ]
    found: list[Outcome] = []
    listening: set[Any] = set()
    for outcome in outcomes(rows, settings, Reasoning(max_rounds=2), workers=1):
        if not found:
            ours = ray_processes()
            listening = {
                c.laddr.ip
                for process in ours
                for c in process.net_connections(kind="inet")
                if c.status == psutil.CONN_LISTEN
            }
            (worker,) = [each for each in ours if "RowAsker" in " ".join(each.cmdline())]
            worker.kill()
        found.append(outcome)
    assert sorted(each.row.id for each in found) == [f"r{n}" for n in range(5)]
    assert {each.status for each in found} == {"answered"}
    assert max(each.attempts for each in found) <= 2
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert [each.name() for each in ray_processes() if "ray" in each.name()] == []
