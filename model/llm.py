"""The LLM: the text part of Qwen2.5-VL as a plain ``Qwen2ForCausalLM``.

With 1-D positions Qwen2.5-VL's M-RoPE is ordinary RoPE, so nothing of the vision-language class is needed and
stock servers can load the folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import torch

from tumorchain_agent.errors import InputError
from tumorchain_agent.model.config import NamedSize, Size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

_SIZES: Final[dict[NamedSize, dict[str, Any]]] = {
    "nano": {
        "vocab_size": 2048,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "max_window_layers": 4,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "3b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "max_window_layers": 70,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128_000,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
}


def llm_config(
    size: NamedSize, tokenizer: PreTrainedTokenizerFast | None = None, **changes: object
) -> Qwen2Config:
    """Configuration of a size; 3b and 7b are Qwen2.5-VL's text configurations.

    With a tokenizer, its end-of-message and padding ids are entered, and for nano the vocabulary is the
    tokenizer's. ``changes`` override single fields.
    """
    from transformers import Qwen2Config

    from tumorchain_agent.model.tokenizer import model_vocabulary

    fields: dict[str, Any] = {
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        **_SIZES[size],
    }
    if tokenizer is not None:
        fields |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        if size == "nano":
            fields["vocab_size"] = model_vocabulary(tokenizer)
        elif len(tokenizer) > fields["vocab_size"]:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens: {size} takes {fields['vocab_size']}"
            )
    return Qwen2Config(**(fields | changes))


def build_llm(
    config: Qwen2Config, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Qwen2ForCausalLM:
    """A randomly initialised LLM; on the ``meta`` device it has shapes and no memory."""
    from transformers import Qwen2ForCausalLM

    with torch.device(device):
        model: Qwen2ForCausalLM = Qwen2ForCausalLM._from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


def parameter_count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is the first CUDA device when there is one. Raises :class:`InputError` for one that isn't
    there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"device {name!r} is not there ({count} CUDA devices seen): use cpu or auto")
    return device


def pick_dtype(size: Size, device: torch.device) -> torch.dtype:
    """bfloat16 for the large models on CUDA, else float32."""
    return torch.bfloat16 if size != "nano" and device.type == "cuda" else torch.float32
