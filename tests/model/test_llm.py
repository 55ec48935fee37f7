from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Qwen2_5_VLTextConfig, Qwen2Config
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from tests.model.oracle import error, fill
from tumorchain_agent.errors import InputError
from tumorchain_agent.model.config import NamedSize
from tumorchain_agent.model.llm import build_llm, llm_config, pick_device, pick_dtype
from tumorchain_agent.model.tokenizer import build_nano_tokenizer, model_vocabulary


def _tiny_oracle(shared: Path) -> dict[str, Any]:
    oracle = json.loads((shared / "facts/numeric_oracle_qwen_text_tiny.json").read_text())
    return cast(dict[str, Any], oracle["qwen2_5_vl_text_tiny"])


def _tiny_config(oracle: dict[str, Any]) -> Qwen2Config:
    sizes = {key: oracle["config"][key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {key: oracle["config"][key] for key in ("num_attention_heads", "num_key_value_heads")}
    return llm_config("7b", num_hidden_layers=oracle["config"]["num_hidden_layers"], **sizes, **heads)


def test_qwen2_equals_the_qwen2_5_vl_text_oracle(shared: Path) -> None:
    oracle = _tiny_oracle(shared)
    llm: Any = build_llm(_tiny_config(oracle), dtype=torch.float64).train(False)
    assert sorted(llm.state_dict()) == oracle["keys"]
    with torch.no_grad():
        fill(llm)
        out = llm(torch.tensor(oracle["input_ids"]), output_hidden_states=True)
    expected, hidden = oracle["text_only"], out.hidden_states[-1]
    assert error(hidden[0, -1, :8], expected["hidden_last_first8"]) < 1e-5
    assert error(hidden.abs().sum(), expected["hidden_abs_sum"]) < 1e-4
    assert error(out.logits[0, -1, :8], expected["logits_last_first8"]) < 1e-5
    assert error(out.logits.abs().sum(), expected["logits_abs_sum"]) < 1e-4
    assert out.logits.argmax(-1)[0].tolist() == expected["logits_argmax"]


def test_qwen2_equals_transformers_own_qwen2_5_vl_text_model(shared: Path) -> None:
    config = _tiny_config(_tiny_oracle(shared))
    ours: Any = build_llm(config, dtype=torch.float64).train(False)
    rope = {"rope_type": "default", "type": "mrope", "rope_theta": 1_000_000.0, "mrope_section": [2, 3, 3]}
    theirs: Any = Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            **(config.to_dict() | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope})
        )
    )
    theirs.double().eval().load_state_dict(ours.model.state_dict(), strict=True)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        difference = ours.model(ids).last_hidden_state - theirs(ids).last_hidden_state
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_large_llms_have_the_parameter_counts_of_qwen2_5_vl(shared: Path, size: NamedSize) -> None:
    facts = json.loads((shared / "facts/qwen2_5_vl_text.json").read_text())
    counts = facts["param_counts"][size]
    llm = build_llm(llm_config(size), device="meta")
    assert sum(p.numel() for p in llm.model.parameters()) == counts["language_model"]
    head = 0 if counts["lm_head"] == "tied" else counts["lm_head"]
    assert sum(p.numel() for p in llm.parameters()) == counts["language_model"] + head
    shapes = {key: list(value.shape) for key, value in llm.state_dict().items()}
    for key, shape in facts[f"qwen2_5_vl_{size}"]["shapes"].items():
        if isinstance(shape, list):
            assert shapes[key.replace(".N.", ".0.")] == shape


def test_nano_takes_its_vocabulary_and_end_token_from_the_tokenizer() -> None:
    tokenizer = build_nano_tokenizer(["liver"])
    config = llm_config("nano", tokenizer)
    assert config.vocab_size == model_vocabulary(tokenizer) > len(tokenizer)
    assert config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    llm = build_llm(config)
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    assert llm.model.layers[0].self_attn.k_proj.weight.shape == (2 * 32, 192)


def test_an_unknown_or_absent_device_is_refused_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'tpu9' is unknown"):
        pick_device("tpu9")
    with pytest.raises(InputError, match="'cuda:99' is not there"):
        pick_device("cuda:99")


def test_only_large_models_on_cuda_run_in_bfloat16() -> None:
    assert pick_dtype("7b", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("7b", torch.device("cpu")) == pick_dtype("nano", torch.device("cuda")) == torch.float32
