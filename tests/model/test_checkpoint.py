from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.conftest import HIDDEN, Tiny
from tumorchain_agent.errors import CheckpointError, OutputError
from tumorchain_agent.model import checkpoint
from tumorchain_agent.model.checkpoint import (
    load_llm,
    load_tokenizer,
    load_vision,
    read_info,
    save_checkpoint,
    served_name,
    verify,
)
from tumorchain_agent.model.config import VisionConfig
from tumorchain_agent.tools.organs import organ_table_hash


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_checkpoint_comes_back_as_it_was(tiny: Tiny, tiny_folder: Path) -> None:
    tower, info = load_vision(tiny_folder)
    llm = load_llm(tiny_folder)
    assert not tower.training
    assert not llm.training
    for mine, back in ((tiny.tower, tower), (tiny.llm, llm)):
        expected = mine.state_dict()
        assert list(expected) == list(back.state_dict())
        assert all(torch.equal(expected[key], value) for key, value in back.state_dict().items())
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    assert load_tokenizer(tiny_folder).chat_template == tiny.tokenizer.chat_template
    assert (info.size, info.hidden_size, info.alpha, info.history) == ("nano", HIDDEN, 1.0, "append")
    assert info.preprocessing == {"window_hu": 400.0, "shape": [32, 256, 256]}
    assert info.organ_table_hash == organ_table_hash()
    assert "not a medical device" in info.disclaimer
    assert info == read_info(tiny_folder) == verify(tiny_folder)


def test_the_root_is_a_plain_qwen2_folder(tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["model_type"] == "qwen2"
    assert {path.name for path in tiny_folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "tumorchain.json",
        "vision",
    }
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tiny_folder.rglob("*"))


def test_the_id_follows_the_weights_and_nothing_else(tiny: Tiny, tiny_folder: Path, folder: Path) -> None:
    first = read_info(tiny_folder)
    again = save_checkpoint(
        folder,
        tiny.llm,
        tiny.tower,
        tiny.tokenizer,
        size="nano",
        preprocessing={},
        provenance={"note": "other"},
    )
    assert again.checkpoint_id == first.checkpoint_id
    assert served_name(first) == f"tumorchain-nano-{first.checkpoint_id}"
    tower = tiny.tower.config.build()
    other = save_checkpoint(
        folder, tiny.llm, tower, tiny.tokenizer, size="nano", preprocessing={}, provenance={}
    )
    assert other.checkpoint_id != first.checkpoint_id


def test_weights_can_be_written_in_half_precision(tiny: Tiny, tmp_path: Path) -> None:
    save_checkpoint(
        tmp_path / "half",
        tiny.llm,
        tiny.tower,
        tiny.tokenizer,
        size="nano",
        preprocessing={},
        provenance={},
        weights_dtype=torch.float16,
    )
    llm, (tower, _) = load_llm(tmp_path / "half"), load_vision(tmp_path / "half")
    assert llm.dtype == tower.cls.weight.dtype == torch.float32
    assert torch.equal(llm.model.norm.weight, tiny.llm.model.norm.weight.half().float())
    assert torch.equal(tower.cls.weight, tiny.tower.cls.weight.half().float())
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    assert tiny.tower.cls.weight.dtype == torch.float32
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "float16"


def test_saving_again_replaces_the_folder_whole(tiny: Tiny, folder: Path) -> None:
    (folder / "leftover.txt").write_text("old")
    tiny.save(folder)
    assert not (folder / "leftover.txt").exists()
    assert os.listdir(folder.parent) == [folder.name]


def test_a_failed_save_leaves_the_old_checkpoint_and_no_draft(tiny: Tiny, folder: Path) -> None:
    before = read_info(folder)
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(
            folder,
            tiny.llm,
            tiny.tower,
            tiny.tokenizer,
            size="nano",
            preprocessing={"window_hu": float("nan")},
            provenance={},
        )
    assert verify(folder) == before
    assert os.listdir(folder.parent) == [folder.name]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds something else"):
        tiny.save(tmp_path)
    with pytest.raises(OutputError, match="holds something else"):
        tiny.save(tmp_path / "thesis.txt")
    with pytest.raises(OutputError, match="can't be written"):
        tiny.save(tmp_path / "thesis.txt" / "checkpoint")
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_tower_and_llm_of_different_widths_are_not_saved(tiny: Tiny, tmp_path: Path) -> None:
    tower = VisionConfig(encoder=tiny.tower.config.encoder, hidden_size=HIDDEN + 1).build()
    with pytest.raises(CheckpointError, match=f"{HIDDEN + 1} channels and the LLM takes {HIDDEN}"):
        save_checkpoint(
            tmp_path / "new", tiny.llm, tower, tiny.tokenizer, size="nano", preprocessing={}, provenance={}
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["tumorchain.json", "config.json", "tokenizer.json", "model.safetensors", "vision/model.safetensors"],
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_info(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "checkpoint format 99, this version reads 1"),
        ({"organ_table_hash": "0" * 64}, "another organ table"),
        ({"checkpoint_id": "0" * 16}, "damaged"),
        ({"size": "900b"}, "damaged"),
        ({"surprise": 1}, "damaged"),
    ],
)
def test_a_checkpoint_that_does_not_match_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    _edit(folder / "tumorchain.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read_info(folder)


def test_broken_json_is_refused(folder: Path) -> None:
    (folder / "tumorchain.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tumorchain\.json can't be read"):
        read_info(folder)


def test_vision_and_llm_of_different_widths_are_refused(folder: Path) -> None:
    _edit(folder / "vision/config.json", hidden_size=HIDDEN * 2)
    with pytest.raises(CheckpointError, match="channels and the LLM takes"):
        read_info(folder)


def test_a_truncated_weights_file_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"is not \d+ bytes"):
        read_info(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "vision/model.safetensors"])
def test_weights_changed_in_place_are_refused(folder: Path, name: str) -> None:
    state = {key: value + 1 for key, value in load_file(folder / name).items()}
    save_file(state, folder / name, metadata={"format": "pt"})
    load = load_llm if name == "model.safetensors" else load_vision
    with pytest.raises(CheckpointError, match="not what the checkpoint was saved with"):
        load(folder)
    with pytest.raises(CheckpointError, match="not what the checkpoint was saved with"):
        verify(folder)


def _rewrite(folder: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    """Exchange a weights file and make the records agree with it."""
    save_file(state, folder / name, metadata={"format": "pt"})
    info = read_json(folder)
    info["weights"][name] = checkpoint._describe(folder / name).model_dump()
    weights = {key: checkpoint.WeightsFile(**value) for key, value in info["weights"].items()}
    _edit(
        folder / "tumorchain.json", weights=info["weights"], checkpoint_id=checkpoint._checkpoint_id(weights)
    )


def read_json(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "tumorchain.json").read_text())
    return data


@pytest.mark.parametrize("change", ["shape", "missing", "unexpected"])
def test_weights_are_loaded_strictly(folder: Path, change: str) -> None:
    for name, load in (("model.safetensors", load_llm), ("vision/model.safetensors", load_vision)):
        state = load_file(folder / name)
        key = next(key for key in state if key.endswith("norm.weight"))
        if change == "shape":
            state[key] = torch.ones(len(state[key]) + 1)
        elif change == "missing":
            del state[key]
        else:
            state["surprise.weight"] = torch.ones(1)
        _rewrite(folder, name, state)
        with pytest.raises(CheckpointError, match="fit"):
            load(folder)


def test_a_checkpoint_without_chat_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        load_tokenizer(folder)


def test_a_folder_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no TumorChain checkpoint"):
        read_info(tmp_path / "nowhere")


def test_a_torchvision_that_was_built_for_another_torch_is_named_with_the_remedy(
    tmp_path: Path, tiny_folder: Path
) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision.py").write_text(broken, encoding="utf-8")
    described = tmp_path / "torchvision-0.28.0.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n", encoding="utf-8")
    code = f"from tumorchain_agent.model.checkpoint import load_llm; load_llm({str(tiny_folder)!r})"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    error = found.stderr.splitlines()[-1]
    assert "CheckpointError: " in error
    assert "operator torchvision::nms does not exist" in error
    assert "pip uninstall torchvision" in error
