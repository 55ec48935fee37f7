"""The checkpoint database of the threads, where runs end in the midst of a write."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tumorchain_agent.graph.checkpoints import ThreadedSqliteSaver
from tumorchain_agent.graph.threads import open_checkpoints


def _config(checkpoint: str) -> RunnableConfig:
    return {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": checkpoint}}


async def _put(saver: ThreadedSqliteSaver, checkpoint: str) -> None:
    await saver.aput_writes(_config(checkpoint), [("text", checkpoint)], "task")


def _nobody_waits() -> None:
    raise AssertionError("nobody else runs")


def test_a_write_that_is_under_way_when_a_run_ends_is_finished_and_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "threads.sqlite"
    inserting, go_on = threading.Event(), threading.Event()
    put_writes = SqliteSaver.put_writes

    def slow(saver: SqliteSaver, *arguments: Any) -> None:
        with saver.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            inserting.set()
            go_on.wait(30)
        put_writes(saver, *arguments)

    async def scenario() -> None:
        async with open_checkpoints(database, "t", _nobody_waits) as saver:
            monkeypatch.setattr(SqliteSaver, "put_writes", slow)
            left_behind = asyncio.create_task(_put(saver, "1"))
            await asyncio.to_thread(inserting.wait, 30)
            left_behind.cancel()
            monkeypatch.setattr(SqliteSaver, "put_writes", put_writes)
            asyncio.get_running_loop().call_later(0.05, go_on.set)
        async with open_checkpoints(database, "t", _nobody_waits) as saver:
            await _put(saver, "2")

    asyncio.run(scenario())
    with closing(sqlite3.connect(database, timeout=0)) as opened:
        opened.execute("BEGIN IMMEDIATE")
        assert ("2",) in opened.execute("SELECT checkpoint_id FROM writes").fetchall()


def test_langgraphs_own_asynchronous_saver_reads_what_was_saved_and_the_other_way_round(
    tmp_path: Path,
) -> None:
    database = tmp_path / "threads.sqlite"
    ours, theirs = empty_checkpoint(), empty_checkpoint()

    async def scenario() -> None:
        async with open_checkpoints(database, "t", _nobody_waits) as saver:
            await saver.aput(_config(""), ours, {"step": 1}, {})
        async with AsyncSqliteSaver.from_conn_string(str(database)) as langgraphs:
            found = await langgraphs.aget_tuple(_config(ours["id"]))
            assert found
            assert (found.checkpoint, found.metadata["step"]) == (ours, 1)
            await langgraphs.aput(_config(""), theirs, {"step": 2}, {})
        async with open_checkpoints(database, "t", _nobody_waits) as saver:
            found = await saver.aget_tuple(_config(theirs["id"]))
            assert found
            assert found.checkpoint == theirs
            listed = [each.checkpoint["id"] async for each in saver.alist(None, limit=5)]
            assert set(listed) == {ours["id"], theirs["id"]}
            await saver.adelete_thread("t")
            assert await saver.aget_tuple(_config(theirs["id"])) is None

    asyncio.run(scenario())
