"""``ask`` as a process, with real parts: server, graph, checkpoint (random weights), phantom-like scan."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.conftest import Array, torso, torso_grid
from tumorchain_agent.graph.trace import read_trace_record
from tumorchain_agent.records import DISCLAIMER, Answer

AFFINE, SHAPE = torso_grid(6.0)
HU, LABELS = torso(AFFINE, SHAPE)
QUESTION = "Is there a lesion in the liver or in the pancreas?"

pytestmark = pytest.mark.slow


def save_random_checkpoint(folder: Path) -> None:
    """A real checkpoint of the smallest size that takes the model volume; what it says is noise."""
    import torch

    from tests.model.conftest import HIDDEN, TEXTS
    from tumorchain_agent.model.checkpoint import save_checkpoint
    from tumorchain_agent.model.config import VisionConfig, VitConfig
    from tumorchain_agent.model.llm import build_llm, llm_config
    from tumorchain_agent.model.tokenizer import build_nano_tokenizer
    from tumorchain_agent.tools.preprocess import Preprocessing

    torch.manual_seed(0)
    tokenizer = build_nano_tokenizer(TEXTS)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    llm: Any = build_llm(llm_config("nano", tokenizer, **sizes, **heads, initializer_range=0.3))
    encoder = VitConfig(image_size=(32, 256, 256), width=16, mlp_width=32, layers=1, heads=2)
    tower = VisionConfig(encoder=encoder, hidden_size=HIDDEN).build()
    save_checkpoint(
        folder,
        llm,
        tower,
        tokenizer,
        size="nano",
        preprocessing=Preprocessing().as_dict(),
        provenance={},
    )


def write(path: Path, values: Array) -> Path:
    module: Any = nibabel
    path.write_bytes(gzip.compress(module.Nifti1Image(values, AFFINE).to_bytes(), 1))
    return path


@dataclass(frozen=True)
class Place:
    """A folder with a scan, its label map and a checkpoint, and a cache of its own."""

    folder: Path

    @property
    def command(self) -> list[str]:
        options = ["--masks", "labels.nii.gz", "--model", "model", "--max-rounds", "2"]
        return [sys.executable, "-m", "tumorchain_agent.cli", "ask", "torso.nii.gz", QUESTION, *options]

    @property
    def environment(self) -> dict[str, str]:
        names = {"TUMORCHAIN_CACHE_DIR": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        return os.environ | names

    def ask(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *options],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def work_done(self) -> list[str]:
        """What was computed so far, by the cache's own log."""
        from tumorchain_agent.mcp_server.store import read_work_log

        return [str(entry["work"]) for entry in read_work_log(self.folder / "cache")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("ask")
    write(folder / "torso.nii.gz", HU.astype(np.int16))
    write(folder / "labels.nii.gz", LABELS)
    save_random_checkpoint(folder / "model")
    return Place(folder)


@pytest.fixture(scope="module")
def asked(place: Place) -> subprocess.CompletedProcess[str]:
    """The first run."""
    return place.ask("--out", "report", "--json")


def test_json_and_nothing_else_is_on_stdout(place: Place, asked: subprocess.CompletedProcess[str]) -> None:
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == (place.folder / "report" / "answer.json").read_text()
    answer = Answer.model_validate_json(asked.stdout)
    assert answer.organs_examined == ("liver",)
    assert "pancreas" in answer.organs_absent
    for part in (
        "Round 1: first look",
        "Round 2: liver",
        "pancreas: not in the scan",
        "Report: report/",
        DISCLAIMER,
    ):
        assert part in asked.stderr


def test_folder_holds_the_label_map_the_masks_and_a_valid_trace(
    place: Place, asked: subprocess.CompletedProcess[str]
) -> None:
    report = place.folder / "report"
    label_map: Any = nibabel.load(report / "masks" / "label_map.nii.gz")
    liver: Any = nibabel.load(report / "masks" / "liver.nii.gz")
    assert np.array_equal(np.asarray(label_map.dataobj), LABELS)
    assert np.array_equal(np.asarray(liver.dataobj) > 0, LABELS == 5)
    assert np.allclose(liver.affine, AFFINE)
    lines = (report / "trace.jsonl").read_text().splitlines()
    records = [read_trace_record(line) for line in lines]
    assert [records[0].type, records[-1].type] == ["header", "answer"]
    measured = {r["organ"]: r for r in map(json.loads, lines) if r["type"] == "measurement"}
    assert measured["liver"]["volume_ml"] == pytest.approx((LABELS == 5).sum() * 0.216)
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Not found in this scan" in page


def test_same_question_again_gives_the_same_answer_and_computes_nothing(
    place: Place, asked: subprocess.CompletedProcess[str]
) -> None:
    before = place.work_done()
    assert "encode" in before
    again = place.ask("--out", "report", "--json")
    assert again.stdout == asked.stdout
    assert "(from an earlier run)" in again.stderr
    assert place.work_done() == before


def test_without_out_a_folder_of_its_own_is_made_and_named(
    place: Place, asked: subprocess.CompletedProcess[str]
) -> None:
    done = place.ask()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (made,) = (place.folder / "out").iterdir()
    assert made.name.startswith("torso-")
    assert f"Report: out/{made.name}/report.html" in done.stdout
    assert done.stdout.rstrip().endswith(DISCLAIMER)


def heed_ctrl_c() -> None:
    """A test run that a shell put in the background inherits an ignored SIGINT, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_with_130_and_leaves_nothing_half_written(place: Place) -> None:
    with subprocess.Popen(
        [*place.command, "--fresh", "--out", "cut"],
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        assert process.stdout is not None
        assert "torso.nii.gz" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "error: interrupted; the same command goes on where this one stopped\n"
    assert not (place.folder / "cut").exists()
    assert [p.name for p in place.folder.glob(".tumorchain-partial-*")] == []
