"""Second stage of the curriculum: projector and LLM on interleaved rounds (eq. 3), with the loss of eq. 8."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from tumorchain_agent.model.template import (
    IGNORED_LABEL,
    EmbedsPiece,
    Message,
    Part,
    Piece,
    TokenPiece,
    labels,
    render,
)
from tumorchain_agent.model.vision import VisionTower
from tumorchain_agent.model.wording import absent_text, attention_text
from tumorchain_agent.training.atomic import save_torch
from tumorchain_agent.training.cases import TokenCase
from tumorchain_agent.training.phantom.text import Sample, compose
from tumorchain_agent.training.vision_stage import cls_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

log = logging.getLogger(__name__)

SUBTASK_ODDS = {
    "organ": 5.0, "tumor_position": 4.0, "report": 4.0, "segment": 1.5, "shape": 1.0, "boundary": 1.0, "density": 1.0,
    "count": 1.0, "others": 1.0, "tumor": 1.5, "node": 1.0, "metastasis": 1.0,
}  # fmt: skip


class LLMStageConfig(BaseModel):
    """``minutes`` of wall time; the learning rate follows a cosine over them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = 25.0
    batch: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    alpha: float = 1.0
    """Weight of Cls's cross-entropy in eq. 8."""
    feature_dropout: float = 0.0
    seed: int = 0
    save_every_s: float = 120.0


@dataclass(frozen=True)
class Encoded:
    """A sample as one row of positions: ids where text stands, and where which evidence is spliced in."""

    ids: Tensor
    """int64 [n]; 0 where evidence stands."""
    labels: Tensor
    evidence: tuple[tuple[int, Tensor], ...]
    """(first position, [k, C] tokens before the projector)."""
    means: Tensor
    """[organs, C] for Cls."""
    abnormal: Tensor
    """[organs] 0 or 1."""


def conversation(case: TokenCase, sample: Sample) -> list[Message]:
    """The chat of a sample, turn by turn as the graph lays it out (eq. 4, 6); evidence is still in width C."""
    turns = [Message("user", (case.whole, sample.question))]
    for k, text in enumerate(sample.texts):
        if k:
            turns.append(Message("user", tuple(_evidence_parts(case, sample.organs[k]))))
        turns.append(Message("assistant", (text,)))
    return turns


def _evidence_parts(case: TokenCase, organs: tuple[str, ...]) -> Iterator[Part]:
    for organ in organs:
        if organ in case.roi:
            yield attention_text(organ)
            yield case.roi[organ]
        else:
            yield absent_text(organ)


def encode(case: TokenCase, sample: Sample, tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Render a sample with the one template that inference uses."""
    pieces: list[Piece] = render(conversation(case, sample), tokenizer, add_generation_prompt=False)
    ids: list[int] = []
    evidence = []
    for piece in pieces:
        if isinstance(piece, EmbedsPiece):
            evidence.append((len(ids), piece.embeds))
            ids += [0] * len(piece)
        elif isinstance(piece, TokenPiece):
            ids += piece.ids
    organs = list(case.means)
    abnormal = torch.tensor([int(o in case.truth.abnormal_organs) for o in organs])
    means = torch.stack([case.means[o] for o in organs])
    return Encoded(torch.tensor(ids), labels(pieces, tokenizer), tuple(evidence), means, abnormal)


def sample_stream(
    cases: list[TokenCase], tokenizer: PreTrainedTokenizerFast, seed: int, batch: int
) -> Iterator[list[Encoded]]:
    """Endless batches of similar length; questions and wordings are drawn anew for every visit."""
    rng = np.random.default_rng([11, seed])
    names = list(SUBTASK_ODDS)
    odds = np.array(list(SUBTASK_ODDS.values()))
    while True:
        group = []
        for i in rng.integers(len(cases), size=8 * batch):
            case = cases[int(i)]
            subtask = str(rng.choice(names, p=odds / odds.sum()))
            group.append(encode(case, compose(rng, case.truth, subtask, case.suspicion), tokenizer))
        group.sort(key=lambda e: len(e.ids))
        for k in rng.permutation(8):
            yield group[k * batch : (k + 1) * batch]


def text_loss(llm: Qwen2ForCausalLM, tower: VisionTower, batch: list[Encoded]) -> Tensor:
    """First term of eq. 8: cross-entropy of the assistants' tokens, mean over tokens."""
    length = max(len(e.ids) for e in batch)
    table = llm.get_input_embeddings()
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    target = torch.full((len(batch), length), IGNORED_LABEL)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    for row, item in enumerate(batch):
        n = len(item.ids)
        ids[row, :n], target[row, :n], mask[row, :n] = item.ids, item.labels, 1
    embeds = table(ids)
    tokens = torch.cat([t.float() for item in batch for _, t in item.evidence])
    projected = tower.project(tokens).to(embeds.dtype)
    rows, columns = _positions(batch)
    embeds = embeds.index_put((rows, columns), projected)
    hidden = llm.model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    wanted = target[:, 1:]
    here = wanted != IGNORED_LABEL
    return F.cross_entropy(llm.lm_head(hidden[here]).float(), wanted[here])


def _positions(batch: list[Encoded]) -> tuple[Tensor, Tensor]:
    rows, columns = [], []
    for row, item in enumerate(batch):
        for start, tokens in item.evidence:
            rows.append(torch.full((len(tokens),), row))
            columns.append(torch.arange(start, start + len(tokens)))
    return torch.cat(rows), torch.cat(columns)


def train_llm(
    config: LLMStageConfig,
    llm: Qwen2ForCausalLM,
    tower: VisionTower,
    tokenizer: PreTrainedTokenizerFast,
    cases: list[TokenCase],
    held_out: list[TokenCase],
    out: Path,
) -> None:
    """Train LLM, projector and Cls in place; the encoder's tokens are cached in ``cases``. Saves ``out/llm.pt``."""
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    parameters = [*llm.parameters(), *tower.projector.parameters(), *tower.cls.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    start = saved = time.monotonic()
    running = 0.0
    for step, batch in enumerate(sample_stream(cases, tokenizer, config.seed, config.batch), 1):
        progress = min((time.monotonic() - start) / (config.minutes * 60), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(
                progress / config.warmup + 0.02, 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3
            )
        loss, text = joint_loss(config, llm, tower, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        running = 0.97 * (running or text) + 0.03 * text
        now = time.monotonic()
        if step % 50 == 0:
            log.info("step %d, %.1f min, text loss %.4f", step, (now - start) / 60, running)
        if progress >= 1 or now - saved > config.save_every_s:
            save_torch({"llm": llm.state_dict(), "tower": tower.state_dict()}, out / "llm.pt")
            saved = now
            log.info("held-out text loss %.4f", held_out_loss(config, llm, tower, tokenizer, held_out))
        if progress >= 1:
            return


def joint_loss(
    config: LLMStageConfig, llm: Qwen2ForCausalLM, tower: VisionTower, batch: list[Encoded]
) -> tuple[Tensor, float]:
    """L_total of eq. 8 and its text part as a number."""
    with torch.autocast("cpu", torch.bfloat16):
        text = text_loss(llm, tower, batch)
    means = torch.cat([e.means for e in batch])
    loss = text + config.alpha * cls_loss(
        tower.classify(means)[None], torch.cat([e.abnormal for e in batch])[None]
    )
    return loss, text.item()


@torch.no_grad()
def held_out_loss(
    config: LLMStageConfig,
    llm: Qwen2ForCausalLM,
    tower: VisionTower,
    tokenizer: PreTrainedTokenizerFast,
    cases: list[TokenCase],
) -> float:
    """Text loss on patients that weren't trained on."""
    llm.train(False)
    stream = sample_stream(cases, tokenizer, 10_000, config.batch)
    values = [joint_loss(config, llm, tower, next(stream))[1] for _ in range(4)]
    llm.train()
    return float(np.mean(values))
