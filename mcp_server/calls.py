"""From an async tool to blocking work and back: worker threads, progress, cancellation, typed errors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from mcp_types import CallToolResult, ResourceLink, TextContent

from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.records import DISCLAIMER, Record

T = TypeVar("T")

POLL_S = 0.1
HEARTBEAT_S = 5.0
"""Clients reset their idle clock on progress, so a silent phase still sends some."""

ERROR_META = "tumorchain/error"
DISCLAIMER_META = "tumorchain/disclaimer"


class ProgressReporter(Protocol):
    """What is needed of the SDK's ``Context``."""

    async def report_progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None: ...


class ProgressRelay:
    """Takes progress from any thread, hands it to the client in order, ever increasing as MCP demands."""

    def __init__(self, reporter: ProgressReporter) -> None:
        self._reporter = reporter
        self._queue: deque[tuple[str, float]] = deque()
        self._sent = -1.0
        self._phase = "working"
        self._last_time = anyio.current_time()

    def __call__(self, phase: str, fraction: float) -> None:
        self._queue.append((phase, fraction))

    async def run(self) -> None:
        """Until cancelled: send what arrives, and a sign of life when nothing does."""
        while True:
            await self.flush()
            if anyio.current_time() - self._last_time > HEARTBEAT_S:
                await self._send(self._phase, self._sent)
            await anyio.sleep(POLL_S)

    async def flush(self) -> None:
        """Send what has arrived: of each phase the latest fraction."""
        latest: dict[str, float] = {}
        while self._queue:
            phase, fraction = self._queue.popleft()
            latest[phase] = fraction
        for phase, fraction in latest.items():
            if phase != self._phase or fraction > self._sent:
                await self._send(phase, fraction)

    async def _send(self, phase: str, fraction: float) -> None:
        value = min(max(fraction, self._sent + 1e-5, 0.0), 1.0)
        if value <= self._sent:
            return
        self._sent, self._phase, self._last_time = value, phase, anyio.current_time()
        await self._reporter.report_progress(value, 1.0, phase)


@asynccontextmanager
async def relayed(reporter: ProgressReporter) -> AsyncIterator[ProgressRelay]:
    """A relay that works while the block lasts; all that it was told is sent before the block ends well."""
    relay = ProgressRelay(reporter)
    with unwrapped():
        async with anyio.create_task_group() as group:
            group.start_soon(relay.run)
            yield relay
            group.cancel_scope.cancel()
    await relay.flush()


@contextmanager
def unwrapped() -> Iterator[None]:
    """An exception comes out as it was raised, not in the groups that task groups put around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        raise inner from inner.__cause__


async def in_thread(work: Callable[[Job], T], reporter: ProgressReporter) -> T:
    """Run blocking work in a worker thread, relaying its progress.

    When the caller is cancelled the await ends at once and the job's cancel check turns true; the thread then
    ends by itself, and until it does it keeps whatever lane it holds.
    """
    gone = threading.Event()
    try:
        async with relayed(reporter) as relay:
            return await anyio.to_thread.run_sync(work, Job(relay, gone.is_set), abandon_on_cancel=True)
    finally:
        gone.set()


def success(record: Record, text: str, links: Iterable[ResourceLink] = ()) -> CallToolResult:
    """``text`` and links to files for the model, the whole record for programs."""
    return CallToolResult(
        content=[TextContent(type="text", text=f"{text}\n{DISCLAIMER}"), *links],
        structured_content=record.model_dump(mode="json"),
        _meta={DISCLAIMER_META: DISCLAIMER},
    )


def failure(error: TumorChainError) -> CallToolResult:
    """``code: message``, marked as an error, so that it can't be read as a finding."""
    detail: dict[str, Any] = {"code": error.code, "message": str(error), "exit_code": error.exit_code}
    return CallToolResult(
        content=[TextContent(type="text", text=f"{error.code}: {error}")],
        is_error=True,
        _meta={ERROR_META: detail, DISCLAIMER_META: DISCLAIMER},
    )
