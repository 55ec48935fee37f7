"""Encoder forward, vit-b: against MONAI's ViT with the same weights, in float32 and in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from bench import Row, Table, in_turns, main, skipped

from tumorchain_agent.model.config import VitConfig
from tumorchain_agent.model.inference import for_inference, has_bfloat16

TITLE = "Encoder forward, vit-b, one scan"


def peer(config: VitConfig, weights: dict[str, torch.Tensor]) -> Any:
    """MONAI's ViT; its cross-attention norms, which it makes and doesn't use, are all that the weights lack."""
    vit = import_module("monai.networks.nets").ViT(
        in_channels=1, img_size=config.image_size, patch_size=config.patch_size, hidden_size=config.width,
        mlp_dim=config.mlp_width, num_layers=config.layers, num_heads=config.heads, proj_type="perceptron",
        classification=True,
    )  # fmt: skip
    vit.load_state_dict(weights, strict=False)
    return vit.eval()


def tables() -> Iterator[Table]:
    if find_spec("monai") is None:
        yield skipped(TITLE, "MONAI is not installed")
        return
    torch.manual_seed(0)
    config = VitConfig()
    weights = config.build().state_dict()
    theirs = peer(config, weights)
    fast = {name: built(config, weights, dtype) for name, dtype in _precisions().items()}
    volume = torch.rand(1, 1, *config.image_size)
    with torch.inference_mode():
        expected = theirs(volume)[0]
        error = {
            name: float((each(volume) - _tokens(theirs, volume)).abs().max()) for name, each in fast.items()
        }
        rows = [
            in_turns(lambda each=each: each(volume), lambda: theirs(volume), 4).row(  # type: ignore[misc]
                f"{name}, largest difference {error[name]:.1e}",
                "MONAI's ViT, float32",
                1.9 if name == "float32" else 3.5,
            )
            for name, each in fast.items()
        ]
    equal = error["float32"] < 1e-4
    rows.append(Row("equal outputs in float32", "MONAI's tokens", f"{error['float32']:.1e}", "< 1e-4", equal))
    yield Table(
        TITLE, tuple(rows), (f"{torch.get_num_threads()} threads; MONAI's output {tuple(expected.shape)}.",)
    )


def _precisions() -> dict[str, torch.dtype]:
    found = {"float32": torch.float32}
    return {**found, "bfloat16": torch.bfloat16} if has_bfloat16(torch.device("cpu")) else found


def built(config: VitConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.nn.Module:
    vit = config.build()
    vit.load_state_dict(weights)
    return for_inference(vit, dtype)


def _tokens(vit: Any, volume: torch.Tensor) -> torch.Tensor:
    """MONAI's tokens without its classification head."""
    patches = torch.cat([vit.cls_token.expand(len(volume), -1, -1), vit.patch_embedding(volume)], dim=1)
    for block in vit.blocks:
        patches = block(patches)
    tokens: torch.Tensor = vit.norm(patches)[:, 1:]
    return tokens


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
