"""Between async tools and blocking work: progress, cancellation, errors."""

from __future__ import annotations

import threading

import anyio
import pytest

from tumorchain_agent.errors import ScanError
from tumorchain_agent.mcp_server import calls
from tumorchain_agent.mcp_server.calls import failure, in_thread
from tumorchain_agent.mcp_server.jobs import Job, Lane

Sent = tuple[float, float | None, str | None]


class Listener:
    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.enough = anyio.Event()

    async def report_progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        self.sent.append((progress, total, message))
        if len(self.sent) >= 3:
            self.enough.set()


def test_progress_that_falls_back_still_rises_for_the_client() -> None:
    def work(job: Job) -> str:
        for phase, fraction in (("a", 0.5), ("b", 0.1), ("b", 0.2), ("c", 7.0)):
            job.progress(phase, fraction)
        return "done"

    async def main() -> list[Sent]:
        listener = Listener()
        assert await in_thread(work, listener) == "done"
        return listener.sent

    sent = anyio.run(main)
    assert [message for _, _, message in sent] == ["a", "b", "c"]
    values = [value for value, _, _ in sent]
    assert values == sorted(set(values))
    assert values[-1] == 1.0


def test_silent_work_still_sends_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(calls, "POLL_S", 0.001)
    heard = threading.Event()

    def work(job: Job) -> None:
        job.progress("thinking", 0.25)
        assert heard.wait(60)

    async def main() -> list[Sent]:
        listener = Listener()

        async def release() -> None:
            await listener.enough.wait()
            heard.set()

        async with anyio.create_task_group() as group:
            group.start_soon(release)
            await in_thread(work, listener)
        return listener.sent

    sent = anyio.run(main)
    assert {message for _, _, message in sent} <= {"working", "thinking"}
    assert sent[-1][2] == "thinking"
    values = [value for value, _, _ in sent]
    assert values == sorted(set(values))
    assert values[-1] < 0.26


def test_a_cancelled_call_ends_at_once_and_its_thread_is_told() -> None:
    begun, told = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        begun.set()
        while not job.cancelled():
            threading.Event().wait(0.001)
        told.set()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(in_thread, work, Listener())
            await anyio.to_thread.run_sync(begun.wait)
            group.cancel_scope.cancel()

    anyio.run(main)
    assert told.wait(60)


def test_an_error_of_the_work_comes_out_as_it_was_raised() -> None:
    cause = ValueError("why")

    def work(job: Job) -> None:
        raise ScanError("ct.nii.gz is 2-D; pass a volume") from cause

    with pytest.raises(ScanError, match="2-D") as caught:
        anyio.run(in_thread, work, Listener())
    assert caught.value.__cause__ is cause


def test_a_failure_is_code_and_message_and_never_content() -> None:
    result = failure(ScanError("ct.nii.gz is 2-D; pass a volume"))
    assert result.is_error
    assert result.structured_content is None
    assert [getattr(block, "text", "") for block in result.content] == [
        "ScanError: ct.nii.gz is 2-D; pass a volume"
    ]


def test_a_part_of_a_job_reports_fractions_of_the_whole() -> None:
    heard: list[tuple[str, float]] = []
    job = Job(lambda phase, fraction: heard.append((phase, fraction)))
    job.part(0.5, 1.0).part(0.0, 0.5).progress("deep", 1.0)
    assert heard == [("deep", 0.75)]


def test_a_lane_is_free_again_after_an_error() -> None:
    lane = Lane("encode")
    with pytest.raises(ScanError), lane.hold(Job()):
        raise ScanError("x")
    with lane.hold(Job()) as job:
        job.progress("again", 0.1)
