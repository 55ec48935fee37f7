"""Jobs on disk: what was asked for, how far it is, how it ended; servers of one cache folder and context share them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tumorchain_agent.errors import OutputError
from tumorchain_agent.tools.private import private_file, private_folder

Status = Literal["running", "done", "failed", "cancelled"]
KEPT_S: Final = 7 * 24 * 3600.0
"""How long a job that has ended is remembered."""
RESUMED_S: Final = 24 * 3600.0
"""A job that was cut off longer ago isn't begun again: nobody waits for it."""
BUSY_S: Final = 10.0

_SCHEMA: Final = """
create table if not exists jobs (
    job_id text primary key, key text not null, tool text not null, arguments text not null,
    status text not null, phase text not null, fraction real not null, answer text,
    owner text not null, attempts integer not null, cancel integer not null default 0,
    created real not null, updated real not null, context text not null default ''
);
create index if not exists jobs_by_key on jobs (key, status);
create index if not exists jobs_by_time on jobs (updated);
"""


@dataclass(frozen=True)
class StoredJob:
    """A row of the table."""

    job_id: str
    key: str
    tool: str
    arguments: dict[str, Any]
    status: Status
    phase: str
    fraction: float
    answer: str | None
    """The tool's whole result as JSON, once it has ended."""
    owner: str
    attempts: int
    cancel: bool
    created: float
    updated: float
    context: str
    """Of the servers that may know of it; empty in a row of a version that knew no contexts, so nobody's."""


class JobStore:
    """One for each server process; while it is open, others see that the owner of its jobs lives.

    Jobs of other contexts lie beside and are never shown. The sign of life is a file lock, which the kernel drops
    when the process ends, however it ends.
    """

    def __init__(self, folder: Path, context: str) -> None:
        """Raises OutputError when the folder can't be written."""
        self.owner, self.context = uuid.uuid4().hex, context
        self._owners = folder / "owners"
        try:
            private_folder(self._owners)
            self._sign = os.open(self._owners / self.owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._sign, fcntl.LOCK_EX)
            self._open(folder / "jobs.sqlite")
        except (OSError, sqlite3.Error) as error:
            raise OutputError(
                f"job database in {folder} can't be used ({error}); free space or set TUMORCHAIN_CACHE_DIR to "
                "another folder"
            ) from error

    def _open(self, file: Path) -> None:
        private_file(file)
        self._db = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = normal")
        self._db.executescript(_SCHEMA)
        self._migrate()
        self._forget_old()

    def _migrate(self) -> None:
        """Add what the table of an older version lacks, once however many processes open it."""
        self._db.execute("begin immediate")
        with self._db:
            columns = [row["name"] for row in self._db.execute("pragma table_info(jobs)")]
            if "context" not in columns:
                self._db.execute("alter table jobs add column context text not null default ''")

    def _forget_old(self) -> None:
        """Of every context, also jobs that no server of theirs came back for."""
        before = time.time() - KEPT_S
        self._db.execute("delete from jobs where status != 'running' and updated < ?", (before,))
        left = self._all("select * from jobs where status = 'running' and updated < ?", before)
        for job in left:
            if not self.lives(job.owner):
                self._db.execute("delete from jobs where job_id = ? and owner = ?", (job.job_id, job.owner))

    def close(self) -> None:
        """From now on the owner counts as dead."""
        self._db.close()
        (self._owners / self.owner).unlink(missing_ok=True)
        os.close(self._sign)

    def add(self, job_id: str, key: str, tool: str, arguments: dict[str, Any]) -> None:
        """A job of this process."""
        now = time.time()
        self._db.execute(
            "insert into jobs values (?, ?, ?, ?, 'running', 'waiting', 0, null, ?, 1, 0, ?, ?, ?)",
            (job_id, key, tool, json.dumps(arguments), self.owner, now, now, self.context),
        )

    def progress(self, job_id: str, phase: str, fraction: float) -> None:
        self._db.execute(
            "update jobs set phase = ?, fraction = ?, updated = ? where job_id = ?",
            (phase, fraction, time.time(), job_id),
        )

    def end(self, job_id: str, status: Status, answer: str) -> None:
        self._db.execute(
            "update jobs set status = ?, answer = ?, fraction = 1, updated = ? where job_id = ?",
            (status, answer, time.time(), job_id),
        )

    def find(self, job_id: str) -> StoredJob | None:
        return self._one("select * from jobs where job_id = ? and context = ?", job_id, self.context)

    def running(self, key: str) -> StoredJob | None:
        """The job of this key that is under way, in this process or another."""
        sql = "select * from jobs where key = ? and context = ? and status = 'running'"
        return self._one(sql, key, self.context)

    def latest(self, count: int) -> list[StoredJob]:
        """Newest first."""
        sql = "select * from jobs where context = ? order by created desc limit ?"
        return self._all(sql, self.context, count)

    def ask_to_cancel(self, job_id: str) -> None:
        """Its owner will see it."""
        self._db.execute(
            "update jobs set cancel = 1 where job_id = ? and context = ?", (job_id, self.context)
        )

    def to_cancel(self) -> list[str]:
        """Jobs of this process that another one wants cancelled."""
        sql = "select * from jobs where owner = ? and status = 'running' and cancel = 1"
        return [job.job_id for job in self._all(sql, self.owner)]

    def orphans(self) -> list[StoredJob]:
        """Jobs under way whose process has ended, oldest first."""
        sql = "select * from jobs where status = 'running' and context = ? order by created"
        found = self._all(sql, self.context)
        alive = {job.owner for job in found if self.lives(job.owner)}
        return [job for job in found if job.owner not in alive]

    def adopt(self, job: StoredJob) -> bool:
        """Take over an orphan, unless another process was quicker."""
        changed = self._db.execute(
            "update jobs set owner = ?, attempts = attempts + 1, updated = ? where job_id = ? and owner = ? "
            "and status = 'running'",
            (self.owner, time.time(), job.job_id, job.owner),
        )
        return changed.rowcount == 1

    def release(self, job_id: str) -> None:
        """This process ends in good order before the job does: that doesn't count as an attempt."""
        self._db.execute("update jobs set attempts = attempts - 1 where job_id = ?", (job_id,))

    def lives(self, owner: str) -> bool:
        """Whether the process that goes by this name is still there."""
        if owner == self.owner:
            return True
        with self._lock(owner) as taken:
            return not taken

    @contextmanager
    def _lock(self, owner: str) -> Iterator[bool]:
        """Try to take an owner's sign of life: it can be taken from the dead only, and then it is removed."""
        file = self._owners / owner
        try:
            handle = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
        finally:
            os.close(handle)

    def _one(self, sql: str, *values: Any) -> StoredJob | None:
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else _stored(row)

    def _all(self, sql: str, *values: Any) -> list[StoredJob]:
        return [_stored(row) for row in self._db.execute(sql, values)]


def _stored(row: sqlite3.Row) -> StoredJob:
    values = dict(row)
    return StoredJob(
        **{**values, "arguments": json.loads(values["arguments"]), "cancel": bool(values["cancel"])}
    )
