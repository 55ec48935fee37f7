"""The whole way, open → segment → measure → view → ask, on a real scan with what ships in the package."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from jsonschema import validate  # type: ignore[import-untyped]
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.mcp_server.conftest import text_of
from tumorchain_agent.records import DISCLAIMER, Answer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "kept-secret-3f9a1c77e0"
SCAN, MASKS = "example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"
QUESTION = "Is there a tumor in the liver, and what TNM stage?"
LIVER_ML = 1125.68
"""Of the label map, measured by others."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, real: Path) -> dict[str, str]:
    """All servers of this file share a cache, so that the scan is encoded and asked once."""
    return {
        **os.environ,
        "TUMORCHAIN_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "TUMORCHAIN_ROOTS": str(real / "totalsegmentator"),
        "TUMORCHAIN_MCP_TOKEN": TOKEN,
        "TUMORCHAIN_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def command(*more: str) -> list[str]:
    return ["-m", "tumorchain_agent.cli", "mcp", *more]


@contextmanager
def http_server(environment: dict[str, str]) -> Iterator[str]:
    words = [sys.executable, *command("--http", "--port", "0")]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("tumorchain-agent: http://"), line
        yield line.split()[1]
    finally:
        process.terminate()
        assert process.wait(60) == 0


@asynccontextmanager
async def connected(transport: str, environment: dict[str, str]) -> AsyncIterator[Client]:
    if transport == "stdio":
        parameters = StdioServerParameters(command=sys.executable, args=command(), env=environment)
        async with Client(parameters) as client:
            yield client
        return
    with http_server(environment) as url:
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=300) as web,
            Client(streamable_http_client(url, http_client=web)) as client,
        ):
            yield client


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_the_official_client_goes_the_whole_way_and_every_output_fits_its_schema(
    transport: str, environment: dict[str, str]
) -> None:
    async def main() -> None:
        async with connected(transport, environment) as client:
            schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}

            async def step(tool: str, **arguments: Any) -> dict[str, Any]:
                result = await client.call_tool(tool, arguments)
                assert not result.is_error, text_of(result)
                assert DISCLAIMER in text_of(result)
                content = result.structured_content
                validate(content, schemas[tool] or {})
                while content is not None and content.get("status") == "running":
                    fetched = await client.call_tool("get_job", {"job_id": content["job_id"]})
                    assert not fetched.is_error, text_of(fetched)
                    validate(fetched.structured_content, schemas["get_job"] or {})
                    content = (fetched.structured_content or {})["result"] or fetched.structured_content
                validate(content, schemas[tool] or {})
                assert isinstance(content, dict)
                return content

            assert len((await step("list_organs"))["organs"]) == 56
            scan = await step("open_scan", path=SCAN)
            assert scan["gate"]["contrast_phase"]["value"] == "unenhanced"
            ids = {"scan_id": scan["scan_id"]}
            await step("segment_organs", **ids, masks=MASKS)
            measured = await step("measure_organs", **ids, organs=["liver"])
            assert measured["measurements"][0]["volume_ml"] == pytest.approx(LIVER_ML, abs=0.01)
            viewed = await step("view_organ", **ids, organ="liver")
            assert (await client.read_resource(viewed["pictures"][0]["uri"])).contents
            answer = Answer.model_validate(await step("ask", path=SCAN, question=QUESTION, masks=MASKS))
            assert answer.claims
            explained = await step("explain", answer_id=answer.thread_id, claim=1)
            assert explained["claim"]["sentence"] == answer.claims[0].sentence
            for scheme in ("trace", "report"):
                (content,) = (await client.read_resource(f"{scheme}://{answer.thread_id}")).contents
                assert DISCLAIMER.rstrip(".").lower() in str(getattr(content, "text", "")).lower()
            assert {tool for tool in schemas if tool.endswith("_job")} == {"get_job", "cancel_job"}

    anyio.run(main)


class ScriptedAgent(BaseChatModel):
    """Calls one tool after the other, with what the results before have told, and then quotes a number."""

    bound: tuple[Any, ...] = ()

    @property
    def _llm_type(self) -> str:
        return "scripted agent"

    def bind_tools(self, tools: Any, **_: Any) -> ScriptedAgent:
        return ScriptedAgent(bound=tuple(tools))

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        results = [message for message in messages if isinstance(message, ToolMessage)]
        assert all(result.status == "success" for result in results), results
        steps = self._steps(str(results[0].content) if results else "")
        if len(results) < len(steps):
            name, arguments = steps[len(results)]
            call = {"name": name, "args": arguments, "id": f"call{len(results)}", "type": "tool_call"}
            message = AIMessage("", tool_calls=[call])
        else:
            found = re.search(r"liver: ([\d.]+) ml", str(results[2].content))
            message = AIMessage(f"The liver has {found[1] if found else '?'} ml.")
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _steps(self, opened: str) -> list[tuple[str, dict[str, Any]]]:
        scan_id = (re.findall(r"scan_id (\w+):", opened) or [""])[0]
        return [
            ("open_scan", {"path": SCAN}),
            ("segment_organs", {"scan_id": scan_id, "masks": MASKS}),
            ("measure_organs", {"scan_id": scan_id, "organs": ["liver"]}),
            ("view_organ", {"scan_id": scan_id, "organ": "liver", "planes": ["axial"]}),
            ("ask", {"path": SCAN, "question": QUESTION, "masks": MASKS}),
        ]


def test_a_langgraph_react_agent_goes_the_whole_way_with_any_chat_model(environment: dict[str, str]) -> None:
    example = load("react_agent")
    server = StdioServerParameters(command=sys.executable, args=command(), env=environment)
    messages = anyio.run(example.answer, server, ScriptedAgent(), SCAN, "How large is the liver?")
    assert messages[-1].content == "The liver has 1125.68 ml."
    called = [message.name for message in messages if isinstance(message, ToolMessage)]
    assert called == ["open_scan", "segment_organs", "measure_organs", "view_organ", "ask"]
    artifact = next(m.artifact for m in messages if isinstance(m, ToolMessage) and m.name == "ask")
    assert Answer.model_validate(artifact).question == QUESTION


def load(example: str) -> Any:
    spec = importlib.util.spec_from_file_location(example, ROOT / "examples" / f"{example}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_graph_that_langgraph_json_names_is_built_and_closed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", environment["TUMORCHAIN_CACHE_DIR"])
    configured = json.loads((ROOT / "langgraph.json").read_text(encoding="utf-8"))
    path, name = configured["graphs"]["tumorchain"].split(":")
    make: Callable[[], Any] = getattr(load(Path(path).stem), name)

    async def main() -> None:
        async with make() as graph:
            assert {"open", "match", "conclude"} <= set(graph.get_graph().nodes)

    anyio.run(main)
