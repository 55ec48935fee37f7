"""Calls that outlive their callers: jobs of a real server with real clients."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from jsonschema import validate  # type: ignore[import-untyped]
from mcp import Client

from tests.mcp_server.conftest import PRESENT, Files, ScriptedSegmenter, call, text_of
from tumorchain_agent.errors import Cancelled
from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.mcp_server import background, calls
from tumorchain_agent.mcp_server.contexts import context_of
from tumorchain_agent.mcp_server.guard import NoGuard
from tumorchain_agent.mcp_server.job_store import JobStore
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.server import connect_in_memory, serving
from tumorchain_agent.mcp_server.store import read_work_log
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings

Connect = Callable[[], Any]


class Gate:
    """Segmentation waits here until a test opens it; counts who came, and who was told to stop."""

    def __init__(self) -> None:
        self.begun, self.open, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self.runs = 0

    def __call__(self, job: Job) -> None:
        self.runs += 1
        self.begun.set()
        while not self.open.wait(0.01):
            try:
                job.check("segmentation")
            except Cancelled:
                self.stopped.set()
                raise


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def bench(settings: Settings, files: Files, gate: Gate) -> Workbench:
    return Workbench(settings, ScriptedSegmenter(settings, files.masks, gate))


def with_server(bench: Workbench, steps: Callable[[Connect], Awaitable[None]]) -> None:
    """Run steps that connect as they like to one server."""

    async def main() -> None:
        with bench:
            async with serving(bench) as server:
                await steps(lambda: connect_in_memory(server))

    anyio.run(main)


async def begin(client: Client, files: Files, **more: Any) -> tuple[str, dict[str, Any]]:
    """A segmentation that nobody waits for."""
    scan = (await call(client, "open_scan", path=str(files.scan)))["scan_id"]
    return scan, await call(client, "segment_organs", scan_id=scan, wait_seconds=0, **more)


def test_a_call_that_is_not_done_in_time_becomes_a_job_whose_result_another_client_fetches(
    bench: Workbench, gate: Gate, files: Files
) -> None:
    async def steps(connect: Connect) -> None:
        async with connect() as client:
            schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}
            _, job = await begin(client, files)
            validate(job, schemas["segment_organs"] or {})
            assert job["status"] == "running"
        await anyio.to_thread.run_sync(gate.begun.wait, 60)
        async with connect() as client:
            (listed,) = (await call(client, "list_jobs"))["jobs"]
            assert (listed["job_id"], listed["tool"]) == (job["job_id"], "segment_organs")
            waiting = await client.call_tool("get_job", {"job_id": job["job_id"], "wait_seconds": 0.3})
            assert "no finding" in text_of(waiting)
            gate.open.set()
            done = await call(client, "get_job", job_id=job["job_id"], wait_seconds=60)
            validate(done, schemas["get_job"] or {})
            assert done["status"] == "done"
            validate(done["result"], schemas["segment_organs"] or {})
            assert tuple(mask["organ"] for mask in done["result"]["masks"]) == PRESENT
            again = await call(client, "get_job", job_id=job["job_id"])
            assert again["result"] == done["result"]

    with_server(bench, steps)


def test_many_callers_of_one_task_share_one_run(bench: Workbench, gate: Gate, files: Files) -> None:
    async def steps(connect: Connect) -> None:
        found: list[str] = []

        async def one() -> None:
            async with connect() as client:
                _, job = await begin(client, files)
                found.append(job["job_id"])

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(one)
        assert len(set(found)) == 1
        gate.open.set()
        async with connect() as client:
            await call(client, "get_job", job_id=found[0], wait_seconds=60)
        assert gate.runs == 1

    with_server(bench, steps)


def test_cancelling_stops_the_work_within_two_seconds_and_keeps_nothing_of_it(
    bench: Workbench, gate: Gate, files: Files
) -> None:
    async def steps(connect: Connect) -> None:
        async with connect() as client:
            scan, job = await begin(client, files)
            await anyio.to_thread.run_sync(gate.begun.wait, 60)
            with anyio.fail_after(2.0):
                cancelled = await call(client, "cancel_job", job_id=job["job_id"])
                assert await anyio.to_thread.run_sync(gate.stopped.wait, 2)
            assert cancelled["status"] == "cancelled"
            refused = await client.call_tool("get_job", {"job_id": job["job_id"]})
            assert refused.is_error
            assert text_of(refused).startswith("Cancelled: ")
            gate.open.set()
            found = await call(client, "segment_organs", scan_id=scan, wait_seconds=60)
            assert not found["info"]["from_cache"]

    with_server(bench, steps)
    assert [entry["work"] for entry in read_work_log(bench.settings.cache_dir)].count("segment") == 1


def test_a_job_that_fails_is_an_error_of_its_tool(bench: Workbench, files: Files) -> None:
    async def steps(connect: Connect) -> None:
        async with connect() as client:
            scan = (await call(client, "open_scan", path=str(files.scan)))["scan_id"]
            arguments = {"scan_id": scan, "masks": str(files.scan), "wait_seconds": 0}
            job = await call(client, "segment_organs", **arguments)
            failed = await client.call_tool("get_job", {"job_id": job["job_id"]})
            assert failed.is_error
            assert text_of(failed).startswith("LabelMapError: ")
            unknown = await client.call_tool("get_job", {"job_id": "none"})
            assert unknown.is_error
            assert "list_jobs" in text_of(unknown)

    with_server(bench, steps)


def test_a_crash_of_the_work_fails_its_job_and_not_the_server(
    bench: Workbench, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("patient Doe")

    async def steps(connect: Connect) -> None:
        async with connect() as client:
            monkeypatch.setattr(bench, "open_scan", lambda **_: crash())
            result = await client.call_tool("open_scan", {"path": str(files.scan)})
            assert result.is_error
            assert text_of(result).startswith("TumorChainError: open_scan failed unexpectedly")
            assert "Doe" not in text_of(result)
            monkeypatch.undo()
            assert (await call(client, "open_scan", path=str(files.scan)))["scan_id"]

    with_server(bench, steps)


def test_jobs_go_on_with_the_next_server_when_theirs_ends(settings: Settings, files: Files) -> None:
    kept: dict[str, Any] = {}
    closed = Gate()

    async def first(connect: Connect) -> None:
        async with connect() as client:
            _, kept["job"] = await begin(client, files)
            await anyio.to_thread.run_sync(closed.begun.wait, 60)

    with_server(Workbench(settings, ScriptedSegmenter(settings, files.masks, closed)), first)

    async def second(connect: Connect) -> None:
        async with connect() as client:
            done = await call(client, "get_job", job_id=kept["job"]["job_id"], wait_seconds=60)
            assert done["status"] == "done"
            assert tuple(mask["organ"] for mask in done["result"]["masks"]) == PRESENT

    with_server(Workbench(settings, ScriptedSegmenter(settings, files.masks)), second)


def test_two_servers_of_one_cache_share_jobs_and_cancel_each_others(
    settings: Settings, files: Files, gate: Gate
) -> None:
    async def main() -> None:
        benches = [Workbench(settings, ScriptedSegmenter(settings, files.masks, gate)) for _ in range(2)]
        with benches[0], benches[1]:
            async with (
                serving(benches[0]) as one,
                serving(benches[1]) as two,
                connect_in_memory(one) as here,
                connect_in_memory(two) as there,
            ):
                scan, job = await begin(here, files)
                same = await call(there, "segment_organs", scan_id=scan, wait_seconds=0)
                assert same["job_id"] == job["job_id"]
                cancelled = await call(there, "cancel_job", job_id=job["job_id"])
                assert cancelled["status"] == "cancelled"
                assert await anyio.to_thread.run_sync(gate.stopped.wait, 5)
                assert gate.runs == 1

    anyio.run(main)


@pytest.mark.parametrize(
    ("attempts", "age_s", "cancel", "said"),
    [
        (2, 0.0, 0, "killed 2 times"),
        (1, 2 * 24 * 3600.0, 0, "more than a day ago"),
        (1, 0.0, 1, "was cancelled"),
    ],
)
def test_an_orphan_is_marked_and_not_begun_again_where_that_can_not_help(
    settings: Settings, files: Files, attempts: int, age_s: float, cancel: int, said: str
) -> None:
    dead = JobStore(settings.cache_dir / "jobs", context_of(settings, NoGuard()))
    dead.add("abc", "key", "segment_organs", {"scan_id": "x"})
    values = (attempts, time.time() - age_s, cancel)
    dead._db.execute("update jobs set attempts = ?, updated = ?, cancel = ?", values)
    dead.close()

    async def steps(connect: Connect) -> None:
        async with connect() as client:
            result = await client.call_tool("get_job", {"job_id": "abc"})
            assert result.is_error
            assert said in text_of(result)

    with_server(Workbench(settings, ScriptedSegmenter(settings, files.masks)), steps)


def test_progress_of_a_job_reaches_whoever_waits_for_it_with_signs_of_life(
    bench: Workbench, gate: Gate, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls.HEARTBEAT_S <= 10.0
    monkeypatch.setattr(calls, "HEARTBEAT_S", 0.0)
    heard: list[tuple[float, str | None]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))
        if len(heard) > 5:
            gate.open.set()

    async def steps(connect: Connect) -> None:
        async with connect() as client:
            _, job = await begin(client, files)
            arguments = {"job_id": job["job_id"], "wait_seconds": 60}
            await client.call_tool("get_job", arguments, progress_callback=listen)

    with_server(bench, steps)
    assert "predicting" in [message for _, message in heard]
    assert [value for value, _ in heard] == sorted({value for value, _ in heard})


def test_the_graphs_own_client_waits_for_jobs(
    bench: Workbench, gate: Gate, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(connect: Connect) -> None:
        async with connect() as client:
            scan, _ = await begin(client, files)
            threading.Timer(0.2, gate.open.set).start()
            read = client.call_tool

            async def impatient(tool: str, arguments: dict[str, Any], **more: Any) -> Any:
                return await read(tool, arguments | {"wait_seconds": 0.05}, **more)

            monkeypatch.setattr(client, "call_tool", impatient)
            found = await CTTools(client).segment_organs(scan)
            assert tuple(found.info.organs_present) == PRESENT

    with_server(bench, steps)


def test_no_more_jobs_than_the_limit_are_taken(
    bench: Workbench, gate: Gate, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MAX_JOBS", 1)

    async def steps(connect: Connect) -> None:
        async with connect() as client:
            scan, _ = await begin(client, files)
            refused = await client.call_tool("encode_scan", {"scan_id": scan})
            assert refused.is_error
            assert "list_jobs" in text_of(refused)

    with_server(bench, steps)


def test_a_finished_call_leaves_no_job_behind(bench: Workbench, files: Files, tmp_path: Path) -> None:
    async def steps(connect: Connect) -> None:
        async with connect() as client:
            scan = (await call(client, "open_scan", path=str(files.scan)))["scan_id"]
            for _ in range(3):
                await client.call_tool("segment_organs", {"scan_id": scan, "masks": str(files.masks)})
            listed = (await call(client, "list_jobs"))["jobs"]
            assert [job for job in listed if job["status"] == "running"] == []
            assert "masks" not in json.dumps(listed)

    with_server(bench, steps)
