"""What training writes is the checkpoint folder that inference loads, and it tells what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.model.published import publish, publish_m3d, qwen_vl
from tests.training.hco import tiny
from tumorchain_agent.model.checkpoint import load_llm, load_tokenizer, load_vision, read_info
from tumorchain_agent.model.config import VitConfig
from tumorchain_agent.model.import_weights import import_weights
from tumorchain_agent.training.hco.batches import to_device
from tumorchain_agent.training.hco.build import build
from tumorchain_agent.training.hco.export import PARTS, untrained_parts
from tumorchain_agent.training.hco.joint import JointModel
from tumorchain_agent.training.hco.load_config import load_config
from tumorchain_agent.training.hco.progress import Reporter
from tumorchain_agent.training.hco.resume import Checkpoints
from tumorchain_agent.training.hco.trainer import Run, _StageRun, _Stop, train


def test_the_exported_folder_is_the_model_that_was_trained(records: Path, tmp_path: Path) -> None:
    run = build(tiny.config(records, stage={"steps": 2}), tmp_path / "out")
    place = train(run)
    folder = tmp_path / "out" / "best"
    tower, info = load_vision(folder)
    llm, tokenizer = load_llm(folder), load_tokenizer(folder)
    assert info.provenance["steps"] == place.total_steps == 2
    expected = run.config.model_dump(mode="json")
    expected["data"] |= {"records": records.name, "cache": "cache"}
    assert info.provenance["config"] == expected
    assert "begun_from" not in info.provenance
    assert tokenizer.get_vocab() == run.tokenizer.get_vocab()
    stage = _StageRun(
        run, place.model_copy(update={"stage": 0, "step": 0}), Checkpoints(run.out, 2), *_quiet(run)
    )
    stage.begin(None)
    batch, _ = stage.feeder.batches(next(stage.loaded))[0]
    run.model.eval()
    again = JointModel(tower, llm).eval()
    with torch.no_grad():
        ours, theirs = run.model(to_device(batch, run.engine.device)), again(batch)
    assert torch.equal(ours.text, theirs.text)
    assert torch.equal(ours.cls, theirs.cls)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of published weights with a random projector and Cls."""
    folder = tmp_path_factory.mktemp("published")
    encoder = VitConfig.model_validate(tiny.VIT)
    qwen = publish(qwen_vl(max_position_embeddings=8192), folder / "qwen")
    publish_m3d(folder / "vit.bin", encoder)
    assert import_weights(
        qwen, folder / "vit.bin", folder / "start", size="custom", encoder=encoder
    ).info.untrained
    return folder / "start"


@pytest.mark.parametrize(("trained", "left"), [(("projector", "cls", "llm"), ()), (("projector",), ("cls",))])
def test_a_trained_checkpoint_names_as_untrained_only_what_no_stage_has_trained(
    trained: tuple[str, ...], left: tuple[str, ...], records: Path, imported: Path, tmp_path: Path
) -> None:
    rates = dict.fromkeys(trained, 1e-3)
    settings = tiny.settings(records, stage={"steps": 1, "rates": rates}, validation_units=1)
    settings["model"] = {"size": "custom", "init": str(imported)}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    train(build(load_config(path), tmp_path / "out"))
    for name in ("best", "last"):
        info = read_info(tmp_path / "out" / name)
        assert info.untrained == left
        begun: Any = info.provenance["begun_from"]
        start = read_info(imported)
        assert begun == {"checkpoint_id": start.checkpoint_id, "provenance": start.provenance}
        assert str(tmp_path) not in info.model_dump_json(), "a checkpoint is handed on, folders are not"
    scratch = tiny.config(records, stage={"rates": rates})
    assert untrained_parts(scratch) == [part for part in PARTS if part not in trained]


def _quiet(run: Run) -> tuple[Any, Any]:
    return Reporter(run.out, 1, active=False), _Stop()
