"""LangGraph's SQLite checkpoints for an asynchronous graph, one hop to a thread a write."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.sqlite import SqliteSaver


class ThreadedSqliteSaver(SqliteSaver):
    """Each call of LangGraph's synchronous saver whole in a worker thread.

    Its asynchronous saver, over aiosqlite, goes to a thread and back for every statement, cursor and commit: some
    seventy times a question, which was a third of the agent's own time. The database on disk is the same.
    """

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await anyio.to_thread.run_sync(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        listed = partial(self.list, config, filter=filter, before=before, limit=limit)
        for found in await anyio.to_thread.run_sync(lambda: [*listed()]):
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await anyio.to_thread.run_sync(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await anyio.to_thread.run_sync(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await anyio.to_thread.run_sync(self.delete_thread, thread_id)

    def close(self) -> None:
        """Close the database after the write that is under way, say of a node that its sibling's failure stopped.

        Closed in the midst of a write, the connection would keep the database's write lock.
        """
        with self.lock:
            self.conn.close()
