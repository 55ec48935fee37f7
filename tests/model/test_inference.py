"""The encoder as it runs in the server, against the same encoder as it was trained, and against MONAI's ViT."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

import pytest
import torch

from tumorchain_agent.model.config import VitConfig
from tumorchain_agent.model.inference import for_inference, has_bfloat16, pick_precision
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig

SMALL = VitConfig(image_size=(16, 64, 64), width=96, mlp_width=192, layers=3, heads=4)
CPU = torch.device("cpu")


def _random(seed: int) -> tuple[Any, torch.Tensor]:
    torch.manual_seed(seed)
    return SMALL.build().eval(), torch.rand(3, 1, *SMALL.image_size)


def test_packed_encoder_gives_the_same_tokens_for_one_scan_and_for_a_batch(seed: int) -> None:
    encoder, volumes = _random(seed)
    with torch.no_grad():
        expected = encoder(volumes)
    fast = for_inference(copy.deepcopy(encoder))
    assert (fast(volumes) - expected).abs().max() < 1e-5
    assert (fast(volumes[1:2]) - expected[1:2]).abs().max() < 1e-5
    assert not fast(volumes).requires_grad


def test_bfloat16_stays_within_its_rounding_and_returns_float32(seed: int) -> None:
    encoder, volumes = _random(seed)
    with torch.no_grad():
        expected = encoder(volumes)
    tokens = for_inference(encoder, torch.bfloat16)(volumes)
    assert tokens.dtype == torch.float32
    assert (tokens - expected).norm() < 0.02 * expected.norm()


def test_vit_runs_in_bfloat16_only_where_the_processor_has_it_and_nano_never() -> None:
    assert pick_precision(NanoEncoderConfig(), CPU) == torch.float32
    assert pick_precision(SMALL, CPU) == (torch.bfloat16 if has_bfloat16(CPU) else torch.float32)
    assert pick_precision(SMALL, CPU, "float32") == torch.float32
    assert pick_precision(NanoEncoderConfig(), CPU, "bfloat16") == torch.bfloat16


def test_nano_encoder_is_left_as_it_is(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = NanoEncoderConfig(width=32, stem=(8, 8, 16), peaks=8, heads=2, global_layers=1).build().eval()
    volume = torch.rand(1, 1, 32, 128, 128)
    with torch.no_grad():
        expected = encoder(volume)
    assert torch.equal(for_inference(encoder)(volume), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_equal_those_of_monai_with_the_same_weights(dtype: torch.dtype, seed: int) -> None:
    pytest.importorskip("monai", reason="MONAI, a peer, is not installed")
    encoder, volumes = _random(seed)
    vit = import_module("monai.networks.nets").ViT
    theirs = vit(
        in_channels=1, img_size=SMALL.image_size, patch_size=SMALL.patch_size, hidden_size=SMALL.width,
        mlp_dim=SMALL.mlp_width, num_layers=SMALL.layers, num_heads=SMALL.heads, proj_type="perceptron",
        classification=True, save_attn=False,
    )  # fmt: skip
    missing = theirs.load_state_dict(encoder.state_dict(), strict=False)
    assert not missing.unexpected_keys
    with torch.no_grad():
        theirs.eval()
        patches = torch.cat([encoder.cls_token.expand(3, -1, -1), theirs.patch_embedding(volumes)], dim=1)
        for block in theirs.blocks:
            patches = block(patches)
        tokens = theirs.norm(patches)[:, 1:]
    ours = for_inference(encoder, dtype)(volumes)
    assert (ours - tokens).abs().max() < (1e-4 if dtype == torch.float32 else 0.2)
