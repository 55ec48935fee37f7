"""Qwen2.5-VL and M3D folders as their authors publish them, only tiny: written by transformers' own class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.model.conftest import TEXTS
from tumorchain_agent.model.config import VitConfig
from tumorchain_agent.model.tokenizer import build_nano_tokenizer

VOCABULARY = 320
ENCODER = VitConfig(image_size=(8, 32, 32), width=48, mlp_width=96, layers=2, heads=4)
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
ROPE = {"rope_type": "default", "type": "mrope", "rope_theta": 1_000_000.0, "mrope_section": [2, 3, 3]}
_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
_THEIR_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\nYou see a picture.<|im_end|>\n{% endfor %}"
)


def qwen_vl(*, tied: bool = False, **text: Any) -> Any:
    """A tiny ``Qwen2_5_VLForConditionalGeneration`` with random weights, float32."""
    fields = TEXT | text | {"rope_parameters": dict(ROPE), "tie_word_embeddings": tied}
    config = Qwen2_5_VLConfig(text_config=fields, vision_config=dict(_VISION), tie_word_embeddings=tied)
    torch.manual_seed(0)
    build: Any = Qwen2_5_VLForConditionalGeneration
    return build(config).eval()


def publish(model: Any, folder: Path, *, shard: str = "60KB") -> Path:
    """Weights in shards, config, and a tokenizer whose chat template isn't ours."""
    model.save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """The files and fields of Qwen2.5-VL's repositories."""
    tokenizer = build_nano_tokenizer(TEXTS, vocabulary=300)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    names = tokenizer.convert_ids_to_tokens(list(range(6)))
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    config = {
        "add_bos_token": False,
        "added_tokens_decoder": {str(n): {"content": name, **flags} for n, name in enumerate(names)},
        "additional_special_tokens": names[1:],
        "bos_token": None,
        "chat_template": _THEIR_TEMPLATE,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 131_072,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen2_5_VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``None`` removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def flatten_config(folder: Path) -> None:
    """The layout of transformers 4, in which Qwen2.5-VL was published."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    del text["model_type"], text["layer_types"]
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat = {**text, **config, "rope_theta": rope["rope_theta"], "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(flat | {"torch_dtype": flat.pop("dtype")}))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """All tensors changed, and written as one file."""
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file({k: v.contiguous() for k, v in change(state).items()}, folder / "model.safetensors")


def publish_m3d(path: Path, config: VitConfig = ENCODER, prefix: str = "") -> dict[str, Tensor]:
    """Random weights of M3D's ViT as a PyTorch file; with a prefix, among other networks' weights."""
    torch.manual_seed(1)
    state = {key: torch.randn_like(value) for key, value in config.build().state_dict().items()}
    others = {"logit_scale": torch.ones(()), "mm_vision_proj.bias": torch.ones(4)} if prefix else {}
    torch.save({**{prefix + key: value for key, value in state.items()}, **others}, path)
    return state
