"""Configurations that build their modules; written to and read from ``vision/config.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.records import Record

if TYPE_CHECKING:
    from tumorchain_agent.model.encoder import Vit
    from tumorchain_agent.model.vision import VisionTower

NamedSize = Literal["nano", "3b", "7b"]
Size = Literal[NamedSize, "custom"]
"""``custom`` is an LLM of any other size; its ``config.json`` tells."""


class VitConfig(Record):
    """The 3-D ViT of M3D-CLIP; the defaults are its published size, ``vit-b``."""

    kind: Literal["vit"] = "vit"
    image_size: tuple[int, int, int] = (32, 256, 256)
    """Voxels of the model volume along d, h, w."""
    patch_size: tuple[int, int, int] = (4, 16, 16)
    width: int = Field(default=768, gt=0)
    mlp_width: int = Field(default=3072, gt=0)
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)

    @model_validator(mode="after")
    def _divides(self) -> VitConfig:
        if any(size % patch for size, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f"patch_size {self.patch_size} doesn't divide image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads don't divide width {self.width}")
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along d, h, w."""
        d, h, w = (size // patch for size, patch in zip(self.image_size, self.patch_size, strict=True))
        return d, h, w

    def build(self) -> Vit:
        from tumorchain_agent.model.encoder import Vit

        return Vit(self)


EncoderConfig = Annotated[VitConfig | NanoEncoderConfig, Field(discriminator="kind")]
"""Every member has ``kind``, ``width`` and ``build() -> nn.Module`` with
``forward(volume [B, 1, 32, 256, 256]) -> tokens [B, 2048, width]``, patches in the order (d, h, w)."""


class VisionConfig(Record):
    """Encoder, projector and abnormality classifier."""

    encoder: EncoderConfig
    hidden_size: int = Field(gt=0)
    """Width of the LLM's embeddings, the projector's output."""

    def build(self) -> VisionTower:
        from tumorchain_agent.model.vision import VisionTower

        return VisionTower(self)
