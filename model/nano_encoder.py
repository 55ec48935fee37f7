"""The nano encoder: a convolution stem with a little global attention, small enough to learn on two CPU cores.

It keeps the ViT's contract: (32, 256, 256) in, 2,048 vision tokens of the (8, 16, 16) patch grid out.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F


class NanoEncoderConfig(BaseModel):
    """Sizes of the nano encoder; ``build()`` makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nano"] = "nano"
    width: int = 128
    """Channels of a vision token."""
    stem: tuple[int, int, int] = (24, 48, 96)
    heads: int = 4
    peaks: int = 32
    """Channels passed through a squared ReLU: unbounded, so that a small lesion survives a mean over a large organ."""
    global_layers: int = 2
    """Transformer layers on the 2 × 2 × 2 pooled grid."""

    def build(self) -> NanoEncoder:
        return NanoEncoder(self)


class _Norm(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(max(channels // 8, 1), channels)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(channels), _Norm(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.relu(self.norm2(h)))
        return out


class _GlobalBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        x = x + self.out(mixed)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _fold(volume: Tensor) -> Tensor:
    """[B, 1, D, H, W] → [B, 4, D, H/2, W/2]: each 2 × 2 of pixels becomes four channels."""
    b, _, d, h, w = volume.shape
    folded = volume.view(b, d, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return folded.reshape(b, 4, d, h // 2, w // 2).contiguous(memory_format=torch.channels_last_3d)


class NanoEncoder(nn.Module):
    """[B, 1, 32, 256, 256] in [0, 1] → [B, 2048, width]; tokens in (d, h, w) order.

    The first step is a 2 × 2 in-plane average, so ``forward`` also takes volumes that are already
    (32, 128, 128): phantoms for training are rendered at that resolution.
    """

    grid = (8, 16, 16)

    def __init__(self, config: NanoEncoderConfig) -> None:
        super().__init__()
        self.config = config
        b, c, d = config.stem
        self.down1 = nn.Conv3d(4, b, 3, padding=1)
        self.down2 = nn.Conv3d(b, c, 3, stride=2, padding=1)
        self.block2 = _Residual(c)
        self.down3 = nn.Conv3d(c, d, 3, stride=2, padding=1)
        self.block3 = _Residual(d)
        self.norm1, self.norm2 = _Norm(b), _Norm(c)
        self.embed = nn.Conv3d(d, config.width, 1)
        self.place = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n, config.width)) for n in self.grid)
        self.blocks = nn.ModuleList(
            _GlobalBlock(config.width, config.heads) for _ in range(config.global_layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.width)

    def position(self) -> Tensor:
        """[1, width, 8, 16, 16]: one learned vector per depth, row and column, added up."""
        d, h, w = (p.transpose(0, 1) for p in self.place)
        position: Tensor = (d[:, :, None, None] + h[:, None, :, None] + w[:, None, None, :])[None]
        return position

    def features(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """Fine features [B, c, 16, 32, 32] and vision tokens [B, 2048, width]."""
        if volume.shape[-1] == 256:
            volume = F.avg_pool3d(volume, (1, 2, 2))
        x = F.relu(self.norm1(self.down1(_fold(2 * volume - 1))))
        fine = self.block2(self.down2(x))
        x = self.block3(self.down3(F.relu(self.norm2(fine))))
        local = self.embed(x) + self.position()
        pooled = F.avg_pool3d(local, 2)
        wide = pooled.flatten(2).transpose(1, 2)
        for block in self.blocks:
            wide = block(wide)
        context = wide.transpose(1, 2).reshape(pooled.shape)
        context = F.interpolate(context, scale_factor=2, mode="trilinear")
        tokens = self.head(self.norm((local + context).flatten(2).transpose(1, 2)))
        plain, peaked = tokens.split([self.config.width - self.config.peaks, self.config.peaks], dim=-1)
        return fine, torch.cat([plain, F.relu(peaked).square()], dim=-1)

    def forward(self, volume: Tensor) -> Tensor:
        return self.features(volume)[1]
