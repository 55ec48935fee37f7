"""The ``ask`` tool: the whole reasoning over the server's own tools, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from jsonschema import validate  # type: ignore[import-untyped]
from mcp import Client
from mcp_types import ResourceLink

from tests.graph.fakes import ScriptedModel
from tests.mcp_server.conftest import Files, text_of, with_client
from tumorchain_agent.graph.trace import read_trace_record
from tumorchain_agent.mcp_server.results import Explanation
from tumorchain_agent.mcp_server.server import connect_in_memory, serving
from tumorchain_agent.mcp_server.store import read_work_log
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model import chat
from tumorchain_agent.model.checkpoint import read_info
from tumorchain_agent.records import DISCLAIMER, Answer
from tumorchain_agent.report import render_report
from tumorchain_agent.settings import Settings

REPLIES = [
    "There is a mass in the liver.",
    "Impression: a mass in the liver. The esophagus matters.",
    "Pathology: T2 N0 M0.",
]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> list[str]:
    """A scripted LLM in place of the checkpoint's; which evidence it was loaded for."""
    loaded: list[str] = []

    def load(settings: Settings, *, evidence: str) -> ScriptedModel:
        loaded.append(evidence)
        return ScriptedModel(replies=REPLIES, checkpoint_id=read_info(checkpoint).checkpoint_id)

    monkeypatch.setattr(chat, "chat_model_from", load)
    return loaded


def test_ask_reasons_over_the_servers_own_tools(settings: Settings, files: Files, loads: list[str]) -> None:
    heard: list[tuple[float, str | None]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async def steps(client: Client) -> None:
        arguments: dict[str, Any] = {
            "path": str(files.scan),
            "question": "Is there a tumor?",
            "masks": str(files.masks),
        }
        schema = next(tool.output_schema for tool in (await client.list_tools()).tools if tool.name == "ask")
        result = await client.call_tool("ask", arguments, progress_callback=listen)
        assert not result.is_error, text_of(result)
        validate(result.structured_content, schema or {})
        answer = Answer.model_validate(result.structured_content)
        assert [record.text for record in answer.rounds] == REPLIES
        assert answer.organs_examined == ("liver",)
        assert "esophagus" in answer.organs_absent
        assert (answer.tnm.t, answer.tnm.n, answer.tnm.m) == ("T2", "N0", "M0")
        codes = {notice.code for notice in answer.notices}
        assert codes >= {"demonstration_model", "out_of_distribution", "organ_absent"}
        for part in ("Pathology", "T2 N0 M0", "so not assessed: ", "not a medical device"):
            assert part in text_of(result)

        again = Answer.model_validate((await client.call_tool("ask", arguments)).structured_content)
        assert again.conclusion == answer.conclusion

    with_client(settings, steps)
    assert loads == ["tokens"]
    works = [entry["work"] for entry in read_work_log(settings.cache_dir)]
    assert works.count("encode") == 1
    values = [progress for progress, _ in heard]
    assert values == sorted(set(values))
    assert values[-1] == 1.0
    assert any("round 2: liver" in (message or "") for _, message in heard)


def test_the_workbench_stays_open_for_who_is_still_connected_after_ask(
    settings: Settings, files: Files, loads: list[str]
) -> None:
    async def steps(client: Client) -> None:
        arguments = {"path": str(files.scan), "question": "Is there a tumor?", "masks": str(files.masks)}
        result = await client.call_tool("ask", arguments | {"evidence": "text"})
        assert not result.is_error, text_of(result)
        before = read_work_log(settings.cache_dir)
        scan_id = Answer.model_validate(result.structured_content).scan.scan_id
        assert not (await client.call_tool("measure_organs", {"scan_id": scan_id})).is_error
        assert read_work_log(settings.cache_dir) == before

    with_client(settings, steps)
    assert loads == ["text"]


def test_an_answer_is_explained_traced_and_reported_on(
    settings: Settings, files: Files, loads: list[str]
) -> None:
    async def main() -> None:
        with Workbench(settings) as bench:
            async with serving(bench, render_report) as server, connect_in_memory(server) as client:
                asked = {"path": str(files.scan), "question": "Is there a tumor?", "masks": str(files.masks)}
                result = await client.call_tool("ask", asked | {"wait_seconds": 60})
                answer = Answer.model_validate(result.structured_content)
                links = {block.name: block.uri for block in result.content if isinstance(block, ResourceLink)}
                assert set(links) == {"report.html", "trace.jsonl"}
                for number, claim in enumerate(answer.claims, start=1):
                    arguments = {"answer_id": answer.thread_id, "claim": number}
                    explained = await client.call_tool("explain", arguments)
                    found = Explanation.model_validate(explained.structured_content)
                    assert found.claim == claim
                    assert {item.organ for item in found.evidence} <= {"liver", "esophagus"}
                    assert "esophagus" not in [item.organ for item in found.evidence if item.present]
                page = text_in(await client.read_resource(links["report.html"]))
                assert "data:image/png" in page
                assert DISCLAIMER in page
                lines = text_in(await client.read_resource(links["trace.jsonl"])).splitlines()
                kinds = [read_trace_record(line).type for line in lines]
                assert (kinds[0], kinds[-1]) == ("header", "answer")
                for arguments in (
                    {"answer_id": "none", "claim": 1},
                    {"answer_id": answer.thread_id, "claim": 99},
                ):
                    refused = await client.call_tool("explain", arguments)
                    assert refused.is_error
                    assert text_of(refused).startswith("InputError: ")

    anyio.run(main)


def text_in(result: Any) -> str:
    (content,) = result.contents
    return str(content.text)
