"""The server as MCP clients run it: a subprocess that speaks over stdin and stdout."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import BlobResourceContents
from safetensors.torch import load

from tests.mcp_server.conftest import Files, call, checkpoint, files, open_segmented, text_of
from tumorchain_agent.mcp_server.store import read_work_log

__all__ = ["checkpoint", "files"]

SERVE = ("-m", "tumorchain_agent.cli", "mcp")
NOISY = """
import os, tumorchain_agent.mcp_server.scans as scans
from tumorchain_agent.mcp_server.server import run_stdio
from tumorchain_agent.settings import Settings
quiet = scans.open_ct
def noisy(*args, **kwargs):
    print("a library prints")
    os.write(1, b"and so does C code\\n")
    os.system("echo and a subprocess")
    return quiet(*args, **kwargs)
scans.open_ct = noisy
run_stdio(Settings())
"""


def serving(cache: Path, model: Path, *arguments: str) -> StdioServerParameters:
    environment = {
        **os.environ,
        "TUMORCHAIN_CACHE_DIR": str(cache),
        "TUMORCHAIN_MODEL": str(model),
        "TUMORCHAIN_DEVICE": "cpu",
        "TUMORCHAIN_ROOTS": str(cache.parent.parent),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONUNBUFFERED", None)
    return StdioServerParameters(command=sys.executable, args=list(arguments or SERVE), env=environment)


def with_server(parameters: StdioServerParameters, steps: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Client(parameters) as client:
            await steps(client)

    anyio.run(main)


async def blob(client: Client, uri: str) -> bytes:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, BlobResourceContents)
    return base64.b64decode(content.blob)


@pytest.mark.slow
def test_a_stdio_client_works_with_a_scan_and_finds_all_again_after_kill_9(
    tmp_path: Path, files: Files, checkpoint: Path
) -> None:
    parameters = serving(tmp_path / "cache", checkpoint)
    kept: dict[str, bytes] = {}
    heard: list[str | None] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async def first(client: Client) -> None:
        assert len((await client.list_tools()).tools) == 16
        scan_id, _ = await open_segmented(client, files)
        encoded = await client.call_tool("encode_scan", {"scan_id": scan_id}, progress_callback=listen)
        assert encoded.structured_content is not None, text_of(encoded)
        kept["scan"] = scan_id.encode()
        for uri in (
            encoded.structured_content["uri"],
            (await call(client, "extract_roi_tokens", scan_id=scan_id, organ="liver"))["uri"],
            (await call(client, "view_organ", scan_id=scan_id, organ="liver"))["pictures"][0]["uri"],
        ):
            kept[uri] = await blob(client, uri)
        refused = await client.call_tool("open_scan", {"path": "no-such-ct.nii.gz"})
        assert refused.is_error
        assert text_of(refused).startswith("ScanError: ")
        os.kill(read_work_log(tmp_path / "cache")[-1]["pid"], signal.SIGKILL)

    with_server(parameters, first)
    done = read_work_log(tmp_path / "cache")
    assert [entry["work"] for entry in done].count("encode") == 1
    assert "encoding the scan" in heard

    async def second(client: Client) -> None:
        for uri, content in kept.items():
            if "://" in uri:
                assert await blob(client, uri) == content
        found = await call(client, "encode_scan", scan_id=kept["scan"].decode())
        assert found["from_cache"]
        assert load(kept[found["uri"]])["tokens"].shape[0] == 256

    with_server(parameters, second)
    assert read_work_log(tmp_path / "cache") == done


@pytest.mark.slow
def test_nothing_but_the_protocol_is_on_stdout(tmp_path: Path, files: Files, checkpoint: Path) -> None:
    parameters = serving(tmp_path / "cache", checkpoint, "-c", NOISY)
    requests = [
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "0"},
            },
        },
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0",
            "id": 2,
            "method": "tools/call",
            "params": {"name": "open_scan", "arguments": {"path": str(files.scan)}},
        },
    ]
    server = subprocess.Popen(
        [parameters.command, *parameters.args],
        env=parameters.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stderr is not None
    for request in requests:
        server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answers = [json.loads(server.stdout.readline()) for _ in range(2)]
    server.stdin.close()
    rest, noise = server.stdout.read(), server.stderr.read()
    assert server.wait(60) == 0
    assert [answer["id"] for answer in answers] == [1, 2]
    assert answers[1]["result"]["structuredContent"]["file_name"] == "ct.nii.gz"
    assert rest == ""
    for line in ("a library prints", "and so does C code", "and a subprocess"):
        assert line in noise
