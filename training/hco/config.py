"""What a training is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorchain_agent.model.config import EncoderConfig, Size, VitConfig
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.data.policy import OnBadData
from tumorchain_agent.training.modes import ModeOdds
from tumorchain_agent.training.vision_config import VisionStageConfig

Form = Literal["vision", "align", "instruct", "cot"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rates(_Part):
    """Learning rate of each module; 0 freezes it."""

    encoder: float = Field(default=0.0, ge=0)
    projector: float = Field(default=0.0, ge=0)
    cls: float = Field(default=0.0, ge=0)
    llm: float = Field(default=0.0, ge=0)


class Stage(_Part):
    """A stage of the curriculum; it lasts for ``steps``, ``epochs`` or ``minutes``."""

    name: str
    form: Form
    """``vision``: no text, only Cls and dense supervision; ``align``: findings from evidence; ``instruct``: answers
    without reasoning; ``cot``: all rounds."""
    rates: Rates
    optimizer: Literal["adamw", "muon"] = "adamw"
    adam_share: float = Field(default=0.5, gt=0)
    """With muon: AdamW's rate, for what is no matrix, as a share of the module's."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "trapezoid"] = "cosine"
    warmup: float = Field(default=0.03, gt=0, lt=1)
    decay: float = Field(default=0.6, gt=0, le=1)
    """Of the trapezoid: the last share of the stage, over which the rate falls."""
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    """Wall time; only ``steps`` and ``epochs`` resume bit for bit."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of Cls's cross-entropy (eq. 8)."""
    dense: float = Field(default=0.0, ge=0)
    """Weight of per-patch supervision from the label map."""
    own_first_rounds: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples whose first round is what the model itself says."""
    own_temperature: float = Field(default=0.7, ge=0)
    """Of those first rounds; 0 is greedy."""
    own_tokens: int = Field(default=48, gt=0)
    zoom_share: float = Field(default=0.0, ge=0, le=1)
    """With ``zoom``, of form ``vision``: share of the scans that are seen as the crop of an organ."""
    zoom_shown: float = Field(default=1.0, ge=0, le=1)
    """With ``zoom``, of other forms: share of the conversations that show crops; below 1 the model can do without."""
    modes: ModeOdds = ModeOdds()
    """Of ``instruct`` and ``cot``: with and without IIR and CoT, told by the question's words. The default trains all
    in one model; an ablation by training gives one mode all the odds."""

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if sum(each is not None for each in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError(f"stage {self.name} needs one of steps, epochs and minutes")
        if self.zoom_share and self.form != "vision":
            raise ValueError(
                f"stage {self.name}: zoom_share is of form vision; others show crops beside scans"
            )
        if self.form == "vision" and (self.rates.llm or self.rates.projector):
            raise ValueError(f"stage {self.name} is of form vision: it trains no projector or llm")
        if not any(self.rates.model_dump().values()):
            raise ValueError(f"stage {self.name} trains nothing: give one of rates a value above 0")
        return self


class Phantoms(_Part):
    """Phantoms straight in model space; pooled anatomies, everything else drawn anew for each patient."""

    pool: Path | None = None
    """Folder of the anatomies; default: below the cache."""
    anatomies: int = Field(default=1500, gt=0)
    validation_anatomies: int = Field(default=120, gt=0)
    patients: int = Field(default=3600, gt=0)
    validation_patients: int = Field(default=48, gt=0)
    diseases: tuple[float, ...] = (0.4, 0.6)
    """Odds of 0, 1, 2 … primary tumors."""
    healthy: float = Field(default=1.0, gt=0, le=1)
    """Share of the healthy patients that an epoch asks about; they take turns."""
    described: int = Field(default=24, ge=0)
    """Phantoms written and read as scans, for the ranges that tell inference what is unlike them."""
    suspicion: Literal["cls", "neutral"] = "cls"
    """What decides which organs a first round names: Cls as it is now, or a prior that knows nothing."""


class Data(_Part):
    """One source of scans and questions."""

    records: Path | None = None
    """TumorCoT file, ``.jsonl``; its side ``test`` is validated on."""
    phantoms: Phantoms | None = None
    cache: Path | None = None
    """Preprocessed volumes and frozen encoders' tokens; default: ``cache`` below the output."""
    volumes: Literal["float16", "uint8"] = "float16"
    """How the cache keeps them."""
    cache_tokens: bool = True
    """Keep the vision tokens of a frozen encoder."""
    workers: int = Field(default=1, ge=0)
    on_bad: OnBadData = OnBadData.FAIL

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.records is None) == (self.phantoms is None):
            raise ValueError("data needs either records or phantoms")
        return self


class Model(_Part):
    size: Size
    init: Path | None = None
    """Checkpoint folder to begin from; else the weights are random and the tokenizer is made from the data."""
    vision: Path | None = None
    """``vision.pt`` of another training's ``pretrain``, for encoder and Cls."""
    encoder: EncoderConfig = VitConfig()
    """Where there is no ``init``."""
    llm_sizes: dict[str, int] = {}
    vocabulary: int = Field(default=1024, ge=300)

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.size == "custom" and self.init is None:
            raise ValueError("size custom is that of a checkpoint: set model.init to its folder")
        return self


class TrainConfig(_Part):
    """All that decides what a training gives."""

    model: Model
    data: Data
    zoom: Zoom | None = None
    """ROI zoom: organs' crops are shown, too, and the checkpoint says so. ``{}`` is with the usual settings."""
    pretrain: VisionStageConfig | None = None
    """Before the stages: a nano encoder and Cls on an endless stream of phantoms, never the same one for long."""
    stages: tuple[Stage, ...] = Field(min_length=1)
    batch: int = Field(default=2, gt=0)
    """Questions of a device's forward pass."""
    questions_per_scan: int = Field(default=2, gt=0)
    """Questions of a batch that are about one scan and share its vision tokens."""
    accumulation: int = Field(default=1, gt=0)
    """Forward passes of a device in a step."""
    row_tokens: int = Field(default=8192, gt=0)
    """Longest packed row; a batch that needs more is divided."""
    engine: Literal["plain", "zero2"] = "plain"
    """``zero2``: DeepSpeed, gradients and optimizer states divided over the processes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    """Recompute the LLM's layers in the backward pass."""
    clip: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=200, gt=0)
    """Steps between checkpoints to go on from."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints to go on from that are kept."""
    validate_every: int = Field(default=200, gt=0)
    validation_units: int = Field(default=24, gt=0)
    """Held-out scans, each with ``questions_per_scan`` questions a task."""
    log_every: int = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch % self.questions_per_scan:
            raise ValueError(
                f"batch {self.batch} is no multiple of questions_per_scan {self.questions_per_scan}"
            )
        if self.zoom is None and any(stage.zoom_share for stage in self.stages):
            raise ValueError("zoom_share is without effect where zoom is off: set zoom, {} for the usual")
        if self.pretrain is not None:
            self._check_pretrain()
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("two stages have the same name")
        if self.engine == "zero2" and any(stage.optimizer != "adamw" for stage in self.stages):
            raise ValueError("engine zero2 divides the optimizer's states, which muon can't: use adamw")
        return self

    def _check_pretrain(self) -> None:
        model, told = self.model, "pretrain trains a nano encoder on phantoms"
        if self.data.phantoms is None:
            raise ValueError(f"{told}: set data.phantoms, or pretrain to null")
        if model.encoder.kind != "nano" or model.init is not None:
            raise ValueError(f"{told}: set model.encoder.kind to nano, or pretrain to null with model.init")
        if model.vision is not None:
            raise ValueError("pretrain and model.vision are two encoders to begin from: leave one out")
        if self.pretrain is not None and self.pretrain.zoom_share and self.zoom is None:
            raise ValueError(
                "pretrain.zoom_share is without effect where zoom is off: set zoom, {} for the usual"
            )
