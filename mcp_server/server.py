"""The MCP server: tools, resources and prompts over one workbench; over stdio, or in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp import Client
from mcp.server import MCPServer

from tumorchain_agent import __version__
from tumorchain_agent.graph.client import connect
from tumorchain_agent.mcp_server.answers import Render
from tumorchain_agent.mcp_server.asking import Asker
from tumorchain_agent.mcp_server.background import Jobs
from tumorchain_agent.mcp_server.contexts import context_of
from tumorchain_agent.mcp_server.guard import PathGuard
from tumorchain_agent.mcp_server.prompts import prompts
from tumorchain_agent.mcp_server.resources import Resources
from tumorchain_agent.mcp_server.tasks import Inline, Runner
from tumorchain_agent.mcp_server.toolset import Toolset
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.mcp_server.works import tasks_of
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.settings import Settings

INSTRUCTIONS = f"""\
Organ-by-organ reading of 3-D CT scans. {DISCLAIMER}

Start with list_organs (what can be found) and open_scan (a path on the server's machine); look at its gate and
pass its scan_id to the other tools. segment_organs finds the organs; measure_organs, measure_contact,
classify_abnormality, view_organ and extract_roi_tokens use that segmentation, and make it when there is none
yet. ask runs the whole reasoning in one call, explain tells what one of its claims rests on.

Results are cached. A call that isn't done after wait_seconds returns status "running" and a job_id: the work goes
on, get_job fetches its result, also from another connection. Do not call the tool anew in the meantime.

Quote measurements rather than estimating. An organ that is absent or "not assessed" is not a normal organ.
Pass on the notices of results: they say when a number or a sentence can't be relied on. A tool error is no
finding.
"""


def build_server(source: Workbench | Settings) -> MCPServer[None]:
    """The server for a caller in this process: each call runs to its end, or until its caller goes.

    Over the caller's workbench, or over one of its own that closes with the last connection.
    """
    workbench = Workbench(source) if isinstance(source, Settings) else source

    def connect_to_itself() -> AbstractAsyncContextManager[Client]:
        return connect_in_memory(server)

    tasks = tasks_of(workbench, Asker(workbench, connect_to_itself))
    lifespan = _closing(workbench) if isinstance(source, Settings) else None
    server = _assembled(workbench, Inline(tasks), None, lifespan=lifespan)
    return server


@asynccontextmanager
async def serving(
    workbench: Workbench, render: Render | None = None, **options: Any
) -> AsyncIterator[MCPServer[None]]:
    """The server for callers elsewhere: what takes long becomes a job that goes on without them.

    ``render`` makes ``report://`` pages; ``options`` go to ``MCPServer``.
    """
    inner = build_server(workbench)
    tasks = tasks_of(workbench, Asker(workbench, lambda: connect_in_memory(inner)))
    folder, context = workbench.settings.cache_dir / "jobs", context_of(workbench.settings, workbench.guard)
    async with Jobs(folder, tasks, workbench.guard, context) as jobs:
        yield _assembled(workbench, jobs, render, **options)


def _assembled(
    workbench: Workbench, runner: Runner, render: Render | None, **options: Any
) -> MCPServer[None]:
    server: MCPServer[None] = MCPServer(
        "tumorchain-agent",
        title="TumorChain agent",
        description="Traceable, organ-by-organ reasoning over 3-D CT",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=Toolset(workbench, runner).tools(),
        log_level="WARNING",
        **options,
    )
    Resources(workbench, render).register(server)
    for prompt in prompts():
        server.add_prompt(prompt)
    return server


def connect_in_memory(server: MCPServer[None]) -> AbstractAsyncContextManager[Client]:
    """An MCP client of ``server`` in this process: tools, resources and progress as over any transport.

    An exception of the block comes out as it was raised.
    """
    return connect(server)


def run_stdio(settings: Settings, render: Render | None = None) -> None:
    """Serve one client over stdin and stdout until it disconnects. Raises InputError for roots that can't be.

    Nothing but the protocol is on stdout: while serving, the SDK points file descriptor 1 at stderr and keeps
    the client's end to itself; before and after that it is done here, so that nothing which a library left
    in a buffer reaches the client when the process ends.
    """

    async def serve() -> None:
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            server = await stack.enter_async_context(serving(workbench, render))
            group.start_soon(_leave_on_signal, stack, workbench)
            await server.run_stdio_async()
            group.cancel_scope.cancel()

    with _stdout_on_stderr():
        workbench = Workbench(settings, guard=guard_of(settings))
    try:
        anyio.run(serve)
    finally:
        with _stdout_on_stderr():
            workbench.close()
            sys.stdout.flush()


async def _leave_on_signal(stack: AsyncExitStack, workbench: Workbench) -> None:
    """End jobs and workers, then the process at once: the thread that reads stdin can't be woken."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
                await anyio.to_thread.run_sync(workbench.close)
            os._exit(128 + number)


def guard_of(settings: Settings) -> PathGuard:
    """Of the settings' roots, by default the working directory. Raises InputError for roots that can't be."""
    return PathGuard(settings.roots or (Path.cwd(),))


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
