"""A vision encoder made ready for inference on a CPU: weights packed for oneDNN, attention by its matrix products.

On many processors torch's own float32 products and its fused attention reach less than half of what oneDNN does.
The result is the same to rounding (1e-5 of a token), and there is nothing to compile or to wait for. In bfloat16,
where the processor multiplies it, the encoder takes about a third of that time again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from tumorchain_agent.model.encoder import Attention, Vit

if TYPE_CHECKING:
    from tumorchain_agent.model.config import EncoderConfig
    from tumorchain_agent.settings import Precision

_QUERIES = 512
"""Rows of the attention matrix at a time: they stay in the processor's cache."""


def pick_precision(config: EncoderConfig, device: torch.device, wanted: Precision = "auto") -> torch.dtype:
    """What an encoder computes in: for a ViT bfloat16 where the device multiplies it, else float32.

    The nano encoder stays in float32: it is small, and its answers shall be the same everywhere.
    """
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    return torch.bfloat16 if config.kind == "vit" and has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or not _has_onednn():
        return False
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def for_inference(encoder: nn.Module, dtype: torch.dtype = torch.float32) -> InferenceEncoder:
    """The encoder in ``dtype``; a ViT on a CPU is packed, in place, and can't be trained or saved afterwards."""
    encoder = encoder.to(dtype).eval().requires_grad_(False)
    device = next(encoder.parameters()).device
    if isinstance(encoder, Vit) and device.type == "cpu" and _has_onednn():
        _pack(encoder)
    return InferenceEncoder(encoder, dtype)


class InferenceEncoder(nn.Module):
    """[B, 1, D, H, W] → [B, patches, width] in float32, whatever it computes in."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = dtype

    def forward(self, volume: Tensor) -> Tensor:
        with torch.inference_mode():
            tokens: Tensor = self.encoder(volume.to(self.dtype)).float()
        return tokens


def _pack(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Attention):
            setattr(module, name, PackedAttention(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)


class PackedLinear(nn.Module):
    """A Linear whose weight is kept as oneDNN wants it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, rows: Tensor) -> Tensor:
        return _product(rows, self.packed, self.bias)


class PackedAttention(nn.Module):
    """Self-attention, a head and some rows of queries at a time."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv, self.out_proj = PackedLinear(attention.qkv), PackedLinear(attention.out_proj)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        fused = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = fused.permute(2, 0, 3, 1, 4)
        q = q * (width // self.heads) ** -0.5
        out = torch.empty(batch, length, self.heads, width // self.heads, dtype=tokens.dtype)
        for scan in range(batch):
            for head in range(self.heads):
                out[scan, :, head] = _attend(q[scan, head], k[scan, head], v[scan, head])
        attended: Tensor = self.out_proj(out.flatten(2))
        return attended


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head: [n, c] each, queries scaled already."""
    parts: tuple[Tensor, ...] = q.split(_QUERIES)  # type: ignore[no-untyped-call]
    keys = torch.ops.mkldnn._reorder_linear_weight(k.contiguous(), None)
    values = torch.ops.mkldnn._reorder_linear_weight(v.T.contiguous(), None)
    rows = [_product(functional.softmax(_product(part, keys), -1), values) for part in parts]
    return torch.cat(rows)


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows · weightᵀ + bias."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out
