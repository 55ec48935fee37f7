"""First stage of the curriculum: the encoder and Cls on phantoms, with dense supervision from the label map."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tumorchain_agent.errors import Cancelled
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.atomic import save_torch
from tumorchain_agent.training.optimizer import MuonAdamW, split, trapezoid
from tumorchain_agent.training.phantom.volume import Pool
from tumorchain_agent.training.targets import ATTRIBUTES, CLS_ORGANS, PhantomStream, auc, stack
from tumorchain_agent.training.vision_config import VisionStageConfig

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]
"""``case_targets`` of several patients, stacked."""


class VisionModel(nn.Module):
    """Encoder, Cls, and the heads that only training uses."""

    def __init__(self, config: NanoEncoderConfig) -> None:
        super().__init__()
        self.encoder = config.build()
        self.cls = nn.Linear(config.width, 2)
        self.fine = nn.Conv3d(config.stem[1], 3, 1)
        self.patch = nn.Linear(config.width, 1)
        self.organ = nn.Linear(config.width, len(CLS_ORGANS))
        self.attributes = nn.ModuleList(nn.Linear(config.width, len(names)) for names in ATTRIBUTES.values())
        nn.init.constant_(self.patch.bias, -4.0)
        nn.init.constant_(self.fine.bias, -4.0)  # type: ignore[arg-type]

    def classify(self, tokens: Tensor, coverage: Tensor) -> Tensor:
        """[B, O, 2] logits from tokens [B, 2048, C] and coverage [B, O, 8, 16, 16] by the coverage-weighted mean."""
        return self.cls(organ_means(tokens, coverage))  # type: ignore[no-any-return]


def organ_means(tokens: Tensor, coverage: Tensor, least: float = 0.05) -> Tensor:
    """[B, O, C]: mean token of each organ, weighted by coverage; patches under ``least`` only count when alone."""
    weight = coverage.flatten(2)
    strong = weight * (weight >= least)
    weight = torch.where(strong.sum(-1, keepdim=True) > 0, strong, weight)
    return torch.bmm(weight, tokens) / weight.sum(-1, keepdim=True).clamp_min(1e-6)


def cls_loss(logits: Tensor, abnormal: Tensor) -> Tensor:
    """Second term of eq. 8 with log P: −(1/M) Σ log P(y | τ_l) over organs that are in the scan."""
    return F.cross_entropy(logits.flatten(0, 1), abnormal.flatten(), ignore_index=-1)


def dense_loss(model: VisionModel, fine: Tensor, tokens: Tensor, batch: Batch) -> Tensor:
    """Tumour, cyst and node per fine cell; tumour, organ and lesion properties per patch."""
    weight = 1 + 7 * batch["fine"]
    cells = F.binary_cross_entropy_with_logits(model.fine(fine), batch["fine"], weight, reduction="sum")
    cells = cells / (weight.sum() * 0.02)
    share = batch["patch"].flatten(1)
    target = (share * 4).clamp(max=1)
    patch = F.binary_cross_entropy_with_logits(model.patch(tokens).squeeze(-1), target, 1 + 7 * target)
    organ = F.binary_cross_entropy_with_logits(
        model.organ(tokens), (batch["coverage"].flatten(2).transpose(1, 2) * 2).clamp(max=1)
    )
    total = cells + 4 * patch + organ
    for k, head in enumerate(model.attributes):
        classes = batch["attributes"][:, k].flatten()
        here = classes >= 0
        if here.any():
            total = total + 0.15 * F.cross_entropy(head(tokens.flatten(0, 1)[here]), classes[here])
    return total


def vision_is_trained(config: VisionStageConfig, out: Path) -> bool:
    """Whether ``out/vision.pt`` has had all its minutes."""
    path = out / "vision.pt"
    return path.exists() and _elapsed(path) >= config.minutes * 60


def _elapsed(checkpoint: Path) -> float:
    return float(torch.load(checkpoint, weights_only=True, mmap=True)["state"]["elapsed"])


def train_vision(
    config: VisionStageConfig,
    encoder: NanoEncoderConfig,
    pool: Pool,
    validation: list[Batch],
    out: Path,
    zoom: Zoom | None = None,
) -> VisionModel:
    """Train and keep ``out/vision.pt`` up to date; resumes from it when it is there.

    ``zoom`` is how crops are taken: as the checkpoint will take them. Raises Cancelled on ctrl-c, after saving.
    """
    out.mkdir(parents=True, exist_ok=True)
    training = _Training(config, encoder, out / "vision.pt")
    stream = PhantomStream(
        pool,
        config.seed,
        int(training.state["step"]),
        config.diseases,
        config.replay,
        config.zoom_share,
        zoom,
    )
    loader = DataLoader(
        stream,
        config.batch,
        num_workers=config.workers,
        collate_fn=stack,
        prefetch_factor=4 if config.workers else None,
    )
    training.run(loader, validation)
    return training.model


class _Training:
    """A model, its optimizer and how far it has come: all that ``checkpoint`` holds."""

    def __init__(self, config: VisionStageConfig, encoder: NanoEncoderConfig, checkpoint: Path) -> None:
        self.config, self.checkpoint = config, checkpoint
        torch.manual_seed(config.seed)
        self.model: VisionModel = VisionModel(encoder).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        matrices, rest = split(self.model.encoder.named_parameters(), adam=("place",))
        heads = [(n, p) for n, p in self.model.named_parameters() if not n.startswith("encoder.")]
        self.optimizer = MuonAdamW(
            matrices,
            [*rest, *heads],
            lr=config.lr,
            adam_lr=config.adam_lr,
            weight_decay=config.weight_decay,
        )
        self.state: dict[str, float] = {"step": 0, "elapsed": 0.0}
        """Steps taken, and seconds that they took in all runs."""
        self.losses: dict[str, float] = {}
        """Running means since the start of this run."""
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = saved["state"]

    def run(self, batches: Iterable[Batch], validation: list[Batch]) -> None:
        """Train until the minutes are over, with what the clock asks for in between."""
        start = time.monotonic() - self.state["elapsed"]
        try:
            self._run(start, batches, validation)
        except KeyboardInterrupt:
            self.save(time.monotonic() - start)
            raise Cancelled(
                f"interrupted after {self.state['step']} steps of the encoder; {self.checkpoint} is saved: "
                "the same command goes on from there"
            ) from None

    def _run(self, start: float, batches: Iterable[Batch], validation: list[Batch]) -> None:
        config, budget = self.config, self.config.minutes * 60
        if self.state["elapsed"] >= budget:
            return
        saved = validated = time.monotonic()
        for batch in batches:
            self.step(batch, min((time.monotonic() - start) / budget, 1.0))
            now = time.monotonic()
            done = now - start >= budget
            if self.state["step"] % 50 == 0:
                self.report((now - start) / 60)
            if done or now - saved > config.save_every_s:
                self.save(now - start)
                saved = now
            if done or now - validated > config.validate_every_s:
                log.info("validation %s", json.dumps(validate(self.model, validation)))
                validated = now
            if done:
                return

    def step(self, batch: Batch, progress: float) -> None:
        """One update; ``progress`` in 0..1 decides the learning rate."""
        config, model = self.config, self.model
        self.optimizer.set_rate(trapezoid(progress, config.warmup, config.decay))
        with torch.autocast("cpu", torch.bfloat16):
            fine, tokens = model.encoder.features(batch["volume"])
        fine, tokens = fine.float(), tokens.float()
        cls = cls_loss(model.classify(tokens, batch["coverage"]), batch["abnormal"])
        dense = dense_loss(model, fine, tokens, batch)
        loss = config.alpha * cls + config.dense * dense
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.state["step"] += 1
        for name, value in (("cls", cls.item()), ("dense", dense.item())):
            self.losses[name] = 0.97 * self.losses.get(name, value) + 0.03 * value

    def report(self, minutes: float) -> None:
        losses = {name: round(value, 4) for name, value in self.losses.items()}
        log.info("step %d, %.1f min, %s", self.state["step"], minutes, losses)

    def save(self, elapsed: float) -> None:
        self.state["elapsed"] = elapsed
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.state,
        }
        save_torch(state, self.checkpoint)


@torch.inference_mode()
def validate(model: VisionModel, batches: list[Batch]) -> dict[str, float]:
    """AUC of Cls per organ, of presence (largest of the five), and the organ by arg-max where one is sick, if any."""
    model.eval()
    found, truth = [], []
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.encoder(batch["volume"])
        logits = model.classify(tokens.float(), batch["coverage"])[:, :5]
        margin = (logits[..., 1] - logits[..., 0]).masked_fill(batch["abnormal"][:, :5] < 0, -20)
        found.append(margin.numpy())
        truth.append(batch["abnormal"][:, :5].numpy() == 1)
    model.train()
    scores: NDArray[np.float64] = np.concatenate(found).astype(float)
    sick: NDArray[np.bool_] = np.concatenate(truth)
    out = {name: round(auc(scores[:, k], sick[:, k]), 3) for k, name in enumerate(CLS_ORGANS[:5])}
    out["presence"] = round(auc(scores.max(axis=1), np.asarray(sick.any(axis=1))), 3)
    single = sick.sum(axis=1) == 1
    if single.any():
        right = scores[single].argmax(axis=1) == sick[single].argmax(axis=1)
        out["organ"] = round(float(right.mean()), 3)
    return out
