"""Many samples in one row without padding: samples of a patient share the tokens of the whole scan.

A row is a chain of blocks. A *trunk* is the beginning that all questions of one patient have in common (header
and τ_g); a *branch* is what follows for one question, and sees its trunk and itself. What no block shares is
computed once per patient, not once per question; attention is block-diagonal and costs what the blocks cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

ATTENTION: Final = "tumorchain_packed"


@dataclass(frozen=True)
class Block:
    """``length`` tokens of a row; a branch also sees its trunk, block number ``trunk`` of the row."""

    length: int
    trunk: int | None = None


def position_ids(blocks: list[Block]) -> Tensor:
    """[1, T] of a row of ``blocks``: as if each branch stood behind its own trunk."""
    first = [0 if block.trunk is None else blocks[block.trunk].length for block in blocks]
    return torch.cat([torch.arange(f, f + b.length) for f, b in zip(first, blocks, strict=True)])[None]


@lru_cache(maxsize=512)
def _hidden(trunk: int, own: int) -> Tensor:
    """[own, trunk + own], true where a branch must not look: its own later tokens."""
    return torch.ones(own, trunk + own, dtype=torch.bool).triu(trunk + 1)


def _block_attention(query: Tensor, key: Tensor, value: Tensor, trunk: int, scaling: float) -> Tensor:
    scores = (query * scaling) @ key.transpose(-1, -2)
    hidden = _hidden(trunk, query.shape[-2]).to(query.device)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    packing: list[Block],
    **_: object,
) -> tuple[Tensor, None]:
    """Attention over a packed row in transformers' interface: query [1, heads, T, d] → [1, T, heads, d]."""
    groups = module.num_key_value_groups
    key, value = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (key, value))
    lengths = [block.length for block in packing]
    queries, keys, values = (torch.split(t, lengths, dim=2) for t in (query, key, value))
    pieces = []
    for block, q, k, v in zip(packing, queries, keys, values, strict=True):
        if block.trunk is not None:
            k, v = torch.cat([keys[block.trunk], k], dim=2), torch.cat([values[block.trunk], v], dim=2)
        pieces.append(_block_attention(q, k, v, k.shape[2] - block.length, scaling))
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def packed_hidden(llm: Qwen2ForCausalLM, embeds: Tensor, blocks: list[Block]) -> Tensor:
    """Last hidden states [1, T, H] of the input embeddings [1, T, H] of a packed row."""
    with packed_mode(llm):
        states: Tensor = llm.model(
            inputs_embeds=embeds,
            position_ids=position_ids(blocks).to(embeds.device),
            use_cache=False,
            packing=blocks,
        ).last_hidden_state
    return states


@contextmanager
def packed_mode(llm: Qwen2ForCausalLM) -> Iterator[None]:
    """The LLM attends within packed rows, and nothing else, while this lasts.

    Around forward and backward together where layers are recomputed: the second time must attend as the first.
    """
    with attending(llm, ATTENTION, packed_attention):
        yield


@contextmanager
def attending(llm: Qwen2ForCausalLM, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """The LLM attends by a function of ours, which transformers knows by ``name``, while this lasts."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, attention)
    usual = llm.config._attn_implementation
    llm.set_attn_implementation(name)
    try:
        yield
    finally:
        llm.set_attn_implementation(usual)
