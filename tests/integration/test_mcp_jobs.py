"""Clients that give up, servers that are killed: over real pipes and sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from tests.integration.test_mcp_stdio import serving
from tests.mcp_server.conftest import PRESENT, Files, call, checkpoint, files, text_of
from tumorchain_agent.mcp_server.store import read_work_log

__all__ = ["checkpoint", "files"]

TOKEN = "kept-secret-3f9a1c77e0"
SLOW = """
import sys, time
from pathlib import Path
from pydantic import SecretStr
from tests.mcp_server.conftest import ScriptedSegmenter
from tumorchain_agent.mcp_server import http, server
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings

transport, masks, go = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

def pause(job):
    Path(f"{go}.begun").write_text("1")
    while not go.exists():
        job.check("segmentation")
        job.progress("predicting", 0.5)
        time.sleep(0.02)

class Slow(Workbench):
    def __init__(self, settings, guard):
        super().__init__(settings, ScriptedSegmenter(settings, masks, pause), guard)

http.Workbench = server.Workbench = Slow
if transport == "http":
    http.run_http(Settings(), http.HttpOptions(port=0, token=Settings().mcp_token))
else:
    server.run_stdio(Settings())
"""
"""A server whose segmentation goes on until a file appears."""


class Slow:
    """Servers of one cache folder, one after the other."""

    def __init__(self, folder: Path, files: Files, checkpoint: Path) -> None:
        self.cache, self.go, self.files = folder / "cache", folder / "go", files
        self.begun = Path(f"{self.go}.begun")
        arguments = ("-c", SLOW, "{transport}", str(files.masks), str(self.go))
        self.parameters = serving(self.cache, checkpoint, *arguments)
        assert self.parameters.env is not None
        self.env = self.parameters.env | {
            "TUMORCHAIN_ROOTS": str(files.scan.parent),
            "TUMORCHAIN_MCP_TOKEN": TOKEN,
            "TUMORCHAIN_SEGMENTATION": "nano",
        }

    @contextmanager
    def http(self, root: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """The process and its address; with another root, if any, than that of the files."""
        env = self.env | ({} if root is None else {"TUMORCHAIN_ROOTS": str(root)})
        command = [word.format(transport="http") if word == "{transport}" else word for word in self._words()]
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("tumorchain-agent: http://"), line + process.stderr.read()
            yield process, line.split()[1]
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)

    def _words(self) -> list[str]:
        return [self.parameters.command, *self.parameters.args]

    async def wait_begun(self) -> None:
        with anyio.fail_after(120):
            while not self.begun.exists():
                await anyio.sleep(0.05)


@pytest.fixture
def slow(tmp_path: Path, files: Files, checkpoint: Path) -> Slow:
    return Slow(tmp_path, files, checkpoint)


def client_of(url: str, timeout_s: float | None = None) -> Any:
    web = httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=120)
    return Client(streamable_http_client(url, http_client=web), read_timeout_seconds=timeout_s)


@pytest.mark.slow
def test_a_client_that_gives_up_after_five_seconds_reconnects_and_fetches_its_jobs_result(slow: Slow) -> None:
    async def main(url: str) -> None:
        async with client_of(url, 5.0) as client:
            scan = (await call(client, "open_scan", path=slow.files.scan.name))["scan_id"]
            with pytest.raises(MCPError):
                await client.call_tool("segment_organs", {"scan_id": scan, "wait_seconds": 600})
        slow.go.touch()
        async with client_of(url) as client:
            (job,) = [
                job for job in (await call(client, "list_jobs"))["jobs"] if job["tool"] == "segment_organs"
            ]
            done = await call(client, "get_job", job_id=job["job_id"], wait_seconds=60)
            assert [mask["organ"] for mask in done["result"]["masks"]] == list(PRESENT)

    with slow.http() as (_, url):
        anyio.run(main, url)
    assert [line["work"] for line in read_work_log(slow.cache)].count("segment") == 1


@pytest.mark.slow
def test_kill_9_in_a_job_and_the_next_server_goes_on_with_it_once(slow: Slow) -> None:
    kept: dict[str, str] = {}

    async def first(url: str, process: subprocess.Popen[str]) -> None:
        async with client_of(url) as client:
            kept["scan"] = (await call(client, "open_scan", path=slow.files.scan.name))["scan_id"]
            job = await call(client, "segment_organs", scan_id=kept["scan"], wait_seconds=0)
            kept["job"] = job["job_id"]
            await slow.wait_begun()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    with slow.http() as (process, url), suppress(MCPError, httpx2.HTTPError, ExceptionGroup):
        anyio.run(first, url, process)
    slow.go.touch()

    async def second(url: str) -> None:
        async with client_of(url) as client:
            done = await call(client, "get_job", job_id=kept["job"], wait_seconds=120)
            assert done["status"] == "done"
            found = await call(client, "segment_organs", scan_id=kept["scan"], wait_seconds=60)
            assert found["info"]["from_cache"]

    with slow.http() as (_, url):
        anyio.run(second, url)
    assert [line["work"] for line in read_work_log(slow.cache)].count("segment") == 1


@pytest.mark.slow
def test_a_killed_servers_job_is_hidden_from_a_server_of_other_roots_and_taken_up_by_one_of_its_own(
    slow: Slow, tmp_path: Path
) -> None:
    (tmp_path / "others").mkdir()
    kept: dict[str, str] = {}

    async def begin(url: str) -> None:
        async with client_of(url) as client:
            scan = (await call(client, "open_scan", path=slow.files.scan.name))["scan_id"]
            kept["job"] = (await call(client, "segment_organs", scan_id=scan, wait_seconds=0))["job_id"]
            await slow.wait_begun()

    async def look(url: str) -> None:
        async with client_of(url) as client:
            assert (await call(client, "list_jobs"))["jobs"] == []
            for tool in ("get_job", "cancel_job"):
                refused = await client.call_tool(tool, {"job_id": kept["job"]})
                assert "is not known here" in text_of(refused)

    async def fetch(url: str) -> None:
        async with client_of(url) as client:
            done = await call(client, "get_job", job_id=kept["job"], wait_seconds=120)
            assert done["status"] == "done"

    with slow.http() as (process, url):
        anyio.run(begin, url)
        process.kill()
        process.wait()
    slow.go.touch()
    with slow.http(tmp_path / "others") as (_, url):
        anyio.run(look, url)
    with slow.http() as (_, url):
        anyio.run(fetch, url)


@pytest.mark.slow
def test_a_server_that_dies_in_the_same_job_again_and_again_marks_it_failed(slow: Slow) -> None:
    kept: dict[str, str] = {}

    async def begin(url: str) -> None:
        async with client_of(url) as client:
            scan = (await call(client, "open_scan", path=slow.files.scan.name))["scan_id"]
            job = await call(client, "segment_organs", scan_id=scan, wait_seconds=0)
            kept["job"] = job["job_id"]
            await slow.wait_begun()

    async def look(url: str) -> None:
        async with client_of(url) as client:
            failed = await client.call_tool("get_job", {"job_id": kept["job"]})
            assert failed.is_error
            assert "killed 2 times" in text_of(failed)

    for attempt in range(2):
        with slow.http() as (process, url):
            if attempt:
                anyio.run(slow.wait_begun)
            else:
                anyio.run(begin, url)
            slow.begun.unlink()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    with slow.http() as (_, url):
        anyio.run(look, url)


@pytest.mark.slow
def test_sigterm_ends_the_server_in_good_order_within_seconds(slow: Slow) -> None:
    async def begin(url: str) -> None:
        async with client_of(url) as client:
            scan = (await call(client, "open_scan", path=slow.files.scan.name))["scan_id"]
            await call(client, "segment_organs", scan_id=scan, wait_seconds=0)
            await slow.wait_begun()

    with slow.http() as (process, url):
        anyio.run(begin, url)
        started = time.monotonic()
        process.terminate()
        process.wait(30)
        assert time.monotonic() - started < 20
        assert process.returncode == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert not list((slow.cache / "results" / "tmp").iterdir())


OLD_VERSIONS = ["2024-11-05", "2025-03-26", "2025-06-18"]


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_clients_of_older_protocol_versions_still_work_over_stdio(
    version: str, tmp_path: Path, files: Files, checkpoint: Path
) -> None:
    parameters = serving(tmp_path / "cache", checkpoint)
    assert parameters.env is not None
    process = subprocess.Popen(
        [sys.executable, *parameters.args],
        env=parameters.env | {"TUMORCHAIN_ROOTS": str(files.scan.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    info = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}
    found = _call(process, 1, "initialize", info)
    assert found["protocolVersion"] == version
    _send(process, {"jsonrpc": "2.0", "method": "notifications/initialized"})
    tools = _call(process, 2, "tools/list", {})["tools"]
    assert "open_scan" in [tool["name"] for tool in tools]
    opened = _call(process, 3, "tools/call", {"name": "open_scan", "arguments": {"path": files.scan.name}})
    assert not opened.get("isError")
    assert "scan_id" in opened["content"][0]["text"]
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


def _send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()


def _call(process: subprocess.Popen[str], number: int, method: str, params: dict[str, Any]) -> Any:
    assert process.stdout is not None
    _send(process, {"jsonrpc": "2.0", "id": number, "method": method, "params": params})
    while True:
        answer = json.loads(process.stdout.readline())
        if answer.get("id") == number:
            assert "result" in answer, answer
            return answer["result"]


@pytest.mark.slow
def test_sigterm_ends_a_stdio_server_whose_client_still_holds_the_pipe(slow: Slow) -> None:
    command = [word.format(transport="stdio") if word == "{transport}" else word for word in slow._words()]
    process = subprocess.Popen(
        command,
        env=slow.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    info = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    _call(process, 1, "initialize", info)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
