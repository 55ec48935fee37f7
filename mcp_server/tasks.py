"""The work behind each tool that may take long, by the tool's name: how it is begun and how its result is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mcp_types import CallToolResult, ResourceLink

from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.mcp_server.calls import ProgressReporter, failure, in_thread, success
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.records import Record

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Task:
    """One tool's work: ``start(arguments, reporter)``; its record, told in a few words and with its files."""

    start: Callable[[Mapping[str, Any], ProgressReporter], Awaitable[Record]]
    tell: Callable[[Any], str]
    links: Callable[[Any], Iterable[ResourceLink]] = lambda _: ()

    async def run(self, arguments: Mapping[str, Any], reporter: ProgressReporter) -> CallToolResult:
        """The tool's result, an error of ours as an error."""
        try:
            record = await self.start(arguments, reporter)
        except TumorChainError as error:
            return failure(error)
        return success(record, self.tell(record), self.links(record))


def blocking(
    method: Callable[..., R],
    tell: Callable[[R], str],
    links: Callable[[R], Iterable[ResourceLink]] = lambda _: (),
) -> Task:
    """A task from a method that takes the tool's arguments and ``job``."""

    async def start(arguments: Mapping[str, Any], reporter: ProgressReporter) -> R:
        def work(job: Job) -> R:
            return method(**arguments, job=job)

        return await in_thread(work, reporter)

    return Task(start, tell, links)


class Runner(Protocol):
    """Runs a tool's task for a caller."""

    async def call(
        self, tool: str, arguments: Mapping[str, Any], reporter: ProgressReporter, wait_s: float
    ) -> CallToolResult: ...


class Inline:
    """Within the call, to its end: for a caller in this process, who goes away with it."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks

    async def call(
        self, tool: str, arguments: Mapping[str, Any], reporter: ProgressReporter, wait_s: float
    ) -> CallToolResult:
        return await self._tasks[tool].run(arguments, reporter)
