"""The 3-D ViT of M3D-CLIP, with its state-dict keys, so that the published weights load strictly.

Volumes are [B, 1, D, H, W] with our axes; M3D names the same three axes h, w, d and cuts them in this order,
so patches run over (d, h, w) and the voxels within a patch over (d, h, w, channel).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from tumorchain_agent.model.config import VitConfig


class Vit(nn.Module):
    """Pre-norm ViT. Positions are added to the patches only; the CLS token, prepended afterwards, has
    none."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        d, h, w = config.grid
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.patch_embedding = PatchEmbedding(config.patch_size, d * h * w, config.width)
        self.blocks = nn.ModuleList(
            Block(config.width, config.mlp_width, config.heads) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, volume: Tensor) -> Tensor:
        """Model volumes [B, 1, D, H, W] → vision tokens [B, patches, width], CLS dropped."""
        return self.with_cls(volume)[:, 1:]

    def with_cls(self, volume: Tensor) -> Tensor:
        """The same with the CLS token first: [B, 1 + patches, width]."""
        patches = self.patch_embedding(volume)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class PatchEmbedding(nn.Module):
    """Patches as flat vectors through one Linear, plus learned positions."""

    def __init__(self, patch_size: tuple[int, int, int], patches: int, width: int) -> None:
        super().__init__()
        flat = patch_size[0] * patch_size[1] * patch_size[2]
        self.patch_embeddings = nn.Sequential(Patchify(patch_size), nn.Linear(flat, width))
        self.position_embeddings = nn.Parameter(torch.empty(1, patches, width))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)

    def forward(self, volume: Tensor) -> Tensor:
        embedded: Tensor = self.patch_embeddings(volume) + self.position_embeddings
        return embedded


class Patchify(nn.Module):
    """[B, C, D, H, W] → [B, patches in order (d, h, w), voxels of a patch in order (d, h, w, channel)]."""

    def __init__(self, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, volume: Tensor) -> Tensor:
        batch, channels, d, h, w = volume.shape
        pd, ph, pw = self.patch_size
        cut = volume.reshape(batch, channels, d // pd, pd, h // ph, ph, w // pw, pw)
        return cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


class Block(nn.Module):
    def __init__(self, width: int, mlp_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class Attention(nn.Module):
    """Multi-head self-attention; the fused rows of ``qkv`` are ordered (q/k/v, head, channel) and have no
    bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        fused = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = fused.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, mlp_width)
        self.linear2 = nn.Linear(mlp_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.linear2(functional.gelu(self.linear1(tokens)))
        return out
