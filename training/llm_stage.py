"""Second stage of the curriculum: projector and LLM on interleaved rounds (eq. 3), with the loss of eq. 8."""

from __future__ import annotations

import logging
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
from tumorchain_agent.model.wording import absent_text, attention_text, zoom_text
from tumorchain_agent.training.atomic import save_torch
from tumorchain_agent.training.cases import TokenCase
from tumorchain_agent.training.modes import Mode, ModeOdds
from tumorchain_agent.training.optimizer import MuonAdamW, split, trapezoid
from tumorchain_agent.training.packing import Block, packed_hidden
from tumorchain_agent.training.phantom.text import Sample, compose
from tumorchain_agent.training.tasks import SUBTASK_ODDS
from tumorchain_agent.training.vision_stage import cls_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

log = logging.getLogger(__name__)


class LLMStageConfig(BaseModel):
    """``minutes`` of wall time; the learning rate rises, stays, and falls over them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    minutes: float = 25.0
    patients: int = 6
    """Patients a step, each with ``questions`` questions that share its tokens of the whole scan."""
    questions: int = 4
    lr: float = 4e-3
    """Of Muon, for the matrices of LLM and projector; ``adam_lr`` for embeddings, norms and Cls."""
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    decay: float = 0.6
    """Last share of the run, over which the rate falls linearly to 0."""
    alpha: float = 1.0
    """Weight of Cls's cross-entropy in eq. 8."""
    modes: ModeOdds = ModeOdds()
    """With and without IIR and CoT, all in one model: the ablation is one of inference on the same weights."""
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
            if organ in case.zoomed:
                side_mm, tokens = case.zoomed[organ]
                yield zoom_text(organ, side_mm)
                yield tokens
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


Group = list[Encoded]
"""Questions about one patient: their first ``trunk`` positions are the same."""


def sample_stream(
    cases: list[TokenCase],
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    patients: int,
    questions: int,
    modes: ModeOdds | None = None,
) -> Iterator[list[Group]]:
    """Endless batches of ``patients`` groups; questions, modes and wordings are drawn anew for every visit."""
    modes = modes or ModeOdds()
    rng = np.random.default_rng([11, seed])
    names = list(SUBTASK_ODDS)
    odds = np.array(list(SUBTASK_ODDS.values()))
    while True:
        order = rng.permutation(len(cases))
        for chosen in order[: len(cases) // patients * patients].reshape(-1, patients):
            groups = []
            for i in chosen:
                case = cases[int(i)]
                subtasks = rng.choice(names, size=questions, p=odds / odds.sum())
                samples = [_composed(rng, case, str(s), modes.draw(rng)) for s in subtasks]
                groups.append([encode(case, sample, tokenizer) for sample in samples])
            yield groups


def _composed(rng: np.random.Generator, case: TokenCase, subtask: str, mode: Mode) -> Sample:
    return compose(rng, case.truth, subtask, case.suspicion, iir=mode.iir, cot=mode.cot)


@dataclass(frozen=True)
class Row:
    """Groups laid end to end: what ``packing`` needs, and what the loss is taken on."""

    ids: Tensor
    labels: Tensor
    blocks: list[Block]
    evidence: list[tuple[int, Tensor]]

    @classmethod
    def of(cls, groups: list[Group]) -> Row:
        ids: list[Tensor] = []
        labels: list[Tensor] = []
        blocks: list[Block] = []
        evidence: list[tuple[int, Tensor]] = []
        length = 0
        for group in groups:
            trunk, number = _common(group), len(blocks)
            for item, first, last in [(group[0], 0, trunk), *((i, trunk, len(i.ids)) for i in group)]:
                blocks.append(Block(last - first, number if first else None))
                ids.append(item.ids[first:last])
                labels.append(item.labels[first:last])
                evidence += [(length + at - first, t) for at, t in item.evidence if first <= at < last]
                length += last - first
        return cls(torch.cat(ids), torch.cat(labels), blocks, evidence)


def _common(group: Group) -> int:
    """How many first positions all samples of a group share: up to the end of τ_g, the first evidence."""
    at, tokens = group[0].evidence[0]
    return at + len(tokens)


def text_loss(llm: Qwen2ForCausalLM, tower: VisionTower, groups: list[Group]) -> Tensor:
    """First term of eq. 8: cross-entropy of the assistants' tokens, mean over tokens."""
    row = Row.of(groups)
    embeds = llm.get_input_embeddings()(row.ids)
    projected = tower.project(torch.cat([t.float() for _, t in row.evidence])).to(embeds.dtype)
    places = torch.cat([torch.arange(at, at + len(t)) for at, t in row.evidence])
    embeds = embeds.index_put((places,), projected)
    hidden = packed_hidden(llm, embeds[None], row.blocks)[0, :-1]
    wanted = row.labels[1:]
    here = wanted != IGNORED_LABEL
    return F.cross_entropy(llm.lm_head(hidden[here]).float(), wanted[here])


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
    optimizer = _optimizer(config, llm, tower)
    start = saved = time.monotonic()
    running = 0.0
    for step, batch in enumerate(
        sample_stream(cases, tokenizer, config.seed, config.patients, config.questions, config.modes), 1
    ):
        progress = min((time.monotonic() - start) / (config.minutes * 60), 1.0)
        optimizer.set_rate(trapezoid(progress, config.warmup, config.decay))
        loss, text = joint_loss(config, llm, tower, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
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


def _optimizer(config: LLMStageConfig, llm: Qwen2ForCausalLM, tower: VisionTower) -> MuonAdamW:
    matrices, rest = split([*llm.named_parameters(), *tower.projector.named_parameters()], adam=("embed",))
    return MuonAdamW(
        matrices,
        [*rest, *tower.cls.named_parameters()],
        lr=config.lr,
        adam_lr=config.adam_lr,
        weight_decay=config.weight_decay,
    )


def joint_loss(
    config: LLMStageConfig, llm: Qwen2ForCausalLM, tower: VisionTower, groups: list[Group]
) -> tuple[Tensor, float]:
    """L_total of eq. 8 and its text part as a number."""
    with torch.autocast("cpu", torch.bfloat16):
        text = text_loss(llm, tower, groups)
    means = torch.cat([group[0].means for group in groups])
    abnormal = torch.cat([group[0].abnormal for group in groups])
    loss = text + config.alpha * cls_loss(tower.classify(means)[None], abnormal[None])
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
    stream = sample_stream(cases, tokenizer, 10_000, config.patients, config.questions, config.modes)
    values = [joint_loss(config, llm, tower, next(stream))[1] for _ in range(4)]
    llm.train()
    return float(np.mean(values))
