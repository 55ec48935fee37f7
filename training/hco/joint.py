"""The joint model of eq. 8: one forward from scans to the loss over answers and organs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tumorchain_agent.model.template import IGNORED_LABEL
from tumorchain_agent.model.vision import VisionTower
from tumorchain_agent.training.hco.rows import Organs, Row
from tumorchain_agent.training.packing import packed_hidden

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM


@dataclass(frozen=True, eq=False)
class JointBatch:
    """Scans, the packed row of their conversations, and their organs for Cls."""

    row: Row
    organs: Organs
    volumes: Tensor | None = None
    """[scans, 1, 32, 256, 256] in [0, 1]; ``None`` when ``tokens`` are known because the encoder is frozen."""
    tokens: Tensor | None = None
    """[scans, 2048, C]."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Summed cross-entropies, so that a step's mean doesn't depend on how it was divided into batches."""

    text: Tensor
    text_tokens: int
    cls: Tensor
    organs: int

    def loss(self, alpha: float, text_tokens: int, organs: int) -> Tensor:
        """This batch's share of eq. 8, given the step's totals."""
        return self.text / max(text_tokens, 1) + alpha * self.cls / max(organs, 1)


class JointModel(nn.Module):
    """Vision tower and LLM behind one ``forward``, as a distributed engine wants it."""

    def __init__(self, tower: VisionTower, llm: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.tower, self.llm = tower, llm

    def forward(self, batch: JointBatch) -> Sums:
        """Vision tokens once per scan; from them τ_g, τ_l and Cls's means; then the LLM over the packed row."""
        tokens = self._tokens(batch).flatten(0, 1)
        row = batch.row
        embeds = self.llm.get_input_embeddings()(row.ids)
        evidence = mixed(tokens, row.cells, row.groups, row.weights, len(row.places))
        projected = self.tower.project(evidence).to(embeds.dtype)
        embeds = embeds.index_put((row.places,), projected)
        hidden = packed_hidden(self.llm, embeds[None], list(row.blocks))[0]
        text = self._text(hidden, row.labels)
        return Sums(text, row.text_tokens, self._cls(tokens, batch.organs), len(batch.organs.labels))

    def _tokens(self, batch: JointBatch) -> Tensor:
        if batch.tokens is not None:
            return batch.tokens.float()
        if batch.volumes is None:
            raise ValueError("a batch needs volumes or tokens")
        found: Tensor = self.tower.encoder(batch.volumes)
        return found.float()

    def _text(self, hidden: Tensor, labels: Tensor) -> Tensor:
        wanted = labels[1:]
        here = wanted != IGNORED_LABEL
        logits = self.llm.lm_head(hidden[:-1][here]).float()
        return F.cross_entropy(logits, wanted[here], reduction="sum")

    def _cls(self, tokens: Tensor, organs: Organs) -> Tensor:
        means = mixed(tokens, organs.cells, organs.groups, organs.weights, len(organs.labels))
        return F.cross_entropy(self.tower.classify(means).float(), organs.labels, reduction="sum")


def mixed(tokens: Tensor, cells: Tensor, groups: Tensor, weights: Tensor, count: int) -> Tensor:
    """[count, C] weighted sums of the vision tokens [scans · 2048, C]; differentiable."""
    picked = tokens[cells] * weights[:, None].to(tokens.dtype)
    empty = torch.zeros(count, tokens.shape[1], dtype=picked.dtype, device=tokens.device)
    return empty.index_add(0, groups, picked)
