"""What is kept of patients is for the user alone, whoever makes the cache folder first."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tumorchain_agent.graph.threads import open_checkpoints
from tumorchain_agent.mcp_server.index import Index
from tumorchain_agent.mcp_server.job_store import JobStore
from tumorchain_agent.tools.cache import Cache

First = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def ask_in(folder: Path) -> None:
    """Open the threads as a question does."""

    async def main() -> None:
        async with open_checkpoints(folder / "threads.sqlite", "t", lambda: None) as saver:
            with closing(sqlite3.connect(folder / "threads.sqlite")) as reader:
                reader.execute("select * from checkpoints").fetchall()
                assert saver.conn.execute("pragma journal_mode").fetchone() == ("wal",)
                for file in folder.glob("threads.sqlite*"):
                    assert mode(file) & 0o077 == 0, file.name

    asyncio.run(main())


@pytest.mark.parametrize(
    "first",
    [
        lambda cache: Index(cache / "index").write("scans", "abc", {}),
        lambda cache: JobStore(cache / "jobs", "context").close(),
        lambda cache: Cache(cache / "results", 1000).put("key", lambda path: path.touch()),
        ask_in,
    ],
    ids=["index", "jobs", "results", "threads"],
)
def test_whoever_makes_the_cache_folder_makes_it_for_the_user_alone(first: First, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "tumorchain-agent"
    first(cache)
    made = [cache.parent, cache, *(path for path in cache.rglob("*") if path.is_dir())]
    assert {mode(folder) for folder in made} == {0o700}


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    cache = tmp_path / "shared"
    cache.mkdir(mode=0o755)
    ask_in(cache)
    assert mode(cache) == 0o755


def test_the_threads_database_is_for_the_user_alone_wherever_it_is(tmp_path: Path) -> None:
    ask_in(tmp_path)
    assert mode(tmp_path / "threads.sqlite") == 0o600
