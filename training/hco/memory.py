"""The memory that a training takes on each device, by ZeRO-2's arithmetic, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tumorchain_agent.model.config import VisionConfig
from tumorchain_agent.model.llm import build_llm, parameter_count
from tumorchain_agent.training.hco.config import Stage, TrainConfig
from tumorchain_agent.training.hco.sizes import sizes_of

if TYPE_CHECKING:
    from transformers import Qwen2Config

GIB = 2**30
BUCKET = 500_000_000
"""Elements of DeepSpeed's buffer for gradients on their way, at most."""
LABELLED = 0.25
"""Share of a row's positions that are answers, on whose logits the loss is taken."""
LONGEST = 2048
"""Keys that a position of a row may see: its conversation, not the row."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device in a stage."""

    stage: str
    parameters: int
    trained: int
    weights: float
    gradients: float
    optimizer: float
    bucket: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        parts = (self.weights, self.gradients, self.optimizer, self.bucket, self.activations, self.logits)
        return sum(parts)


def plan(config: TrainConfig, devices: int) -> list[Memory]:
    """A Memory for each stage.

    Weights lie whole on every device. Under ``zero2`` gradients (2 bytes a parameter in bf16) and the optimizer's
    states (4 bytes master copy, 8 bytes AdamW moments) are divided over devices; under ``plain`` they aren't, and
    weights are fp32.
    """
    sizes, _ = sizes_of(config.model)
    counts = module_counts(config)
    return [_of_stage(config, stage, sizes, counts, devices) for stage in config.stages]


def module_counts(config: TrainConfig) -> dict[str, int]:
    """Parameters of each module, without allocating them."""
    sizes, encoder = sizes_of(config.model)
    llm = build_llm(sizes, device="meta")
    with torch.device("meta"):
        tower = VisionConfig(encoder=encoder, hidden_size=sizes.hidden_size).build()
    parts = {"encoder": tower.encoder, "projector": tower.projector, "cls": tower.cls, "llm": llm}
    return {name: parameter_count(module.parameters()) for name, module in parts.items()}


def _of_stage(
    config: TrainConfig, stage: Stage, sizes: Qwen2Config, counts: dict[str, int], devices: int
) -> Memory:
    rates = stage.rates.model_dump()
    everything = sum(counts.values())
    trained = sum(count for name, count in counts.items() if rates[name] > 0)
    sharded = devices if config.engine == "zero2" else 1
    half = config.engine == "zero2" and config.precision == "bf16"
    width = 2 if half else 4
    text = stage.form != "vision"
    return Memory(
        stage=stage.name,
        parameters=everything,
        trained=trained,
        weights=width * everything,
        gradients=width * trained / sharded,
        optimizer=(12 if half else 8) * trained / sharded,
        bucket=width * min(BUCKET, trained) if config.engine == "zero2" else 0,
        activations=_activations(config, sizes) if text else 0,
        logits=LABELLED * config.row_tokens * sizes.vocab_size * (2 + 4 + 4) if text else 0,
    )


def _activations(config: TrainConfig, sizes: Qwen2Config) -> float:
    """Of a row of ``row_tokens``: each layer's input, and all inside one layer (every layer without checkpointing).

    Inside a layer: about 10 hidden widths (norms, queries, keys, values, output, residuals), 3 of the MLP's, and
    the attention's scores and shares of each head over at most ``LONGEST`` keys.
    """
    row, width = config.row_tokens, 2 if config.precision == "bf16" else 4
    layers = sizes.num_hidden_layers
    inside = row * width * (10 * sizes.hidden_size + 3 * sizes.intermediate_size)
    inside += 2 * row * min(row, LONGEST) * sizes.num_attention_heads * width
    kept = row * width * sizes.hidden_size * layers
    return float(kept + inside if config.checkpointing else kept + inside * layers)


def plan_text(config: TrainConfig, devices: int) -> str:
    """The plan for ``devices``, and for what this machine has, as tables."""
    here, name, room = this_machine()
    parts = [
        f"{config.model.size}: "
        + ", ".join(f"{part} {count:,}" for part, count in module_counts(config).items())
        + f"; engine {config.engine}, {config.precision}, rows of {config.row_tokens} tokens, "
        + f"checkpointing {'on' if config.checkpointing else 'off'}",
        table(plan(config, devices), f"{devices} devices"),
        table(plan(config, here), f"this machine: {here} × {name}, {room / GIB:.1f} GiB each"),
    ]
    largest = max(memory.total for memory in plan(config, here))
    fits = "fits" if largest <= room else "does not fit"
    return "\n\n".join(parts) + f"\n\n{largest / GIB:.1f} GiB {fits} into {room / GIB:.1f} GiB."


def this_machine() -> tuple[int, str, float]:
    """(devices, name, bytes of each)."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return torch.cuda.device_count(), str(found.name), float(found.total_memory)
    import psutil

    return 1, "CPU", float(psutil.virtual_memory().total)


def table(memories: list[Memory], title: str) -> str:
    """GiB for each device, stage by stage, as Markdown."""
    columns = ("weights", "gradients", "optimizer", "bucket", "activations", "logits", "total")
    lines = [f"{title}; GiB for each device", ""]
    lines.append("| stage | trained | " + " | ".join(columns) + " |")
    lines.append("| --- | --: |" + " --: |" * len(columns))
    for memory in memories:
        values = " | ".join(f"{getattr(memory, name) / GIB:.2f}" for name in columns)
        lines.append(f"| {memory.stage} | {memory.trained / memory.parameters:.0%} | {values} |")
    return "\n".join(lines)
