from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.model.oracle import error, fill, ramp
from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.model.config import VisionConfig, VitConfig
from tumorchain_agent.model.encoder import Vit
from tumorchain_agent.model.m3d import load_m3d
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig

SMALL = VitConfig(image_size=(8, 32, 32), width=48, mlp_width=96, layers=2, heads=4)


def _check_oracle(config: VitConfig, expected: dict[str, Any]) -> None:
    vit = config.build().double().eval()
    with torch.no_grad():
        fill(vit)
        out = vit.with_cls(ramp((1, 1, *config.image_size)))
    assert list(out.shape) == expected["vit_out_shape"]
    assert error(out[0, 0, :8], expected["cls_first8"]) < 1e-5
    assert error(out[0, 1, :8], expected["token1_first8"]) < 1e-5
    assert error(out[0, -1, :8], expected["last_token_first8"]) < 1e-5
    assert error(out.mean(), expected["mean"]) < 1e-5
    assert error(out.std(), expected["std"]) < 1e-5
    assert error(out.abs().sum() / expected["abs_sum"], 1.0) < 1e-8


def test_small_vit_equals_the_m3d_oracle(shared: Path) -> None:
    oracle = json.loads((shared / "facts/numeric_oracle_m3d_vit.json").read_text())
    _check_oracle(SMALL, oracle["vit_small"])


@pytest.mark.slow
def test_full_vit_equals_the_m3d_oracle(shared: Path) -> None:
    oracle = json.loads((shared / "facts/numeric_oracle_m3d_vit.json").read_text())
    _check_oracle(VitConfig(), oracle["vit_m3d_full"])


def test_vit_b_has_exactly_the_state_dict_keys_and_shapes_of_m3d(shared: Path) -> None:
    expected = json.loads((shared / "facts/m3d_vit_state_dict_keys.json").read_text())
    with torch.device("meta"):
        state = VitConfig().build().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected


def test_vit_tokens_come_without_cls_and_in_depth_height_width_order() -> None:
    vit = SMALL.build().eval()
    assert torch.equal(
        vit(ramp((2, 1, 8, 32, 32)).float()), vit.with_cls(ramp((2, 1, 8, 32, 32)).float())[:, 1:]
    )
    volume = torch.zeros(1, 1, 8, 32, 32)
    volume[0, 0, 5, 3, 20] = 1
    patches = vit.patch_embedding.patch_embeddings[0](volume)
    d, h, w = 5 // 4, 3 // 16, 20 // 16
    assert patches.nonzero().tolist() == [[0, (d * 2 + h) * 2 + w, ((5 % 4) * 16 + 3) * 16 + 20 % 16]]


@pytest.mark.parametrize("prefix", ["", "vision_encoder.", "model.vision_tower.vision_tower."])
def test_m3d_weights_load_from_each_of_their_files(tmp_path: Path, prefix: str) -> None:
    source = SMALL.build()
    others = {} if not prefix else {"logit_scale": torch.ones(1)}
    torch.save(
        {**{prefix + key: value for key, value in source.state_dict().items()}, **others}, tmp_path / "w.bin"
    )
    target = SMALL.build()
    load_m3d(target, tmp_path / "w.bin")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_m3d_weights_of_another_size_or_no_weights_are_refused(tmp_path: Path) -> None:
    other = Vit(SMALL.model_copy(update={"layers": 1}))
    torch.save(other.state_dict(), tmp_path / "w.bin")
    (tmp_path / "text.bin").write_text("not weights")
    with pytest.raises(CheckpointError, match="doesn't fit the 2-layer ViT"):
        load_m3d(SMALL.build(), tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match=r"pretrained_ViT\.bin"):
        load_m3d(SMALL.build(), tmp_path / "text.bin")
    with pytest.raises(CheckpointError, match=r"pretrained_ViT\.bin"):
        load_m3d(SMALL.build(), tmp_path / "missing.bin")


def test_encoder_configs_are_read_back_by_their_kind() -> None:
    for encoder in (SMALL, NanoEncoderConfig(width=64)):
        config = VisionConfig(encoder=encoder, hidden_size=8)
        assert VisionConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "change", [{"patch_size": (3, 16, 16)}, {"heads": 7}, {"kind": "resnet"}, {"depth": 2}]
)
def test_an_impossible_vit_config_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VitConfig.model_validate({**SMALL.model_dump(), **change})


def test_tower_projects_and_classifies_whatever_the_leading_axes_are() -> None:
    tower = VisionConfig(encoder=SMALL, hidden_size=24).build().eval()
    tokens = tower.encode(ramp((1, 1, 8, 32, 32)).float())
    assert tokens.shape == (1, 8, 48)
    assert tower.project(tokens).shape == (1, 8, 24)
    assert tower.classify(tokens.mean(1)).shape == (1, 2)
    assert tower.classify(tokens[0, 0]).shape == (2,)
    assert sorted(key.split(".")[0] for key in tower.state_dict()) == sorted(
        ["cls"] * 2 + ["projector"] * 4 + ["encoder"] * len(SMALL.build().state_dict())
    )
