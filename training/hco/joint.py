"""The joint model of eq. 8: one forward from scans to the loss over answers, organs and patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tumorchain_agent.model.template import IGNORED_LABEL
from tumorchain_agent.model.vision import VisionTower
from tumorchain_agent.training.hco.dense import DenseHeads, DenseTargets
from tumorchain_agent.training.hco.rows import Organs, Row
from tumorchain_agent.training.packing import packed_hidden

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM


@dataclass(frozen=True, eq=False)
class JointBatch:
    """Scans, the packed row of their conversations, and their organs for Cls."""

    row: Row | None
    """``None`` where only the vision tower is trained."""
    organs: Organs
    volumes: Tensor | None = None
    """[scans and crops, 1, 32, 256, 256] in [0, 1], whole scans first; ``None`` when ``tokens`` are known because the
    encoder is frozen."""
    tokens: Tensor | None = None
    """[scans and crops, 2048, C]."""
    dense: DenseTargets | None = None


@dataclass(frozen=True, eq=False)
class Sums:
    """Summed cross-entropies, so that a step's mean doesn't depend on how it was divided into batches."""

    text: Tensor
    text_tokens: int
    cls: Tensor
    organs: int
    dense: Tensor | None = None
    scans: int = 0

    def loss(self, alpha: float, text_tokens: int, organs: int, dense: float = 0.0, scans: int = 0) -> Tensor:
        """This batch's share of eq. 8 (and of dense supervision by its weight), given the step's totals."""
        total = self.text / max(text_tokens, 1) + alpha * self.cls / max(organs, 1)
        return total if self.dense is None else total + dense * self.dense / max(scans, 1)


class JointModel(nn.Module):
    """Vision tower, LLM and heads behind one ``forward``, as a distributed engine wants it.

    With ``autocast`` matrix products of fp32 weights are taken in that type; bf16 weights need none.
    """

    def __init__(
        self,
        tower: VisionTower,
        llm: Qwen2ForCausalLM,
        heads: DenseHeads | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.tower, self.llm, self.heads = tower, llm, heads
        self.autocast = autocast

    def forward(self, batch: JointBatch) -> Sums:
        """Vision tokens once per scan; from them τ_g, τ_l and Cls's means; then the LLM over the packed row."""
        kind = self.llm.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            tokens = self.tokens(batch)
            flat = tokens.flatten(0, 1)
            text, count = flat.new_zeros(()), 0
            if batch.row is not None:
                text, count = self._text(flat, batch.row), batch.row.text_tokens
            cls = self.cls_loss(flat, batch.organs)
            dense, scans = None, 0
            if self.heads is not None and batch.dense is not None:
                seen = _like(tokens[: len(batch.dense.counted)], self.heads)
                dense, scans = self.heads(seen, batch.dense), int(batch.dense.counted.sum())
        return Sums(text, count, cls, len(batch.organs.labels), dense, scans)

    def tokens(self, batch: JointBatch) -> Tensor:
        """[scans, 2048, C] float32."""
        if batch.tokens is not None:
            return batch.tokens.float()
        if batch.volumes is None:
            raise ValueError("a batch needs volumes or tokens")
        return self.encode(batch.volumes)

    def encode(self, volumes: Tensor) -> Tensor:
        """Vision tokens [B, 2048, C], float32, as ``forward`` takes them from volumes [B, 1, 32, 256, 256]."""
        kind = self.llm.device.type
        with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            found: Tensor = self.tower.encoder(_like(volumes, self.tower.encoder))
        return found.float()

    def embeds(self, tokens: Tensor, row: Row) -> Tensor:
        """What the LLM reads, [positions, hidden]: text, and evidence mixed from vision tokens [scans · 2048, C]."""
        embeds = self.llm.get_input_embeddings()(row.ids)
        evidence = mixed(tokens, row.cells, row.groups, row.weights, len(row.places))
        projected = self.tower.project(_like(evidence, self.tower.projector)).to(embeds.dtype)
        placed: Tensor = embeds.index_put((row.places,), projected)
        return placed

    def _text(self, tokens: Tensor, row: Row) -> Tensor:
        hidden = packed_hidden(self.llm, self.embeds(tokens, row)[None], list(row.blocks))[0]
        wanted = row.labels[1:]
        here = wanted != IGNORED_LABEL
        logits = self.llm.lm_head(hidden[:-1][here]).float()
        return F.cross_entropy(logits, wanted[here], reduction="sum")

    def cls_loss(self, tokens: Tensor, organs: Organs) -> Tensor:
        """Summed cross-entropy of Cls over organs, from vision tokens [scans · 2048, C]."""
        means = mixed(tokens, organs.cells, organs.groups, organs.weights, len(organs.labels))
        logits = self.tower.classify(_like(means, self.tower.cls))
        return F.cross_entropy(logits.float(), organs.labels, reduction="sum")


def _like(values: Tensor, module: nn.Module) -> Tensor:
    """In the type of a module's weights."""
    return values.to(next(module.parameters()).dtype)


def mixed(tokens: Tensor, cells: Tensor, groups: Tensor, weights: Tensor, count: int) -> Tensor:
    """[count, C] weighted sums of the vision tokens [scans · 2048, C]; differentiable."""
    picked = tokens[cells] * weights[:, None].to(tokens.dtype)
    empty = torch.zeros(count, tokens.shape[1], dtype=picked.dtype, device=tokens.device)
    return empty.index_add(0, groups, picked)
