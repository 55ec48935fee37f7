"""The MCP server: nine tools and their resources over one workbench."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
from mcp import Client
from mcp.server import MCPServer

from tumorchain_agent import __version__
from tumorchain_agent.graph.client import connect
from tumorchain_agent.mcp_server.resources import Resources
from tumorchain_agent.mcp_server.toolset import Toolset
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.settings import Settings

INSTRUCTIONS = f"""\
Organ-by-organ reading of 3-D CT scans. {DISCLAIMER}

Start with open_scan (a path on the server's machine) and pass its scan_id to the other tools. segment_organs
finds the organs; measure_organs, classify_abnormality, view_organ and extract_roi_tokens use that
segmentation, and make it when there is none yet. ask runs the whole reasoning in one call. Long calls send
progress; results are cached.

Quote measurements rather than estimating. An organ that is absent or "not assessed" is not a normal organ.
Pass on the notices of results: they say when a number or a sentence can't be relied on. A tool error is no
finding.
"""


def build_server(source: Workbench | Settings) -> MCPServer[None]:
    """The server over the caller's workbench, or over one of its own that closes with the last connection."""
    workbench = Workbench(source) if isinstance(source, Settings) else source

    def connect_to_itself() -> AbstractAsyncContextManager[Client]:
        return connect_in_memory(server)

    server: MCPServer[None] = MCPServer(
        "tumorchain-agent",
        title="TumorChain agent",
        description="Traceable, organ-by-organ reasoning over 3-D CT",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=Toolset(workbench, connect_to_itself).tools(),
        log_level="WARNING",
        lifespan=_closing(workbench) if isinstance(source, Settings) else None,
    )
    Resources(workbench).register(server)
    return server


def connect_in_memory(server: MCPServer[None]) -> AbstractAsyncContextManager[Client]:
    """An MCP client of ``server`` in this process: tools, resources and progress as over any transport.

    An exception of the block comes out as it was raised.
    """
    return connect(server)


def run_stdio(settings: Settings) -> None:
    """Serve one client over stdin and stdout until it disconnects.

    Nothing but the protocol is on stdout: while serving, the SDK points file descriptor 1 at stderr and keeps
    the client's end to itself; before and after that it is done here, so that nothing which a library left
    in a buffer reaches the client when the process ends.
    """
    with _stdout_on_stderr():
        server = build_server(settings)
    try:
        anyio.run(server.run_stdio_async)
    finally:
        with _stdout_on_stderr():
            sys.stdout.flush()


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """What is printed goes to stderr, whichever library or subprocess prints it, and what waits in a buffer."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
        sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _closing(
    workbench: Workbench,
) -> Callable[[MCPServer[None]], AbstractAsyncContextManager[None]]:
    """A lifespan that closes the workbench after its last user: ``ask`` connects within a connection."""
    users = 0

    @asynccontextmanager
    async def lifespan(_: MCPServer[None]) -> AsyncIterator[None]:
        nonlocal users
        users += 1
        try:
            yield
        finally:
            users -= 1
            if not users:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(workbench.close)

    return lifespan
