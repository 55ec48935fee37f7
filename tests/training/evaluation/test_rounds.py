"""The agent's chain is all that it wrote, round by round."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tests.graph.fakes import FakeCT, ScriptedModel
from tumorchain_agent.graph.client import CTTools, connect
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.evaluation.bench import _chains
from tumorchain_agent.training.evaluation.chains import judge_chain
from tumorchain_agent.training.evaluation.masks import KnownFacts
from tumorchain_agent.training.evaluation.runner import Item, Line
from tumorchain_agent.training.evaluation.subjects import AgentSubject, Said

ROUNDS = [
    "The liver shows a round hypodense mass.",
    "Liver: this suggests carcinoma of the liver. Overall T2 N0 M0.",
]


def test_all_rounds_of_the_agent_are_its_chain(tmp_path: Path) -> None:
    async def asked() -> Said:
        with Workbench(Settings(cache_dir=tmp_path / "cache")) as bench:
            async with connect(FakeCT().server()) as client:
                model = ScriptedModel(replies=ROUNDS)
                agent = AgentSubject(
                    KnownFacts(bench, None), CTTools(client), lambda: model, "tokens", "agent"
                )
                return await agent.answer("Which stage is it?", tmp_path / "x.nii.gz", "x")

    said = anyio.run(asked)
    assert said.rounds == tuple(ROUNDS)
    assert said.raw == ROUNDS[-1]
    sample: Any = SimpleNamespace(id="q", texts=tuple(ROUNDS), rounds=(1, 2))
    (pair,) = _chains(
        [Item(sample, tmp_path / "x.nii.gz", "x")],
        {"agent": [Line(subject="agent", id="q", prompt_hash="", said=said)]},
    )
    whole, last = (judge_chain(pair.reference, text) for text in (pair.prediction, said.raw))
    assert whole is not None
    assert last is not None
    assert whole.overall_score == pytest.approx(100)
    assert last.overall_score < 100
