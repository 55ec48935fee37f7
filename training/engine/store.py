"""What a run has paid for and finished, in one SQLite file: replies by the content of their calls, and outcomes.

A reply is committed before anything is done with it, so that a killed run never asks for it again.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tumorchain_agent.errors import OutputError
from tumorchain_agent.records import Record

FILE: Final = "engine.sqlite"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcomes (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, outcome TEXT NOT NULL
);
"""


class Reply(Record):
    """What a model said."""

    text: str
    cut_off: bool
    """It stopped at its token limit."""
    filtered: bool = False
    """The endpoint's filter withheld it."""
    prompt_tokens: int
    completion_tokens: int


class Store:
    """Used from one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def reply(self, key: str) -> Reply | None:
        row = self._connection.execute("SELECT reply FROM calls WHERE key = ?", (key,)).fetchone()
        return None if row is None else Reply.model_validate_json(row[0])

    def put_reply(self, key: str, reply: Reply) -> None:
        with self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO calls VALUES (?, ?)", (key, reply.model_dump_json())
            )

    def is_finished(self, number: int, key: str) -> bool:
        """Whether a case has an outcome that was made from the same (``key``)."""
        query = "SELECT 1 FROM outcomes WHERE number = ? AND key = ?"
        return self._connection.execute(query, (number, key)).fetchone() is not None

    def put_outcome(self, number: int, key: str, outcome: str) -> None:
        with self._connection:
            self._connection.execute(
                "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (number, key, outcome)
            )

    def drop_from(self, number: int) -> None:
        """Forget the outcomes of cases that the source no longer has."""
        with self._connection:
            self._connection.execute("DELETE FROM outcomes WHERE number >= ?", (number,))

    def outcomes(self) -> Iterator[str]:
        """In the order of the cases."""
        for (outcome,) in self._connection.execute("SELECT outcome FROM outcomes ORDER BY number"):
            yield outcome

    def calls(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM calls").fetchone()[0])


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store of an output folder, for one run at a time. OutputError when it can't be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{FILE}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{folder} is in use by another run; wait for it or name another --out"
                ) from error
            connection = sqlite3.connect(folder / FILE)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.executescript(_SCHEMA)
                yield Store(connection)
            finally:
                connection.close()
    except sqlite3.Error as error:
        raise OutputError(
            f"{folder / FILE} can't be used ({error}); free space, or remove it to begin anew"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written ({error.strerror}); free space or name another folder"
        ) from error
