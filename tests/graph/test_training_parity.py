"""A TumorChain LLM is asked in exactly the messages that it is trained with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import torch

from tests.graph.fakes import HIDDEN, IDS, SIDE_MM, FakeCT, ScriptedModel
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.run import ask
from tumorchain_agent.model.chat import to_messages
from tumorchain_agent.model.template import Message
from tumorchain_agent.training.llm_stage import conversation

TEXTS = ("See the liver and the esophagus.", "See the colon.", "Done.")
QUESTION = "What is wrong?"


def asked(zoomed: tuple[str, ...], zoom: bool | None) -> list[Message]:
    async def scenario() -> list[Message]:
        model = ScriptedModel(replies=list(TEXTS))
        async with connect(FakeCT(zoomed=zoomed).server()) as client:
            await ask(client, model, "ct", QUESTION, checkpoint_db=None, zoom=zoom)
        return to_messages(model.calls[-1])

    return anyio.run(scenario)


def trained(zoomed: tuple[str, ...]) -> list[Message]:
    roi = {organ: torch.full((1, HIDDEN), float(IDS[organ])) for organ in ("liver", "colorectum")}
    closer = {organ: (SIDE_MM, torch.full((2, HIDDEN), IDS[organ] + 0.5)) for organ in zoomed}
    case: Any = SimpleNamespace(whole=torch.zeros(2, HIDDEN), roi=roi, zoomed=closer)
    organs = ((), ("liver", "esophagus"), ("colorectum",))
    sample: Any = SimpleNamespace(question=QUESTION, texts=TEXTS, organs=organs)
    return conversation(case, sample)[:-1]


@pytest.mark.parametrize(
    ("served", "zoom", "seen"),
    [((), None, ()), (("liver",), None, ("liver",)), (("liver",), True, ("liver",)), (("liver",), False, ())],
)
def test_the_messages_of_inference_and_training_are_the_same(
    served: tuple[str, ...], zoom: bool | None, seen: tuple[str, ...]
) -> None:
    inference, training = asked(served, zoom), trained(seen)
    texts = [part for message in inference for part in message.parts if isinstance(part, str)]
    assert ("liver at higher resolution, 160 mm across" in texts) is bool(seen)
    assert [message.role for message in inference] == [message.role for message in training]
    for mine, theirs in zip(inference, training, strict=True):
        assert len(mine.parts) == len(theirs.parts)
        for part, other in zip(mine.parts, theirs.parts, strict=True):
            if isinstance(part, str):
                assert part == other
            else:
                assert isinstance(other, torch.Tensor)
                assert torch.equal(part, other)
