"""One question of one scan is one LangGraph thread: its name, and one run of it at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from langchain_core.language_models import BaseChatModel

import tumorchain_agent
from tumorchain_agent.errors import OutputError
from tumorchain_agent.graph.checkpoints import ThreadedSqliteSaver
from tumorchain_agent.graph.llm import llm_name
from tumorchain_agent.graph.state import IIRConfig
from tumorchain_agent.tools.private import private_file, private_folder

_POLL_S = 0.1
_AFTER_POWER_LOSS = "pragma synchronous = normal"
"""What a killed process has written is there; after a power cut the last rounds may be missing, none is damaged.
Without it every step waits for the disk, most of the agent's own time."""


def make_thread_id(
    scan_id: str,
    question: str,
    config: IIRConfig,
    chat_model: BaseChatModel,
    masks: str | None,
    checkpoint_id: str | None = None,
) -> str:
    """32 hex digits over all that the answer depends on; the same question again is the same thread.

    A scan counts by its content, ``masks`` by its file's content, or by its path where the file is elsewhere.
    ``checkpoint_id`` is of what the server encodes and classifies with.
    """
    parts = {
        "version": tumorchain_agent.__version__,
        "scan": scan_id,
        "question": question,
        "config": config.model_dump(mode="json"),
        "llm": [type(chat_model).__name__, llm_name(chat_model), _parameters(chat_model)],
        "checkpoint": checkpoint_id,
        "endpoint": getattr(chat_model, "openai_api_base", None),
        "masks": _content_hash(masks) if masks is not None else None,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _parameters(chat_model: BaseChatModel) -> str:
    """What the chat model says it is identified by: weights, temperature …, never its key."""
    return json.dumps(dict(chat_model._identifying_params), sort_keys=True, default=repr)


def _content_hash(path: str) -> str:
    file = Path(path)
    if not file.is_file():
        return f"path {path}"
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@asynccontextmanager
async def open_checkpoints(
    database: Path, thread_id: str, waits: Callable[[], None]
) -> AsyncIterator[ThreadedSqliteSaver]:
    """The thread's checkpoints, held for this run alone; ``waits`` is called once when another run has them.

    Raises OutputError when the database can't be used.
    """
    async with AsyncExitStack() as stack:
        try:
            private_folder(database.parent)
            await stack.enter_async_context(one_run(database, thread_id, waits))
            saver = await anyio.to_thread.run_sync(_opened, database)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(database, error) from error
        try:
            yield saver
        except sqlite3.Error as error:
            raise _unusable(database, error) from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(saver.close)


def _opened(database: Path) -> ThreadedSqliteSaver:
    private_file(database)
    saver = ThreadedSqliteSaver(sqlite3.connect(database, check_same_thread=False))
    try:
        saver.setup()
        saver.conn.execute(_AFTER_POWER_LOSS)
    except sqlite3.Error:
        saver.close()
        raise
    return saver


def _unusable(database: Path, error: Exception) -> OutputError:
    return OutputError(
        f"checkpoint database {database} can't be used ({error}); name another one or make it writable"
    )


@asynccontextmanager
async def one_run(checkpoint_db: Path, thread_id: str, waits: Callable[[], None]) -> AsyncIterator[None]:
    """Hold the thread: a second run of it, in this process or another, waits and then finds the answer.

    ``waits`` is called once when it has to. The lock is the kernel's: a killed run leaves none behind.
    """
    folder = checkpoint_db.with_name(checkpoint_db.name + ".locks")
    private_folder(folder)
    descriptor = os.open(folder / thread_id, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _locked(descriptor):
            waits()
            while not _locked(descriptor):
                await anyio.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
