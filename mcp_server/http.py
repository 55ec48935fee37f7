"""The server over HTTP: a bearer token, known hosts and origins, limits, and an end in good order."""

from __future__ import annotations

import hmac
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio
import uvicorn
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl, SecretStr

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server.answers import Render
from tumorchain_agent.mcp_server.server import guard_of, serving
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings

if TYPE_CHECKING:
    from mcp.server import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH: Final = "/mcp"
MIN_TOKEN: Final = 16
MAX_BODY: Final = 1 << 20
"""Bytes of a request; arguments are paths and questions."""
MAX_CONNECTIONS: Final = 256
MAX_SESSIONS: Final = 1000
IDLE_S: Final = 30 * 60.0
CLOSING_S: Final = 3


@dataclass(frozen=True)
class HttpOptions:
    """Where to listen and whom to let in."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes any free one."""
    token: SecretStr | None = None
    without_token: bool = False
    """Let anyone on this machine in; on loopback only."""
    allowed_hosts: tuple[str, ...] = field(default=())
    """Names, with port or ``:*``, under which callers may reach the server, besides loopback."""
    allowed_origins: tuple[str, ...] = field(default=())
    """Web pages that may call, e.g. ``https://viewer.example.org``."""

    def check(self) -> None:
        """Raises InputError for a server that anyone could use."""
        loopback = is_loopback(self.host)
        if self.token is None and not (self.without_token and loopback):
            other = ", or --without-token, as only this machine can reach it" if loopback else ""
            raise InputError(
                f"serving on {self.host} needs a token: set TUMORCHAIN_MCP_TOKEN or pass --token-file FILE{other}"
            )
        if self.token is not None:
            _check_token(self.token.get_secret_value())
        if not loopback and not self.allowed_hosts:
            raise InputError(
                f"serving on {self.host} needs the names by which callers reach it, against DNS rebinding: pass "
                "--allowed-host NAME:PORT"
            )

    def security(self) -> TransportSecuritySettings:
        names = ("127.0.0.1", "localhost", "[::1]") if is_loopback(self.host) else ()
        return TransportSecuritySettings(
            allowed_hosts=[*(f"{name}:*" for name in names), *self.allowed_hosts],
            allowed_origins=[*(f"http://{name}:*" for name in names), *self.allowed_origins],
        )


class StaticToken:
    """The SDK's token verifier for one secret."""

    def __init__(self, secret: SecretStr) -> None:
        self._secret = secret.get_secret_value().encode()

    async def verify_token(self, token: str) -> AccessToken | None:
        """Takes the same time however much of the token is right."""
        if not hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._secret):
            return None
        return AccessToken(token="***", client_id="holder of the token", scopes=[])


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: it would raise them again before jobs and workers have ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_token(token: str) -> None:
    if len(token) < MIN_TOKEN or not token.isascii() or any(char.isspace() for char in token):
        raise InputError(
            f"the token must have at least {MIN_TOKEN} ASCII characters and no blanks; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )


def auth_options(token: SecretStr | None, url: str) -> dict[str, Any]:
    """What ``MCPServer`` takes to ask every caller for the token."""
    if token is None:
        return {}
    auth = AuthSettings(issuer_url=AnyHttpUrl(url), resource_server_url=None)
    return {"auth": auth, "token_verifier": StaticToken(token)}


def application(server: MCPServer[None], options: HttpOptions) -> ASGIApp:
    """The SDK's Starlette application with our limits."""
    app = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MAX_BODY,
        max_sessions=MAX_SESSIONS,
        session_idle_timeout=IDLE_S,
        transport_security=options.security(),
        host=options.host,
    )
    return _NoQuery(app)


class _NoQuery:
    """Refuses a query, the place where a token must not be: addresses end up in logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("query_string"):
            from starlette.responses import PlainTextResponse

            refusal = PlainTextResponse("No query is taken; send the token as a header.", status_code=400)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def run_http(settings: Settings, options: HttpOptions, render: Render | None = None) -> None:
    """Serve until SIGINT or SIGTERM; says on stderr where. Raises InputError before anything listens."""
    options.check()
    guard = guard_of(settings)
    with _listen(options) as listening, Workbench(settings, guard=guard) as workbench:
        anyio.run(serve_http, workbench, options, listening, render)


async def serve_http(
    workbench: Workbench, options: HttpOptions, listening: socket.socket, render: Render | None = None
) -> None:
    """Over a socket that listens already."""
    url = _url(listening)
    async with serving(workbench, render, **auth_options(options.token, url)) as server:
        config = uvicorn.Config(
            application(server, options),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=CLOSING_S,
        )
        how = "bearer token needed" if options.token else "no token: anyone on this machine may call"
        print(f"tumorchain-agent: {url}{PATH} ({how})", file=sys.stderr, flush=True)
        web = _Uvicorn(config)
        async with anyio.create_task_group() as group:
            group.start_soon(_end_on_signal, web)
            await web.serve(sockets=[listening])
            group.cancel_scope.cancel()


async def _end_on_signal(web: uvicorn.Server) -> None:
    """The first signal ends the server in good order, the second at once."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            web.force_exit = web.should_exit
            web.should_exit = True


def _listen(options: HttpOptions) -> socket.socket:
    """A listening socket whose connections send at once.

    asyncio sees to that itself, but not for sockets that it is given: each answer's body would wait 40 ms for the
    other side to confirm its head.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listening = socket.create_server((options.host, options.port), family=family, backlog=MAX_CONNECTIONS)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise InputError(
            f"can't listen on {options.host}:{options.port} ({error}); choose another --host or --port"
        ) from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
