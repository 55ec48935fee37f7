"""Jobs of this server: they go on when their caller is gone, and when the server was killed the next goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import anyio
import anyio.to_thread
from mcp_types import CallToolResult

from tumorchain_agent.errors import Cancelled, InputError, TumorChainError
from tumorchain_agent.mcp_server.calls import ProgressRelay, ProgressReporter, failure, relayed, success
from tumorchain_agent.mcp_server.contexts import with_whole_paths
from tumorchain_agent.mcp_server.guard import Guard
from tumorchain_agent.mcp_server.job_store import RESUMED_S, JobStore, Status, StoredJob
from tumorchain_agent.mcp_server.results import JobList, JobProgress, JobStatus
from tumorchain_agent.mcp_server.tasks import Task
from tumorchain_agent.mcp_server.texts import tell_job, tell_jobs
from tumorchain_agent.tools.cache import content_key

MAX_JOBS: Final = 64
"""Under way or waiting for their turn; each takes a thread."""
KEPT_AFTER_S: Final = 0.2
"""A job that ends sooner is never written to disk."""
WATCH_S: Final = 0.25
STORE_EVERY_S: Final = 0.5
MAX_ATTEMPTS: Final = 2
CLOSING_S: Final = 5.0
_LISTED: Final = 50

logger = logging.getLogger(__name__)


class Running:
    """A job under way in this process; as a reporter it takes the progress of its work."""

    def __init__(self, job_id: str, key: str, tool: str, arguments: Mapping[str, Any]) -> None:
        self.job_id, self.key, self.tool, self.arguments = job_id, key, tool, dict(arguments)
        self.phase, self.fraction = "waiting", 0.0
        self.started = time.time()
        self.answer: CallToolResult | None = None
        self.ended = anyio.Event()
        self.listeners: set[ProgressRelay] = set()
        self.cancelled = False
        self.stored = False
        self.stored_at = 0.0
        self.task: asyncio.Task[None] | None = None

    async def report_progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        self.phase, self.fraction = message or self.phase, progress / (total or 1.0)
        for listener in self.listeners:
            listener(self.phase, self.fraction)


class Jobs:
    """While it is entered, calls become jobs: ``async with Jobs(folder, tasks, guard, context) as jobs``.

    At most one job of a tool with the same arguments is under way, whoever asks, in all servers with the same
    folder and context; jobs of another context are unknown here. Leaving it stops the jobs; the next server
    with the same folder and context takes them up again.
    """

    def __init__(self, folder: Path, tasks: Mapping[str, Task], guard: Guard, context: str) -> None:
        self._folder = folder
        self._guard, self._context = guard, context
        self._tasks = tasks
        self._running: dict[str, Running] = {}
        self._by_key: dict[str, Running] = {}

    async def __aenter__(self) -> Jobs:
        self._store = JobStore(self._folder, self._context)
        self._limiter = anyio.to_thread.current_default_thread_limiter()
        self._limiter.total_tokens = max(self._limiter.total_tokens, 2 * MAX_JOBS)
        self._watcher = asyncio.create_task(self._watch())
        for orphan in self._store.orphans():
            self._take_up(orphan)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [job.task for job in self._running.values() if job.task is not None]
        for task in (self._watcher, *tasks):
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((self._watcher, *tasks), timeout=CLOSING_S)
            await self._threads_end()
        self._store.close()

    async def _threads_end(self) -> None:
        """Threads whose await was cancelled end by themselves, and clear up what they had begun to write."""
        with anyio.move_on_after(CLOSING_S):
            while self._limiter.borrowed_tokens:
                await anyio.sleep(0.02)

    async def call(
        self, tool: str, arguments: Mapping[str, Any], reporter: ProgressReporter, wait_s: float
    ) -> CallToolResult:
        """The tool's result if it comes within ``wait_s``, else the job's status."""
        named = {name: value for name, value in arguments.items() if value is not None}
        try:
            given = await anyio.to_thread.run_sync(with_whole_paths, named, self._guard)
        except InputError as error:
            return failure(error)
        key = content_key(tool, json.dumps(given, sort_keys=True))
        job = self._by_key.get(key)
        if job is None:
            elsewhere = self._store.running(key)
            if elsewhere is not None:
                return await self._wait(elsewhere.job_id, reporter, wait_s, status_only=False)
            if len(self._running) >= MAX_JOBS:
                return failure(
                    InputError(f"{MAX_JOBS} jobs are under way; wait for one (list_jobs) or cancel one")
                )
            job = self._begin(Running(uuid.uuid4().hex, key, tool, given))
        return await self._wait(job.job_id, reporter, wait_s, status_only=False)

    async def get(self, job_id: str, reporter: ProgressReporter, wait_s: float) -> CallToolResult:
        """The job's status, with its result once there is one; a job that failed is an error as the tool's own."""
        return await self._wait(job_id, reporter, wait_s, status_only=True)

    async def cancel(self, job_id: str) -> CallToolResult:
        """Ends the job; nothing happens to one that has ended."""
        job = self._running.get(job_id)
        if job is not None and job.task is not None:
            job.cancelled = True
            job.task.cancel()
            await job.ended.wait()
            status = self._status_of(job)
            return success(status, tell_job(status))
        stored = self._store.find(job_id)
        if stored is None:
            return failure(_unknown(job_id))
        if stored.status == "running":
            self._store.ask_to_cancel(job_id)
            stored = await self._ended_elsewhere(job_id, 2.0) or stored
        status = _status(stored)
        return success(status, tell_job(status))

    def listed(self) -> CallToolResult:
        """The latest jobs, those under way first."""
        here = {job_id: self._status_of(job) for job_id, job in self._running.items()}
        stored = [_status(job) for job in self._store.latest(_LISTED) if job.job_id not in here]
        found = [*here.values(), *stored]
        found.sort(key=lambda status: (status.status != "running", -status.started_at))
        listing = JobList(jobs=tuple(status.model_copy(update={"result": None}) for status in found))
        return success(listing, tell_jobs(listing))

    def _begin(self, job: Running) -> Running:
        self._running[job.job_id] = self._by_key[job.key] = job
        job.task = asyncio.create_task(self._work(job))
        return job

    async def _work(self, job: Running) -> None:
        """Never raises but for what nobody foresaw, which ends the job as failed and stands in the log."""
        answer = failure(
            TumorChainError(f"{job.tool} failed unexpectedly; see the server's log, and call it again")
        )
        status: Status = "failed"
        interrupted = False
        try:
            answer = await self._tasks[job.tool].run(job.arguments, job)
            status = "failed" if answer.is_error else "done"
        except asyncio.CancelledError:
            answer = failure(Cancelled(f"{job.tool} was cancelled; nothing was kept, call it again"))
            status, interrupted = "cancelled", not job.cancelled
        finally:
            job.answer = answer
            if job.stored and interrupted:
                self._store.release(job.job_id)
            elif job.stored:
                self._store.end(job.job_id, status, _dump(answer))
            del self._running[job.job_id]
            self._by_key.pop(job.key, None)
            job.ended.set()

    async def _watch(self) -> None:
        """Keeps the disk current, and looks what other servers want or have left."""
        turn = 0
        while True:
            await asyncio.sleep(WATCH_S)
            turn += 1
            now = time.time()
            for job in self._running.values():
                if not job.stored and now - job.started > KEPT_AFTER_S:
                    self._keep(job)
                elif job.stored and now - job.stored_at > STORE_EVERY_S:
                    self._store.progress(job.job_id, job.phase, job.fraction)
                    job.stored_at = now
            for job_id in self._store.to_cancel():
                wanted = self._running.get(job_id)
                if wanted is not None and wanted.task is not None:
                    wanted.cancelled = True
                    wanted.task.cancel()
            if turn % 8 == 0:
                for orphan in self._store.orphans():
                    self._take_up(orphan)

    def _keep(self, job: Running) -> None:
        if not job.stored:
            self._store.add(job.job_id, job.key, job.tool, job.arguments)
            job.stored, job.stored_at = True, time.time()

    def _take_up(self, orphan: StoredJob) -> None:
        """Go on with a job whose server has ended, under the same name, unless that was tried before."""
        if orphan.job_id in self._running or not self._store.adopt(orphan):
            return
        refusal = self._why_not(orphan)
        if refusal is not None:
            status: Status = "cancelled" if isinstance(refusal, Cancelled) else "failed"
            self._store.end(orphan.job_id, status, _dump(failure(refusal)))
            return
        job = Running(orphan.job_id, orphan.key, orphan.tool, orphan.arguments)
        job.stored = True
        self._begin(job)

    def _why_not(self, orphan: StoredJob) -> TumorChainError | None:
        if orphan.cancel:
            return Cancelled(f"{orphan.tool} was cancelled; nothing was kept, call it again")
        why = ""
        if orphan.attempts >= MAX_ATTEMPTS:
            why = f"was killed {orphan.attempts} times in the midst of it"
        elif time.time() - orphan.updated > RESUMED_S:
            why = "ended in the midst of it, more than a day ago"
        elif orphan.tool not in self._tasks or orphan.key in self._by_key:
            why = "ended in the midst of it"
        return TumorChainError(f"{orphan.tool} failed: the server {why}; call it again") if why else None

    async def _wait(
        self, job_id: str, reporter: ProgressReporter, wait_s: float, *, status_only: bool
    ) -> CallToolResult:
        """For the job's end, at most ``wait_s``, relaying its progress."""
        job = self._running.get(job_id)
        if job is None:
            stored = await self._followed(job_id, reporter, wait_s)
            if stored is None:
                return failure(_unknown(job_id))
            return _told(_status(stored), _load(stored.answer), status_only)
        with anyio.move_on_after(wait_s):
            async with _listening(job, reporter):
                await job.ended.wait()
        if job.answer is None:
            self._keep(job)
        return _told(self._status_of(job), job.answer, status_only)

    async def _followed(self, job_id: str, reporter: ProgressReporter, wait_s: float) -> StoredJob | None:
        """A job of another server, or one that has ended."""
        stored = self._store.find(job_id)
        if stored is None or stored.status != "running" or wait_s <= 0:
            return stored
        with anyio.move_on_after(wait_s):
            async with relayed(reporter) as relay:
                while stored is not None and stored.status == "running":
                    relay(stored.phase, stored.fraction)
                    await anyio.sleep(WATCH_S)
                    stored = self._store.find(job_id)
        return self._store.find(job_id)

    async def _ended_elsewhere(self, job_id: str, wait_s: float) -> StoredJob | None:
        with anyio.move_on_after(wait_s):
            while (stored := self._store.find(job_id)) is not None and stored.status == "running":
                await anyio.sleep(WATCH_S)
        return self._store.find(job_id)

    def _status_of(self, job: Running) -> JobStatus:
        status: Status = "running"
        if job.answer is not None:
            status = "cancelled" if job.cancelled else "failed" if job.answer.is_error else "done"
        return JobStatus(
            job_id=job.job_id,
            tool=job.tool,
            status=status,
            progress=JobProgress(phase=job.phase, fraction=min(job.fraction, 1.0)),
            started_at=job.started,
        )


@asynccontextmanager
async def _listening(job: Running, reporter: ProgressReporter) -> AsyncIterator[None]:
    async with relayed(reporter) as relay:
        relay(job.phase, job.fraction)
        job.listeners.add(relay)
        try:
            yield
        finally:
            job.listeners.discard(relay)


def _told(status: JobStatus, answer: CallToolResult | None, status_only: bool) -> CallToolResult:
    """What the caller of the tool, or of ``get_job``, gets."""
    if answer is None:
        return success(status, tell_job(status))
    if answer.is_error or not status_only:
        return answer
    whole = status.model_copy(update={"result": answer.structured_content})
    return answer.model_copy(update={"structured_content": whole.model_dump(mode="json")})


def _status(stored: StoredJob) -> JobStatus:
    return JobStatus(
        job_id=stored.job_id,
        tool=stored.tool,
        status=stored.status,
        progress=JobProgress(phase=stored.phase, fraction=min(stored.fraction, 1.0)),
        started_at=stored.created,
    )


def _unknown(job_id: str) -> InputError:
    return InputError(f"job {job_id[:40]!r} is not known here; list_jobs shows the jobs of this server")


def _dump(answer: CallToolResult) -> str:
    return answer.model_dump_json(by_alias=True, exclude_none=True)


def _load(answer: str | None) -> CallToolResult | None:
    return None if answer is None else CallToolResult.model_validate_json(answer)
