"""How the encoder's own stage, before the LLM sees it, is told to run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VisionStageConfig(BaseModel):
    """``minutes`` of wall time; the learning rate rises, stays, and falls over them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = Field(default=50.0, gt=0)
    batch: int = Field(default=6, gt=0)
    lr: float = 6e-3
    """Of Muon, for the encoder's convolutions and matrices; ``adam_lr`` for everything else."""
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    decay: float = 0.6
    """Last share of the run, over which the rate falls linearly to 0."""
    replay: int = 3
    """How often a rendered patient is shown: rendering costs a third of a step."""
    zoom_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples that are crops of organs, for ROI zoom; .35 is recommended with it."""
    alpha: float = 1.0
    """Weight of Cls's cross-entropy (eq. 8)."""
    dense: float = 1.0
    """Weight of the per-patch losses."""
    diseases: tuple[float, ...] = (0.1, 0.2, 0.3, 0.25, 0.15)
    """Odds of 0, 1, 2 … primary tumours in a training patient: more of them teach more per scan."""
    seed: int = 0
    workers: int = 1
    save_every_s: float = 120.0
    validate_every_s: float = 300.0
