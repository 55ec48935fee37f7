"""First rounds drawn from the model itself, on the weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tumorchain_agent.model.generate import Decoder, Sampling
from tumorchain_agent.model.template import RESERVED, Message, render
from tumorchain_agent.tools.roi import global_pool
from tumorchain_agent.training.hco.joint import JointModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@torch.no_grad()
def first_rounds(
    model: JointModel,
    tokenizer: PreTrainedTokenizerFast,
    tokens: Tensor,
    questions: Sequence[str],
    samplings: Sequence[Sampling],
) -> list[str]:
    """What the model says to each question about one scan, from its vision tokens [2048, C] alone (eq. 4).

    The scan's part of the prompt is read once for all questions.
    """
    training = model.llm.training
    model.llm.train(False)
    try:
        evidence = _projected(model, tokens)
        decoder = Decoder(model.llm, tokenizer, conversations=1)
        said = []
        for question, sampling in zip(questions, samplings, strict=True):
            pieces = render([Message("user", (evidence, question))], tokenizer, add_generation_prompt=True)
            ids = [token for token in decoder.start(pieces, sampling) if token not in decoder.end_ids]
            said.append(_plain(str(tokenizer.decode(ids, skip_special_tokens=True))))
        return said
    finally:
        model.llm.train(training)


def _projected(model: JointModel, tokens: Tensor) -> Tensor:
    weight = model.tower.projector[0].weight
    return model.tower.project(global_pool(tokens).to(weight.dtype))  # type: ignore[arg-type]


def _plain(text: str) -> str:
    for token in RESERVED:
        text = text.replace(token, "")
    return text.strip()
