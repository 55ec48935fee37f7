"""Servers of one cache folder whose callers have other rights, or get other results, share no jobs."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import nibabel
import numpy as np
import pytest
from mcp import Client

from tests.mcp_server.conftest import ScriptedSegmenter, call, text_of
from tumorchain_agent.mcp_server.arguments import PATHS
from tumorchain_agent.mcp_server.contexts import context_of
from tumorchain_agent.mcp_server.guard import NoGuard, PathGuard
from tumorchain_agent.mcp_server.job_store import KEPT_S, JobStore
from tumorchain_agent.mcp_server.server import connect_in_memory, serving
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings

SLICES = {"a": 20, "b": 24, "c": 28}
"""Of each root's ``ct.nii.gz``, to tell them apart."""


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in SLICES}
    for name, root in found.items():
        root.mkdir()
        hu = np.random.default_rng(SLICES[name]).integers(-100, 100, (16, 16, SLICES[name]), np.int16)
        make: Any = nibabel.Nifti1Image
        nibabel.save(make(hu, np.diag([4.0, 4.0, 4.0, 1.0])), root / "ct.nii.gz")
    return found


class Held(Workbench):
    """Opens scans when a test lets it; counts how often that was begun."""

    def __init__(self, settings: Settings, root: Path) -> None:
        super().__init__(settings, ScriptedSegmenter(settings, root), PathGuard([root]))
        self.go, self.runs = threading.Event(), 0

    def open_scan(self, *arguments: Any, **named: Any) -> Any:
        self.runs += 1
        self.go.wait(60)
        return super().open_scan(*arguments, **named)


@asynccontextmanager
async def client_of(bench: Workbench) -> AsyncIterator[Client]:
    try:
        async with serving(bench) as server, connect_in_memory(server) as client:
            yield client
    finally:
        bench.close()


def test_the_same_path_is_each_servers_own_file_when_their_roots_differ(
    settings: Settings, roots: dict[str, Path]
) -> None:
    async def main() -> None:
        one, two = Held(settings, roots["a"]), Held(settings, roots["b"])
        async with client_of(one) as a, client_of(two) as b:
            job = await call(a, "open_scan", path="ct.nii.gz", wait_seconds=0)
            two.go.set()
            opened = await call(b, "open_scan", path="ct.nii.gz", wait_seconds=60)
            assert opened["shape"] == [16, 16, SLICES["b"]]
            one.go.set()
            done = await call(a, "get_job", job_id=job["job_id"], wait_seconds=60)
            assert done["result"]["shape"] == [16, 16, SLICES["a"]]

    anyio.run(main)


def test_a_job_of_other_roots_can_not_be_listed_fetched_or_cancelled(
    settings: Settings, roots: dict[str, Path]
) -> None:
    async def main() -> None:
        one, two = Held(settings, roots["a"]), Held(settings, roots["b"])
        async with client_of(one) as a, client_of(two) as b:
            job = await call(a, "open_scan", path="ct.nii.gz", wait_seconds=0)
            await refused_all(b, job["job_id"])
            one.go.set()
            done = await call(a, "get_job", job_id=job["job_id"], wait_seconds=60)
            assert done["status"] == "done"
            await refused_all(b, job["job_id"])

    async def refused_all(client: Client, job_id: str) -> None:
        assert (await call(client, "list_jobs"))["jobs"] == []
        unknown = text_of(await client.call_tool("get_job", {"job_id": "0" * 32}))
        for tool in ("get_job", "cancel_job"):
            refused = await client.call_tool(tool, {"job_id": job_id})
            assert refused.is_error
            assert text_of(refused) == unknown.replace("0" * 32, job_id)

    anyio.run(main)


def left_behind(settings: Settings, root: Path) -> str:
    """A job of a server that was killed in the midst of it."""
    dead = JobStore(settings.cache_dir / "jobs", context_of(settings, PathGuard([root])))
    dead.add("left", "key", "open_scan", {"path": str(root / "ct.nii.gz")})
    dead.close()
    return "left"


def test_an_orphan_waits_for_a_server_with_its_roots(settings: Settings, roots: dict[str, Path]) -> None:
    job_id = left_behind(settings, roots["a"])

    async def main() -> None:
        other, own = Held(settings, roots["b"]), Held(settings, roots["a"])
        other.go.set()
        own.go.set()
        async with client_of(other) as b:
            assert (await call(b, "list_jobs"))["jobs"] == []
            async with client_of(own) as a:
                done = await call(a, "get_job", job_id=job_id, wait_seconds=60)
                assert done["status"] == "done"
                assert done["result"]["shape"] == [16, 16, SLICES["a"]]
        assert (other.runs, own.runs) == (0, 1)

    anyio.run(main)


def test_servers_with_the_same_roots_join_a_path_however_it_is_written(
    settings: Settings, roots: dict[str, Path]
) -> None:
    async def main() -> None:
        one, two = Held(settings, roots["a"]), Held(settings, roots["a"])
        async with client_of(one) as a, client_of(two) as b:
            job = await call(a, "open_scan", path="ct.nii.gz", wait_seconds=0)
            same = await call(b, "open_scan", path=str(roots["a"] / "ct.nii.gz"), wait_seconds=0)
            assert same["job_id"] == job["job_id"]
            one.go.set()
            await call(b, "get_job", job_id=job["job_id"], wait_seconds=60)
        assert (one.runs, two.runs) == (1, 0)

    anyio.run(main)


def test_a_path_that_may_not_be_read_is_refused_before_there_is_a_job(
    settings: Settings, roots: dict[str, Path]
) -> None:
    async def main() -> None:
        async with client_of(Held(settings, roots["a"])) as a:
            outside = {"path": str(roots["b"] / "ct.nii.gz"), "wait_seconds": 0}
            refused = await a.call_tool("open_scan", outside)
            assert text_of(refused).startswith("ScanError: ")
            assert (await call(a, "list_jobs"))["jobs"] == []

    anyio.run(main)


def test_every_argument_that_is_a_path_is_known_as_one(settings: Settings, roots: dict[str, Path]) -> None:
    async def main() -> None:
        async with client_of(Held(settings, roots["a"])) as a:
            arguments = [
                (name, declared)
                for tool in (await a.list_tools()).tools
                for name, declared in tool.input_schema["properties"].items()
            ]
            told = {name for name, declared in arguments if "server's machine" in declared["description"]}
            assert told == set(PATHS)

    anyio.run(main)


def test_a_context_is_of_rights_and_of_what_results_rest_on(
    settings: Settings, roots: dict[str, Path], tmp_path: Path
) -> None:
    def of(*names: str, **changed: Any) -> str:
        return context_of(
            settings.model_copy(update=changed), PathGuard([roots[name] for name in names or ("a",)])
        )

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tumorchain.json").write_text("{}")
    others = [
        of("b"),
        of("a", "b"),
        context_of(settings, NoGuard()),
        of(model=None),
        of(model=tmp_path / "other"),
        of(model=tmp_path / "missing"),
        of(llm_url="http://localhost:8000/v1"),
        of(llm_model="other"),
        of(segmentation="official"),
        of(level_hu=50.0),
        of(max_rounds=3),
    ]
    assert len({of(), *others}) == 1 + len(others)
    assert of("b", "a") == of("a", "b")
    elsewhere = settings.cache_dir / "elsewhere"
    assert of() == of(cache_dir=elsewhere, llm_api_key="new", mcp_token="new", roots=(elsewhere,))


def test_a_checkpoint_that_was_replaced_makes_another_context(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("old")
    before = context_of(settings.model_copy(update={"model": tmp_path}), NoGuard())
    (tmp_path / "weights").write_text("new ones")
    assert context_of(settings.model_copy(update={"model": tmp_path}), NoGuard()) != before


OLD_TABLE = """
create table jobs (
    job_id text primary key, key text not null, tool text not null, arguments text not null,
    status text not null, phase text not null, fraction real not null, answer text,
    owner text not null, attempts integer not null, cancel integer not null default 0,
    created real not null, updated real not null
);
insert into jobs values ('old', 'key', 'open_scan', '{}', 'running', 'waiting', 0, null, 'dead', 1, 0, 1, 9e9);
"""


def test_jobs_of_a_version_without_contexts_are_nobodys(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as old:
        old.executescript(OLD_TABLE)
    for _ in range(2):
        with closing(JobStore(tmp_path, "context")) as store:
            assert store.find("old") is None
            assert store.orphans() == store.latest(9) == []
            assert store.running("key") is None
    with closing(JobStore(tmp_path, "context")) as store:
        store.add("new", "key", "open_scan", {})
        assert [job.job_id for job in store.latest(9)] == ["new"]


def test_jobs_that_no_server_came_back_for_are_forgotten_after_a_week(tmp_path: Path) -> None:
    gone, lives = JobStore(tmp_path, "gone"), JobStore(tmp_path, "lives")
    for store in (gone, lives):
        store.add(store.context, "key", "open_scan", {"path": "/patients/doe"})
    gone._db.execute("update jobs set updated = ?", (time.time() - KEPT_S - 1,))
    gone.close()
    with closing(lives), closing(JobStore(tmp_path, "other")) as other:
        rows = other._db.execute("select job_id from jobs").fetchall()
        assert [row["job_id"] for row in rows] == ["lives"]
