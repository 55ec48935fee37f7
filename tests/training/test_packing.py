"""Packed rows compute what each sample would alone: states, loss and gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.training.optimizer import MuonAdamW, split, trapezoid
from tumorchain_agent.training.packing import Block, packed_hidden, position_ids

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

TRUNKS, BRANCHES = (7, 4), ((3, 5, 1), (6, 2))
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 50}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": 3}


@pytest.fixture
def llm() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return build_llm(llm_config("nano", **SIZES, **HEADS, initializer_range=0.3))


def parts() -> tuple[list[Tensor], list[list[Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    trunks = [torch.randn(n, 32, generator=generator) for n in TRUNKS]
    return trunks, [[torch.randn(n, 32, generator=generator) for n in lengths] for lengths in BRANCHES]


def row() -> tuple[Tensor, list[Block]]:
    trunks, branches = parts()
    pieces: list[Tensor] = []
    blocks: list[Block] = []
    for trunk, group in zip(trunks, branches, strict=True):
        number = len(blocks)
        blocks += [Block(len(trunk)), *(Block(len(branch), number) for branch in group)]
        pieces += [trunk, *group]
    return torch.cat(pieces)[None], blocks


def alone(llm: Qwen2ForCausalLM) -> Tensor:
    """States of the same row from every trunk and every trunk + branch by itself."""
    trunks, branches = parts()
    states = []
    for trunk, group in zip(trunks, branches, strict=True):
        states.append(llm.model(inputs_embeds=trunk[None]).last_hidden_state[0])
        for branch in group:
            both = torch.cat([trunk, branch])[None]
            states.append(llm.model(inputs_embeds=both).last_hidden_state[0, len(trunk) :])
    return torch.cat(states)


def gradients(llm: Qwen2ForCausalLM, states: Tensor) -> list[Tensor]:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((states * weights).sum(), list(llm.model.layers.parameters()))
    return list(found)


def test_a_packed_row_gives_each_samples_own_states(llm: Qwen2ForCausalLM) -> None:
    embeds, blocks = row()
    assert torch.allclose(packed_hidden(llm, embeds, blocks)[0], alone(llm), atol=2e-5)


def test_a_packed_row_gives_each_samples_own_gradients(llm: Qwen2ForCausalLM) -> None:
    embeds, blocks = row()
    packed, single = gradients(llm, packed_hidden(llm, embeds, blocks)[0]), gradients(llm, alone(llm))
    for ours, theirs in zip(packed, single, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()) + 1e-6)


def test_a_branch_counts_positions_on_from_its_trunk() -> None:
    blocks = [Block(3), Block(2, 0), Block(1, 0), Block(2), Block(2, 3)]
    assert position_ids(blocks).tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 3]]


def test_packing_leaves_the_llm_as_it_was(llm: Qwen2ForCausalLM) -> None:
    before = llm.config._attn_implementation
    embeds, blocks = row()
    packed_hidden(llm, embeds, blocks)
    assert llm.config._attn_implementation == before


def test_muon_takes_matrices_and_convolutions_whatever_their_memory_format() -> None:
    torch.manual_seed(3)
    plain = torch.nn.Conv3d(4, 8, 3)
    last = torch.nn.Conv3d(4, 8, 3)
    last.load_state_dict(plain.state_dict())
    last = last.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    volume = torch.randn(2, 4, 5, 5, 5)
    for module in (plain, last):
        matrices, rest = split(module.named_parameters())
        assert [name for name, _ in matrices] == ["weight"]
        assert [name for name, _ in rest] == ["bias"]
        optimizer = MuonAdamW(matrices, rest, lr=0.1, adam_lr=0.1)
        before = module.weight.detach().clone()
        module(volume).square().sum().backward()
        optimizer.step()
        assert not torch.allclose(module.weight, before)
    assert torch.allclose(plain.state_dict()["bias"], last.state_dict()["bias"], atol=1e-5)


def test_an_optimizer_goes_on_where_its_state_was_saved() -> None:
    def train(steps: tuple[int, ...]) -> Tensor:
        torch.manual_seed(4)
        module, inputs = torch.nn.Linear(6, 3), torch.randn(20, 6)
        optimizer = MuonAdamW(*split(module.named_parameters()), lr=0.05, adam_lr=0.05)
        for count in steps:
            state = optimizer.state_dict()
            optimizer = MuonAdamW(*split(module.named_parameters()), lr=0.05, adam_lr=0.05)
            optimizer.load_state_dict(state)
            for _ in range(count):
                optimizer.zero_grad()
                module(inputs).square().mean().backward()
                optimizer.step()
        return module.weight.detach()

    assert torch.equal(train((6,)), train((2, 4)))


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [trapezoid(p, warmup=0.1, decay=0.5) for p in (0.0, 0.05, 0.2, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.01, 0.51, 1.0, 1.0, 0.501, 0.001])
