"""The checkpoint database of the threads, where runs end in the midst of a write."""

from __future__ import annotations

import asyncio
from pathlib import Path

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from tumorchain_agent.graph.threads import open_checkpoints


async def _put(saver: AsyncSqliteSaver, checkpoint: str) -> None:
    config: RunnableConfig = {
        "configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": checkpoint}
    }
    await saver.aput_writes(config, [("text", checkpoint)], "task")


def _nobody_waits() -> None:
    raise AssertionError("nobody else runs")


def test_a_write_that_is_under_way_when_a_run_ends_is_finished_and_locks_nobody_out(tmp_path: Path) -> None:
    database = tmp_path / "threads.sqlite"

    async def scenario() -> list[str]:
        inserted = asyncio.Event()
        async with open_checkpoints(database, "t", _nobody_waits) as saver:
            commit = saver.conn.commit

            async def late_commit() -> None:
                inserted.set()
                await asyncio.sleep(0)
                await commit()

            saver.conn.commit = late_commit  # type: ignore[method-assign]
            left_behind = asyncio.create_task(_put(saver, "1"))
            await inserted.wait()
        await left_behind
        async with open_checkpoints(database, "t", _nobody_waits) as saver:
            await _put(saver, "2")
            rows = await saver.conn.execute_fetchall("SELECT checkpoint_id FROM writes ORDER BY 1")
        return [row[0] for row in rows]

    assert asyncio.run(scenario()) == ["1", "2"]
