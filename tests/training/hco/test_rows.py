"""Packed rows and the joint model against each conversation by itself, through the path that inference takes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tumorchain_agent.errors import InputError
from tumorchain_agent.model.config import VisionConfig, VitConfig
from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.model.template import IGNORED_LABEL, Message, Part, labels, render, to_inputs
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.tools.roi import global_pool, mean_roi, roi_tokens
from tumorchain_agent.training.hco.joint import JointBatch, JointModel, Sums
from tumorchain_agent.training.hco.rows import (
    Evidence,
    Questions,
    Turn,
    best_fit,
    encode,
    make_organs,
    make_row,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUESTIONS = ("Is there a tumor?", "How large is the lesion of the liver?", "TNM stage?")
TEXTS = (
    *QUESTIONS,
    "The liver needs a closer look.",
    "Findings: a mass. Answer: liver.",
    "Answer: no tumor.",
)
ABNORMAL = ({"liver": 1, "stomach": 0}, {"liver": 0, "pancreas": 1})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_nano_tokenizer(list(TEXTS), vocabulary=300)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> JointModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_window_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llm = build_llm(llm_config("nano", tokenizer, **sizes, **heads, initializer_range=0.2))
    encoder = VitConfig(image_size=(32, 256, 256), width=16, mlp_width=32, layers=1, heads=2)
    return JointModel(VisionConfig(encoder=encoder, hidden_size=32).build(), llm)


@pytest.fixture
def coverages(rng: np.random.Generator) -> list[dict[str, NDArray[np.float32]]]:
    """A large organ, whose tokens are pooled, and a small one, in each of two scans."""
    found = []
    for small in ("stomach", "pancreas"):
        liver = np.zeros((8, 16, 16), np.float32)
        liver[2:6, 4:12, 3:9] = rng.uniform(0.1, 1, (4, 8, 6))
        other = np.zeros((8, 16, 16), np.float32)
        other[3, 8:10, 9:12] = rng.uniform(0.1, 1, (2, 3))
        found.append({"liver": liver, small: other})
    return found


def turns(number: int, organs: tuple[str, ...]) -> list[Turn]:
    first = [Turn("user", (Evidence(), QUESTIONS[number])), Turn("assistant", (TEXTS[3],))]
    shown = tuple(part for organ in organs for part in (f"look at {organ}", Evidence(organ)))
    return [*first, Turn("user", shown), Turn("assistant", (TEXTS[4 + number % 2],))]


def questions(
    coverages: list[dict[str, NDArray[np.float32]]], tokenizer: PreTrainedTokenizerFast
) -> list[Questions]:
    asked = (
        ((0, ("liver",)), (1, ("liver", "stomach")), (2, ("stomach",))),
        ((0, ("pancreas",)), (2, ("liver",))),
    )
    return [
        Questions(
            scan,
            tuple(
                encode(f"scan {scan} question {n}", turns(n, organs), coverages[scan], tokenizer)
                for n, organs in asked[scan]
            ),
            coverages[scan],
            ABNORMAL[scan],
        )
        for scan in range(2)
    ]


@cache
def volumes() -> Tensor:
    return torch.rand(2, 1, 32, 256, 256, generator=torch.Generator().manual_seed(7))


def alone(
    model: JointModel,
    tokens: Tensor,
    coverage: dict[str, NDArray[np.float32]],
    tokenizer: PreTrainedTokenizerFast,
    number: int,
    organs: tuple[str, ...],
) -> tuple[Tensor, int]:
    """Summed cross-entropy of one conversation, laid out as inference does, from its scan's tokens."""
    messages = []
    for turn in turns(number, organs):
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append(part)
            elif part.organ is None:
                parts.append(model.tower.project(global_pool(tokens)))
            else:
                parts.append(model.tower.project(roi_tokens(tokens, coverage[part.organ]).tokens))
        messages.append(Message(turn.role, tuple(parts)))
    pieces = render(messages, tokenizer, add_generation_prompt=False)
    inputs = to_inputs(pieces, model.llm.get_input_embeddings())
    logits = model.llm(inputs_embeds=inputs).logits[0, :-1]
    wanted = labels(pieces, tokenizer)[1:]
    here = wanted != IGNORED_LABEL
    return F.cross_entropy(logits[here], wanted[here], reduction="sum"), int(here.sum())


def losses_alone(
    model: JointModel, coverages: list[dict[str, NDArray[np.float32]]], tokenizer: PreTrainedTokenizerFast
) -> Sums:
    asked = (
        (0, 0, ("liver",)), (0, 1, ("liver", "stomach")), (0, 2, ("stomach",)),
        (1, 0, ("pancreas",)), (1, 2, ("liver",)),
    )  # fmt: skip
    tokens = [model.tower.encode(volumes()[scan : scan + 1])[0] for scan in range(2)]
    found = [alone(model, tokens[scan], coverages[scan], tokenizer, n, organs) for scan, n, organs in asked]
    cls = torch.zeros(())
    for scan, truth in enumerate(ABNORMAL):
        for organ, label in truth.items():
            logits = model.tower.classify(mean_roi(tokens[scan], coverages[scan][organ]))
            cls = cls + F.cross_entropy(logits[None], torch.tensor([label]))
    return Sums(torch.stack([text for text, _ in found]).sum(), sum(count for _, count in found), cls, 4)


def packed(model: JointModel, asked: list[Questions], capacity: int) -> Sums:
    """All rows of a step, summed."""
    found = []
    for k, row in enumerate(best_fit(asked, capacity)):
        organs = make_organs(asked if k == 0 else [])
        found.append(model(JointBatch(make_row(row), organs, volumes=volumes())))
    text, cls = (torch.stack([getattr(s, name) for s in found]).sum() for name in ("text", "cls"))
    return Sums(text, sum(s.text_tokens for s in found), cls, sum(s.organs for s in found))


@pytest.mark.parametrize("capacity", [600, 5000])
def test_packed_loss_and_gradients_are_those_of_every_conversation_alone(
    capacity: int,
    model: JointModel,
    coverages: list[dict[str, NDArray[np.float32]]],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    asked = questions(coverages, tokenizer)
    ours, theirs = packed(model, asked, capacity), losses_alone(model, coverages, tokenizer)
    assert (ours.text_tokens, ours.organs) == (theirs.text_tokens, theirs.organs)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for sums in (ours, theirs):
        loss = sums.loss(1.0, sums.text_tokens, sums.organs)
        gradients.append((loss, torch.autograd.grad(loss, parameters, allow_unused=True)))
    (loss, packed_grads), (expected, single_grads) = gradients
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(packed_grads, single_grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.allclose(a, b, atol=2e-4 * float(b.abs().max()) + 1e-6)


def test_questions_about_a_scan_share_its_tokens_and_rows_are_filled_to_the_brim(
    coverages: list[dict[str, NDArray[np.float32]]], tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = questions(coverages, tokenizer)
    single = sum(len(encoded.ids) for item in asked for encoded in item.encoded)
    row = make_row(asked)
    assert len(row.ids) == single - 2 * asked[0].trunk - asked[1].trunk
    assert sum(block.length for block in row.blocks) == len(row.ids)
    rows = best_fit(asked, 600)
    assert len(rows) > 1
    assert all(sum(map(len, items)) <= 600 for items in rows)
    named = sorted(e.name for items in rows for item in items for e in item.encoded)
    assert named == sorted(e.name for item in asked for e in item.encoded)


def test_a_conversation_longer_than_a_row_is_named(
    coverages: list[dict[str, NDArray[np.float32]]], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        InputError, match=r"scan 0 question 0 has \d+ positions and a row 300; raise row_tokens"
    ):
        best_fit(questions(coverages, tokenizer), 300)


def test_an_organ_that_the_label_map_lacks_is_named(
    coverages: list[dict[str, NDArray[np.float32]]], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InputError, match="patient-7 shows esophagus, which its label map doesn't hold"):
        encode("patient-7", turns(0, ("esophagus",)), coverages[0], tokenizer)
