"""Train the nano segmentation network on phantoms and write it as TotalSegmentator weights."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from tumorchain_agent.errors import InputError, TumorChainError
from tumorchain_agent.tools.organs import FIVE, MERGE, ORGANS
from tumorchain_agent.training.atomic import save_torch
from tumorchain_agent.training.segmentation_data import IGNORE, Augmentation, Case, CaseFolder, Sampler
from tumorchain_agent.training.segmentation_network import STRIDE, build_network, export, normalize

MAX_SKIPPED = 50
"""Steps in a row without a finite gradient before the training gives up."""


@dataclass(frozen=True)
class SegmentationTraining:
    """Hyper-parameters; the defaults suit 2 CPU cores and half an hour."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    warmup: float = 0.03
    """Share of the run over which the learning rate rises; then it falls as a cosine."""
    clip_norm: float = 5.0
    average: float = 0.99
    """Decay of the running average of the weights, which is what is validated and exported."""
    held_out: int = 6
    """Cases that are never trained on: the last by name."""
    log_every: int = 20
    save_every: int = 200
    validate_every: int = 400


@dataclass(frozen=True)
class TrainedSegmentation:
    """What a run gave."""

    steps: int
    minutes: float
    held_out_dice: dict[str, float]
    """Table 10 organ → mean Dice over the held-out cases that show it; ``five`` → mean of the five digestive
    organs; ``all`` → mean over organs."""
    weights: Path
    """Can be ``TOTALSEG_WEIGHTS_PATH``."""


def loss_terms(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy, and 1 − soft Dice averaged over the classes that the target shows.

    ``logits`` [B, K, z, y, x], ``target`` [B, z, y, x] class indices or ``IGNORE``.
    """
    classes = logits.shape[1]
    known = target != IGNORE
    index = torch.where(known, target, 0)
    log_p = F.log_softmax(logits.float(), dim=1)
    log_own = log_p.gather(1, index[:, None])[:, 0]
    cross_entropy = -(log_own * known).sum() / known.sum().clamp(min=1)
    mass = (log_p.exp() * known[:, None]).sum((0, 2, 3, 4))
    own = torch.zeros(classes, device=logits.device).index_add(0, index[known], log_own[known].exp())
    truth = torch.bincount(index[known], minlength=classes).float()
    dice = (2 * own + 1) / (mass + truth + 1)
    shown = truth > 0
    return cross_entropy, 1 - dice[shown].mean()


def bf16_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are hardware work here (measured 3 to 5 times faster on AVX512-BF16)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def predict_case(network: nn.Module, case: Case, device: torch.device) -> NDArray[np.intp]:
    """Class indices [z, y, x] of a whole case in one window, padded as nnU-Net pads it."""
    shape = case.hu.shape
    padded = [-(-n // STRIDE) * STRIDE for n in shape]
    padding: list[int] = []
    for n, p in zip(reversed(shape), reversed(padded), strict=True):
        padding += [(p - n) // 2, p - n - (p - n) // 2]
    image = F.pad(normalize(torch.from_numpy(case.hu).to(device, torch.float32)), padding)
    with torch.inference_mode():
        logits = network(image[None, None])[0]
    inner = tuple(slice(padding[4 - 2 * a], padding[4 - 2 * a] + n) for a, n in enumerate(shape))
    best = [logits[:, z].float().max(0).indices for z in range(logits.shape[1])]
    classes: NDArray[np.intp] = torch.stack(best)[inner].cpu().numpy()
    return classes


def dice_per_organ(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of each Table 10 organ in ``truth``; both are TotalSegmentator ids on one grid."""
    a, b = MERGE[predicted].ravel(), MERGE[truth].ravel()
    both = np.bincount(a[a == b], minlength=57)
    sizes = np.bincount(a, minlength=57) + np.bincount(b, minlength=57)
    present = np.bincount(b, minlength=57) > 0
    return {name: 2 * float(both[i]) / float(sizes[i]) for i, name in ORGANS.items() if present[i]}


def summarize(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """Per-case organ Dice → mean by organ, with ``five`` (digestive organs) and ``all``."""
    by_organ: dict[str, list[float]] = {}
    for case in scores:
        for organ, value in case.items():
            by_organ.setdefault(organ, []).append(value)
    means = {organ: float(np.mean(values)) for organ, values in by_organ.items()}
    five = [means[organ] for organ in FIVE if organ in means]
    summary = {name: float(np.mean(v)) for name, v in (("five", five), ("all", list(means.values()))) if v}
    return summary | means


class Trainer:
    """The state of one run; everything but the cases is in its checkpoint."""

    def __init__(
        self,
        cases: CaseFolder,
        held_out: CaseFolder,
        out: Path,
        options: SegmentationTraining,
        seed: int,
        device: str,
    ) -> None:
        self.cases, self.held_out, self.out, self.options = cases, held_out, out, options
        self.device = torch.device(device)
        self.checkpoint = out / "training.pt"
        stored = self._stored()
        shares = {} if stored else cases.frequencies()
        self.classes: tuple[int, ...] = tuple(stored["classes"]) if stored else tuple(shares)
        self.lookup = torch.zeros(256, dtype=torch.long, device=self.device)
        self.lookup[list(self.classes)] = torch.arange(len(self.classes), device=self.device)
        self.lookup[IGNORE] = IGNORE
        torch.manual_seed(seed)
        self.network = build_network(len(self.classes), tuple(shares.values())).to(self.device)
        self.average = deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.bf16 = bf16_is_fast(self.device)
        self.step, self.elapsed, self.skipped = 0, 0.0, 0
        if stored:
            self._restore(stored)
        self.sampler = Sampler(cases, options.augmentation, seed + 1_000_003 * self.step, self.device)

    def _stored(self) -> dict[str, Any] | None:
        if not self.checkpoint.is_file():
            return None
        stored: dict[str, Any] = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        return stored

    def _restore(self, stored: dict[str, Any]) -> None:
        self.network.load_state_dict(stored["network"])
        self.average.load_state_dict(stored["average"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step, self.elapsed = int(stored["step"]), float(stored["elapsed"])

    def save(self) -> None:
        """Checkpoint for resuming, and the weights exported as they are."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "classes": list(self.classes),
            "step": self.step,
            "elapsed": self.elapsed,
        }
        save_torch(state, self.checkpoint)
        provenance = {"trained_on": "phantoms", "steps": self.step, "minutes": round(self.elapsed / 60, 1)}
        export(
            deepcopy(self.average).cpu(),
            self.classes,
            self.out / "weights",
            cases=len(self.cases),
            provenance=provenance | {"options": json.dumps(asdict(self.options))},
        )

    def train_step(self, progress: float) -> dict[str, float]:
        """One optimizer step; ``progress`` in [0, 1] sets the learning rate."""
        rate = self.options.learning_rate * schedule(progress, self.options.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        image, labels = self.sampler.sample()
        self.network.train()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.network(image)
        cross_entropy, dice = loss_terms(logits, self.lookup[labels])
        self.optimizer.zero_grad(set_to_none=True)
        (cross_entropy + dice).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self._update_average()
            self.skipped = 0
        else:
            self._skip()
        self.step += 1
        return {"cross_entropy": cross_entropy.item(), "dice_loss": dice.item(), "learning_rate": rate}

    def _skip(self) -> None:
        """A step with a gradient that isn't finite changes nothing; many in a row are an error, not a result."""
        self.skipped += 1
        if self.skipped >= MAX_SKIPPED:
            raise TumorChainError(
                f"{self.skipped} training steps in a row had no finite gradient; go on from {self.out} "
                "with a lower learning rate"
            )

    def _update_average(self) -> None:
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)

    def validate(self) -> dict[str, float]:
        """Dice of the averaged weights on the held-out cases."""
        self.average.eval()
        ids = np.array(self.classes, np.uint8)
        scores = []
        for index in range(len(self.held_out)):
            case = self.held_out[index]
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                scores.append(dice_per_organ(ids[predict_case(self.average, case, self.device)], case.labels))
        return summarize(scores)


def schedule(progress: float, warmup: float) -> float:
    """Linear rise over ``warmup``, then a cosine to 1 % of the top."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    fall = (min(progress, 1.0) - warmup) / (1 - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fall))


def train_segmentation(
    cases: Path,
    out: Path,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    threads: int = 2,
    device: str = "cpu",
    options: SegmentationTraining | None = None,
    log: TextIO | None = None,
) -> TrainedSegmentation:
    """Train on the .npz cases of a folder until ``steps`` or ``minutes`` are used up, whichever is first.

    ``out`` gets ``training.pt`` (a later call goes on from it), ``log.jsonl`` and ``weights/``
    in TotalSegmentator's layout, renewed every ``save_every`` steps.

    Raises InputError for a folder without enough cases, or without a budget.
    """
    options = options or SegmentationTraining()
    if steps is None and minutes is None:
        raise InputError("training needs a budget; pass steps or minutes")
    paths = sorted(Path(cases).glob("*.npz"))
    if len(paths) <= options.held_out:
        held = f"of which {options.held_out} are held out"
        raise InputError(f"{cases} holds {len(paths)} .npz cases, {held}; write more of them")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    split = len(paths) - options.held_out
    trainer = Trainer(CaseFolder(paths[:split]), CaseFolder(paths[split:]), out, options, seed, device)
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        dice = _run(trainer, steps, minutes, _Log(file, log or sys.stdout))
    return TrainedSegmentation(trainer.step, trainer.elapsed / 60, dice, out / "weights")


class _Log:
    """Each record as a line of JSON to the file and a readable line to the terminal."""

    def __init__(self, file: TextIO, terminal: TextIO) -> None:
        self.file, self.terminal = file, terminal

    def __call__(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in record.items()}
        print("  ".join(f"{k} {v}" for k, v in shown.items()), file=self.terminal, flush=True)


def _run(trainer: Trainer, steps: int | None, minutes: float | None, log: _Log) -> dict[str, float]:
    before, started = trainer.elapsed, time.monotonic()
    options = trainer.options
    sums: dict[str, float] = {}
    while (progress := _progress(trainer, steps, minutes)) < 1:
        record = trainer.train_step(progress)
        trainer.elapsed = before + time.monotonic() - started
        sums = {key: sums.get(key, 0.0) + value for key, value in record.items()}
        if trainer.step % options.log_every == 0:
            means = {key: value / options.log_every for key, value in sums.items()}
            log({"step": trainer.step, "minutes": trainer.elapsed / 60, **means})
            sums = {}
        if trainer.step % options.save_every == 0:
            trainer.save()
        if trainer.step % options.validate_every == 0:
            log({"step": trainer.step, **_short(trainer.validate())})
    trainer.elapsed = before + time.monotonic() - started
    trainer.save()
    dice = trainer.validate()
    log({"step": trainer.step, "finished": True, **dice})
    return dice


def _progress(trainer: Trainer, steps: int | None, minutes: float | None) -> float:
    by_step = trainer.step / steps if steps else 0.0
    by_time = trainer.elapsed / 60 / minutes if minutes else 0.0
    return max(by_step, by_time)


def _short(dice: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in dice.items() if key in ("five", "all", *FIVE)}
