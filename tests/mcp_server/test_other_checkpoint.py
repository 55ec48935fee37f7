"""An answer that rests on one checkpoint's classifier is never handed out as that of another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mcp import Client
from safetensors.torch import load_file, save_file

from tests.graph.fakes import ScriptedModel
from tests.mcp_server.conftest import Files, call, with_client
from tumorchain_agent.batch_table import Row
from tumorchain_agent.batch_worker import Reasoning, RowAsker
from tumorchain_agent.cli import main
from tumorchain_agent.model import chat
from tumorchain_agent.model.checkpoint import VISION_WEIGHTS, read_info, write_info
from tumorchain_agent.records import Answer
from tumorchain_agent.settings import Settings

QUESTION = "Is there a tumor?"
Ask = Callable[[Settings, Files], Answer]


def by_tool(settings: Settings, files: Files) -> Answer:
    found: list[Answer] = []

    async def steps(client: Client) -> None:
        given = {"path": str(files.scan), "question": QUESTION, "masks": str(files.masks)}
        found.append(Answer.model_validate(await call(client, "ask", **given, evidence="text")))

    with_client(settings, steps)
    return found[0]


def by_command(settings: Settings, files: Files) -> Answer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUMORCHAIN_CACHE_DIR", str(settings.cache_dir))
        out = settings.cache_dir / "report"
        given = ["--masks", str(files.masks), "--model", str(settings.model), "--out", str(out)]
        assert main(["ask", str(files.scan), QUESTION, "--evidence", "text", *given]) == 0
    return Answer.model_validate_json((out / "answer.json").read_text())


def by_batch(settings: Settings, files: Files) -> Answer:
    row = Row(id="a", scan=str(files.scan), question=QUESTION, masks=str(files.masks))
    reasoning = Reasoning(evidence="text").model_dump_json()
    answer = RowAsker(settings.model_dump(mode="json"), reasoning, None).outcome(row, "k").answer
    assert answer is not None
    return answer


@pytest.mark.parametrize("ask", [by_tool, by_command, by_batch])
def test_text_of_another_checkpoint_is_asked_anew(
    ask: Ask, settings: Settings, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ScriptedModel] = []

    def load(settings: Settings, *, evidence: str) -> ScriptedModel:
        loaded.append(ScriptedModel(replies=["There is a mass in the liver.", "T2 N0 M0."]))
        return loaded[-1]

    monkeypatch.setattr(chat, "chat_model_from", load)
    assert settings.model is not None
    other = settings.model_copy(update={"model": another(settings.model, settings.cache_dir / "other")})
    for each in (settings, other, settings):
        assert each.model is not None
        assert ask(each, files).versions.checkpoint_id == read_info(each.model).checkpoint_id
    assert [len(model.calls) > 0 for model in loaded] == [True, True, False]


def another(folder: Path, copy: Path) -> Path:
    """The checkpoint with other weights in its vision tower."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / VISION_WEIGHTS)
    save_file({name: each * 1.001 for name, each in weights.items()}, copy / VISION_WEIGHTS)
    info = read_info(folder)
    write_info(
        copy,
        size=info.size,
        hidden_size=info.hidden_size,
        preprocessing=info.preprocessing,
        provenance=info.provenance,
    )
    return copy
