"""``tumorchain-agent import-weights`` as a user runs it, with the encoder in its published size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tumorchain_agent.cli import main
from tumorchain_agent.records import DISCLAIMER

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLM, and no encoder yet."""
    from tests.model.published import publish, qwen_vl

    folder = tmp_path_factory.mktemp("published")
    publish(qwen_vl(), folder / "qwen")
    return folder


@pytest.fixture(scope="module")
def whole(sources: Path) -> Path:
    """The same with an encoder of 350 MB."""
    from tests.model.published import publish_m3d
    from tumorchain_agent.model.config import VitConfig

    publish_m3d(sources / "vit.bin", VitConfig(), "vision_encoder.")
    return sources


def words(sources: Path, out: Path, *more: str) -> list[str]:
    paths = ["--llm", str(sources / "qwen"), "--vision", str(sources / "vit.bin"), "--out", str(out)]
    return ["import-weights", *paths, *more]


@pytest.mark.slow
def test_it_makes_a_checkpoint_and_says_that_it_is_to_be_trained(
    whole: Path, tmp_path: Path, capsys: Capture
) -> None:
    from tumorchain_agent.model.checkpoint import verify

    out = tmp_path / "start"
    assert main(words(whole, out, "--size", "custom", "--seed", "7")) == 0
    shown = capsys.readouterr()
    info = verify(out)
    assert info.provenance["seed"] == 7
    for part in (
        f"checkpoint {info.checkpoint_id} in {out}",
        "Qwen2.5-VL custom, 27 tensors, float32",
        "M3D's ViT, 138 tensors, float32; 2 others left out",
        "projector and Cls are untrained: train before use",
        DISCLAIMER,
    ):
        assert part in shown.out
    assert "LLM shard" in shown.err
    assert main(words(whole, out, "--size", "custom")) == 2
    assert "exists already and is not replaced: name a new folder" in capsys.readouterr().err


def test_another_size_than_3b_and_7b_must_be_asked_for(
    sources: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(words(sources, tmp_path / "out")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "num_hidden_layers is 2, not" in line
    assert "--size custom" in line
    assert not (tmp_path / "out").exists()


def test_verbose_lists_every_key_that_does_not_fit(tmp_path: Path, sources: Path, capsys: Capture) -> None:
    import shutil

    from tests.model.published import rewrite

    shutil.copytree(sources / "qwen", tmp_path / "qwen")
    rewrite(tmp_path / "qwen", lambda s: {k: v for k, v in s.items() if ".layers." not in k})
    assert main(words(tmp_path, tmp_path / "out", "--size", "custom")) == 2
    brief = capsys.readouterr().err
    assert brief.count("model.layers.") == 10
    assert "and 14 more, which --verbose lists" in brief
    assert main(words(tmp_path, tmp_path / "out", "--size", "custom", "--verbose")) == 2
    full = capsys.readouterr().err
    assert full.count("missing key: model.layers.") == 25
    assert "missing key: model.layers.1.self_attn.v_proj.weight" in full.splitlines()


STALLED_IMPORT = """
import sys, time
from tumorchain_agent.cli import main
from tumorchain_agent.model import import_weights
def stall(*args):
    print("stalled", flush=True)
    time.sleep(60)
import_weights.write_qwen = stall
sys.exit(main(sys.argv[1:]))
"""


def heed_ctrl_c() -> None:
    """A test run that a shell put in the background inherits an ignored SIGINT, and so would the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_interrupted_it_writes_nothing(whole: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", STALLED_IMPORT, *words(whole, tmp_path / "out", "--size", "custom")]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, preexec_fn=heed_ctrl_c, **options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stalled\n"
        assert os.listdir(tmp_path) != []
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert os.listdir(tmp_path) == []
    assert "nothing was written: run the same command again" in err.splitlines()[-1]


@pytest.mark.slow
def test_ask_refuses_an_untrained_checkpoint_and_marks_its_answer_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import numpy as np

    from tests.model.published import publish, publish_m3d, qwen_vl
    from tests.test_ask import HU, LABELS, QUESTION, write
    from tumorchain_agent.model.config import VitConfig
    from tumorchain_agent.model.import_weights import import_weights

    publish(qwen_vl(max_position_embeddings=8192), tmp_path / "qwen")
    encoder = VitConfig(width=16, mlp_width=32, layers=1, heads=2)
    publish_m3d(tmp_path / "vit.bin", encoder)
    import_weights(tmp_path / "qwen", tmp_path / "vit.bin", tmp_path / "m", size="custom", encoder=encoder)
    write(tmp_path / "ct.nii.gz", HU.astype(np.int16))
    write(tmp_path / "labels.nii.gz", LABELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    ask = ["ask", "ct.nii.gz", QUESTION, "--model", "m", "--masks", "labels.nii.gz", "--max-rounds", "1"]
    assert main([*ask, "--json"]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "projector and cls hold random weights): train it first" in refused.err.splitlines()[-1]
    monkeypatch.setenv("TUMORCHAIN_ALLOW_UNTRAINED", "1")
    assert main([*ask, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "untrained_checkpoint" in {notice["code"] for notice in answer["notices"]}
