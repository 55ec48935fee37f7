"""Everything between the model volume and the LLM: encoder, projector, abnormality classifier (paper 3.1,
figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from tumorchain_agent.model.config import VisionConfig


class VisionTower(nn.Module):
    """Vision tokens τ_v have the encoder's width C; projected tokens have the LLM's width H."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, hidden = config.encoder.width, config.hidden_size
        self.config = config
        self.encoder: nn.Module = config.encoder.build()
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.cls = nn.Linear(width, 2)

    def encode(self, volume: Tensor) -> Tensor:
        """Model volumes [B, 1, 32, 256, 256] in [0, 1] → vision tokens τ_v [B, 2048, C], patches in order (d,
        h, w)."""
        tokens: Tensor = self.encoder(volume)
        return tokens

    def project(self, tokens: Tensor) -> Tensor:
        """[..., C] → [..., H]: global tokens τ_g or ROI tokens τ_l in LLM space."""
        projected: Tensor = self.projector(tokens)
        return projected

    def classify(self, mean_tokens: Tensor) -> Tensor:
        """Mean-pooled ROI tokens [..., C] → logits [..., 2], normal then abnormal."""
        logits: Tensor = self.cls(mean_tokens)
        return logits
