"""One interface over a single process, several with whole copies (``plain``), and DeepSpeed's ZeRO-2 (``zero2``).

A step is any number of ``backward`` calls, equally many in each process, then ``step``. Gradients are summed over
calls and processes, so each loss is a share of the step's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tumorchain_agent.errors import InputError
from tumorchain_agent.training.hco.config import Stage, TrainConfig
from tumorchain_agent.training.hco.joint import JointBatch, JointModel, Sums
from tumorchain_agent.training.optimizer import MuonAdamW, split, trapezoid

if TYPE_CHECKING:
    from accelerate import Accelerator

ADAM_ONLY = ("place", "embed", "lm_head")
"""Muon leaves parameters to AdamW whose name holds one of these."""


def rate_share(stage: Stage, progress: float) -> float:
    """Share of the full learning rate at ``progress`` 0..1 of the stage."""
    if stage.schedule == "trapezoid":
        return trapezoid(progress, stage.warmup, stage.decay)
    if progress < stage.warmup:
        return progress / stage.warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - stage.warmup) / (1 - stage.warmup)))


def modules(model: JointModel, stage: Stage) -> Iterator[tuple[str, nn.Module, float]]:
    """(name, module, learning rate) of all; the dense heads go with the encoder."""
    rates = stage.rates
    yield "encoder", model.tower.encoder, rates.encoder
    yield "projector", model.tower.projector, rates.projector
    yield "cls", model.tower.cls, rates.cls
    yield "llm", model.llm, rates.llm
    if model.heads is not None:
        yield "heads", model.heads, rates.encoder


def freeze(model: JointModel, stage: Stage) -> None:
    """Let exactly what the stage trains ask for gradients.

    All is in training mode, in which a frozen LLM's layers can be recomputed too; nothing of it is random.
    """
    for _, module, rate in modules(model, stage):
        module.requires_grad_(rate > 0).train()


class Optimizers:
    """Optimizers that step together; each keeps its own full rate."""

    def __init__(self, model: JointModel, stage: Stage) -> None:
        self.muons: list[MuonAdamW] = []
        groups: list[dict[str, Any]] = []
        for name, module, rate in modules(model, stage):
            if rate == 0:
                continue
            named = list(module.named_parameters())
            if stage.optimizer == "muon" and name not in ("cls", "heads"):
                matrices, rest = split(named, adam=ADAM_ONLY)
                decay = stage.weight_decay
                self.muons.append(
                    MuonAdamW(matrices, rest, lr=rate, adam_lr=rate * stage.adam_share, weight_decay=decay)
                )
                continue
            scale = stage.adam_share if stage.optimizer == "muon" else 1.0
            groups += [
                {"params": [p for _, p in named if p.ndim > 1], "weight_decay": stage.weight_decay},
                {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
            ]
            for group in groups[-2:]:
                group |= {"lr": rate * scale, "full": rate * scale}
        groups = [group for group in groups if group["params"]]
        self.adam = torch.optim.AdamW(groups, betas=stage.betas) if groups else None

    def set_rate(self, share: float) -> None:
        for muon in self.muons:
            muon.set_rate(share)
        if self.adam is not None:
            _set_rates(self.adam.param_groups, share)

    def step(self) -> None:
        for muon in self.muons:
            muon.step()
        if self.adam is not None:
            self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        adam = None if self.adam is None else self.adam.state_dict()
        return {"muons": [muon.state_dict() for muon in self.muons], "adam": adam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for muon, each in zip(self.muons, state["muons"], strict=True):
            muon.load_state_dict(each)
        if self.adam is not None:
            self.adam.load_state_dict(state["adam"])


def _set_rates(groups: Sequence[dict[str, Any]], share: float) -> None:
    for group in groups:
        group["lr"] = group["full"] * share


class Engine:
    """``plain``: every process holds everything; gradients are summed over processes."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        self.model: JointModel
        self.optimizers: Optimizers
        self.parameters: list[nn.Parameter] = []

    @property
    def main(self) -> bool:
        return bool(self.rank == 0)

    def start(self, model: JointModel, stage: Stage) -> None:
        """Begin a stage: freeze, and make its optimizers."""
        freeze(model, stage)
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers = Optimizers(model, stage)

    def forward(self, batch: JointBatch) -> Sums:
        found: Sums = self.model(batch)
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, share: float) -> float:
        """Clip, update at ``share`` of the full rates; the gradients' norm. No update when that is no number."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        if self.world > 1:
            for grad in grads:
                torch.distributed.all_reduce(grad)
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.config.clip))
        if math.isfinite(norm):
            self.optimizers.set_rate(share)
            self.optimizers.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def end(self) -> None:
        """The stage is over; the model keeps what it learned."""

    def total(self, values: Sequence[float], *, largest: bool = False) -> list[float]:
        """Sums over processes, or the largest of each."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        operation = torch.distributed.ReduceOp.MAX if largest else torch.distributed.ReduceOp.SUM
        torch.distributed.all_reduce(found, operation)
        return [float(value) for value in found]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def save(self, folder: Path) -> None:
        """Write this process's part of the state."""
        if self.main:
            state = {"model": self.model.state_dict(), "optimizers": self.optimizers.state_dict()}
            with (folder / "state.pt").open("wb") as file:
                torch.save(state, file)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "state.pt", weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])


class ZeroEngine(Engine):
    """DeepSpeed ZeRO-2: gradients and optimizer states divided over processes; bf16 weights with fp32 masters."""

    def start(self, model: JointModel, stage: Stage) -> None:
        freeze(model, stage)
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = Optimizers(model, stage).adam
        self.engine, self.optimizer = self.accelerator.prepare(model, optimizer)

    def forward(self, batch: JointBatch) -> Sums:
        found: Sums = self.engine(batch)
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """DeepSpeed averages over processes, and here they are to be summed."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world)
        if not last:
            self.engine.step()

    def step(self, share: float) -> float:
        _set_rates(self.engine.optimizer.param_groups, share)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def end(self) -> None:
        self.accelerator.free_memory()
        del self.engine, self.optimizer

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="zero", save_latest=False)

    def load(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag="zero")


def build_engine(config: TrainConfig) -> Engine:
    """The engine of a configuration, for the processes that ``torchrun`` started, or for this one alone."""
    on_cuda = torch.cuda.is_available()
    if not on_cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import accelerate
    except ImportError as error:
        raise InputError("training needs accelerate: pip install 'tumorchain-agent[train]'") from error
    if config.engine == "plain":
        return Engine(config, accelerate.Accelerator(cpu=not on_cuda))
    return ZeroEngine(config, _zero_accelerator(config, on_cuda))


def _zero_accelerator(config: TrainConfig, on_cuda: bool) -> Accelerator:
    """accelerate chooses DeepSpeed by an environment variable, and no backend by itself where there is no GPU."""
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
    ):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29511")
    try:
        import deepspeed
    except ImportError as error:
        raise InputError("engine zero2 needs deepspeed: pip install 'tumorchain-agent[train]'") from error
    from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs

    # an operator for several processes on one CPU that is compiled at the first use, with a lock that a killed
    # process leaves behind; gloo does without
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = InitProcessGroupKwargs(backend="nccl" if on_cuda else "gloo")
    plugin = DeepSpeedPlugin(hf_ds_config=zero_settings(config))
    half = "bf16" if config.precision == "bf16" else "no"
    return Accelerator(deepspeed_plugin=plugin, kwargs_handlers=[backend], mixed_precision=half)


def zero_settings(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's configuration. Accumulation is told to it call by call, since rows of a step vary in number."""
    return {
        "train_micro_batch_size_per_gpu": config.batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip,
        "zero_optimization": {"stage": 2, "overlap_comm": False, "contiguous_gradients": True},
        "bf16": {"enabled": config.precision == "bf16"},
    }
