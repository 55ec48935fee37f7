"""The server over HTTP: who is let in, from where, with how much; and what the log says."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import SecretStr

from tests.mcp_server.conftest import Files, call
from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server import http
from tumorchain_agent.mcp_server.guard import PathGuard
from tumorchain_agent.mcp_server.http import HttpOptions, StaticToken
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings

TOKEN = "kept-secret-3f9a1c77e0"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}

Steps = Callable[[str], Awaitable[None]]


def with_http(settings: Settings, root: Path, steps: Steps, **options: Any) -> None:
    """Run steps with the address of a server on a free port."""
    given = HttpOptions(port=0, **({"token": SecretStr(TOKEN)} | options))
    given.check()

    async def main() -> None:
        listening = http._listen(given)
        with listening, Workbench(settings, guard=PathGuard([root])) as bench:
            async with anyio.create_task_group() as group:
                group.start_soon(http.serve_http, bench, given, listening)
                await steps(f"{http._url(listening)}{http.PATH}")
                group.cancel_scope.cancel()

    anyio.run(main)


@asynccontextmanager
async def client_of(url: str, token: str = TOKEN, mode: Any = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as web,
        Client(streamable_http_client(url, http_client=web), mode=mode) as client,
    ):
        yield client


async def post(url: str, content: Any = LIST, **headers: str) -> httpx2.Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    async with httpx2.AsyncClient(timeout=60) as web:
        return await web.post(url, content=body, headers={**HEADERS, **headers})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_client_with_the_token_uses_the_tools_over_http(
    settings: Settings, files: Files, mode: str
) -> None:
    async def steps(url: str) -> None:
        async with client_of(url, mode=mode) as client:
            assert len((await client.list_tools()).tools) == 16
            scan = await call(client, "open_scan", path=files.scan.name)
            found = await call(
                client, "segment_organs", scan_id=scan["scan_id"], masks=files.masks.name, wait_seconds=60
            )
            assert (await client.read_resource(found["label_map_uri"])).contents

    with_http(settings, files.scan.parent, steps)


REFUSED: list[tuple[str, dict[str, str], int]] = [
    ("", {}, 401),
    ("", {"authorization": ""}, 401),
    ("", {"authorization": "Bearer"}, 401),
    ("", {"authorization": "Bearer wrong"}, 401),
    ("", {"authorization": f"Bearer {TOKEN}x"}, 401),
    ("", {"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
    ("", {"authorization": f"Bearer {TOKEN.upper()}"}, 401),
    ("", {"authorization": f"Basic {TOKEN}"}, 401),
    ("", {"authorization": TOKEN}, 401),
    ("", {"x-api-key": TOKEN}, 401),
    ("", {"cookie": f"token={TOKEN}"}, 401),
    (f"?token={TOKEN}", {}, 400),
    (f"?access_token={TOKEN}", {}, 400),
    (f"?access_token={TOKEN}", {"authorization": f"Bearer {TOKEN}"}, 400),
    ("", {"authorization": f"Bearer {TOKEN}", "host": "evil.example.org"}, 421),
    ("", {"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1.evil.example.org:80"}, 421),
    ("", {"authorization": f"Bearer {TOKEN}", "origin": "https://evil.example.org"}, 403),
    ("", {"authorization": f"Bearer {TOKEN}", "origin": "null"}, 403),
    ("", {"authorization": f"Bearer {TOKEN}", "origin": "http://localhost.evil.example.org"}, 403),
    ("", {"authorization": f"Bearer {TOKEN}", "content-type": "text/plain"}, 400),
]


def test_no_token_a_wrong_one_one_in_the_address_a_wrong_host_or_origin_are_refused(
    settings: Settings, files: Files, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)

    async def steps(url: str) -> None:
        caplog.clear()
        for query, headers, status in REFUSED:
            answer = await post(url + query, **headers)
            assert answer.status_code == status, (query, headers, answer.text)
            assert TOKEN not in answer.text
            assert "open_scan" not in answer.text
        served = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
        assert TOKEN not in "\n".join(record.getMessage() for record in served)

    with_http(settings, files.scan.parent, steps)
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err
    assert "bearer token needed" in said.err


def test_a_request_larger_than_the_limit_is_refused(settings: Settings, files: Files) -> None:
    async def steps(url: str) -> None:
        big = json.dumps(LIST | {"params": {"x": "a" * http.MAX_BODY}}).encode()
        answer = await post(url, big, authorization=f"Bearer {TOKEN}")
        assert answer.status_code == 413

    with_http(settings, files.scan.parent, steps)


def test_more_connections_than_the_limit_are_refused_and_not_left_waiting(
    settings: Settings, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)

    async def steps(url: str) -> None:
        seen: list[int] = []

        async def one() -> None:
            seen.append((await post(url, authorization="Bearer wrong")).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(one)
        assert set(seen) <= {401, 503}
        assert 503 in seen
        assert (await post(url, authorization="Bearer wrong")).status_code == 401

    with_http(settings, files.scan.parent, steps)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "needs a token"),
    ({"host": "0.0.0.0"}, "needs a token"),
    ({"host": "0.0.0.0", "without_token": True}, "needs a token"),
    ({"host": "::", "without_token": True}, "needs a token"),
    ({"host": "192.0.2.1", "without_token": True}, "needs a token"),
    ({"host": "localhost.example.org", "without_token": True}, "needs a token"),
    ({"token": SecretStr("short")}, "16 ASCII characters"),
    ({"token": SecretStr("")}, "16 ASCII characters"),
    ({"token": SecretStr("with blanks in the midst of it")}, "no blanks"),
    ({"host": "0.0.0.0", "token": SecretStr(TOKEN)}, "--allowed-host"),
]


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS)
def test_a_server_that_anyone_could_use_does_not_start(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        HttpOptions(**options).check()
    assert TOKEN not in str(caught.value)


def test_loopback_without_a_token_takes_the_explicit_flag(settings: Settings, files: Files) -> None:
    async def steps(url: str) -> None:
        async with Client(url) as client:
            assert (await client.list_tools()).tools
        assert (await post(url, origin="https://evil.example.org")).status_code == 403

    with_http(settings, files.scan.parent, steps, token=None, without_token=True)


def test_the_token_is_in_no_representation_of_what_holds_it() -> None:
    options = HttpOptions(token=SecretStr(TOKEN))
    settings = Settings(mcp_token=SecretStr(TOKEN))
    assert TOKEN not in repr(options) + repr(settings) + settings.model_dump_json()
    found = anyio.run(StaticToken(SecretStr(TOKEN)).verify_token, TOKEN)
    assert found is not None
    assert TOKEN not in repr(found)


def test_a_port_that_is_taken_is_an_error_of_one_line() -> None:
    with http._listen(HttpOptions(port=0)) as listening:
        taken = HttpOptions(port=listening.getsockname()[1])
        with pytest.raises(InputError, match="choose another"):
            http._listen(taken)


def test_an_answer_is_sent_at_once_and_does_not_wait_for_its_head_to_be_confirmed() -> None:
    with (
        http._listen(HttpOptions(port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
