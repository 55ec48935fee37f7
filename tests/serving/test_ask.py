"""``ask`` over the real server: the same answer as in process, streamed, with what came from the KV cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mcp import Client

from tests.mcp_server.conftest import call, with_client
from tests.serving.conftest import Files, RunningServer, ask_once
from tumorchain_agent.cli import main
from tumorchain_agent.graph import events
from tumorchain_agent.graph.trace import read_trace_record
from tumorchain_agent.model.checkpoint import NANO_DIR, read_info, served_name
from tumorchain_agent.settings import Settings

pytestmark = pytest.mark.slow

QUESTION = "Is there a tumor, and what is the TNM stage?"


def test_serve_says_how_to_ask_and_its_answer_is_the_one_in_process(
    server: RunningServer, files: Files
) -> None:
    assert server.printed.split() == ["tumorchain-agent", "ask", "SCAN", "QUESTION", "--llm-url", server.url]
    assert "not a medical device" in server.told
    seen: list[events.Event] = []
    served = ask_once(server.settings(files.cache), files, QUESTION, on_event=seen.append)
    here = ask_once(Settings(cache_dir=files.cache), files, QUESTION)
    assert [each.text for each in served.rounds] == [each.text for each in here.rounds]
    assert served.tnm == here.tnm
    assert served.versions.llm == served_name(read_info(NANO_DIR))
    assert len(served.rounds) > 1
    for record in served.rounds:
        streamed = [e.text for e in seen if isinstance(e, events.Token) and e.round == record.index]
        assert len(streamed) > 1
        assert "".join(streamed) == record.text


def test_each_round_reports_the_tokens_that_came_from_the_kv_cache(
    server: RunningServer, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(files.cache))
    out = tmp_path / "out"
    words = [
        "ask",
        str(files.scan),
        QUESTION,
        "--masks",
        str(files.masks),
        "--llm-url",
        server.url,
        "--fresh",
    ]
    assert main([*words, "--out", str(out)]) == 0
    answer = json.loads((out / "answer.json").read_text())
    usage = [each["usage"] for each in answer["rounds"]]
    assert all(u["prompt_tokens"] > u["cached_tokens"] >= 256 for u in usage[1:])
    assert all(u["completion_tokens"] > 0 for u in usage)
    records = [read_trace_record(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    traced = [record.model_dump() for record in records if record.type == "usage"]
    assert [record["cached_tokens"] for record in traced] == [u["cached_tokens"] for u in usage]
    page = (out / "report.html").read_text()
    assert all(f"({u['cached_tokens']} from cache)" in page for u in usage)


def test_the_mcp_tool_asks_the_server_too(server: RunningServer, files: Files) -> None:
    async def steps(client: Client) -> None:
        arguments = {
            "path": str(files.scan),
            "question": "Is there a lesion in the liver?",
            "masks": str(files.masks),
        }
        found = await call(client, "ask", **arguments)
        answer = found.get("answer", found)
        assert answer["versions"]["llm"] == served_name(read_info(NANO_DIR))
        assert answer["usage"]["completion_tokens"] > 0

    with_client(server.settings(files.cache), steps)
