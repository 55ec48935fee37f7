"""What became of each row of a batch: a file a row while it runs, Parquet and a page at the end."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, ValidationError

from tumorchain_agent import __version__
from tumorchain_agent.batch_table import Row
from tumorchain_agent.errors import OutputError
from tumorchain_agent.records import DISCLAIMER, FORMAT_VERSION, Answer, Record
from tumorchain_agent.training.atomic import whole_file

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST: Final = "batch.json"
ROWS: Final = "rows"
LOCK: Final = ".lock"
ANSWERS: Final = "answers.parquet"
_DRAFT: Final = re.compile(rf"\.{re.escape(MANIFEST)}\.[0-9a-f]+\.tmp")
_GROUP: Final = 256
"""Rows of a Parquet row group, and in memory."""


class Outcome(Record):
    """A row with its answer, or with the error that it ended in, never with both."""

    format_version: int = FORMAT_VERSION
    disclaimer: str = DISCLAIMER
    row: Row
    key: str
    """Changes with all that the answer depends on and that can be told without opening the scan."""
    status: Literal["answered", "failed"]
    error_code: str | None = None
    error: str | None = None
    answer: Answer | None = None
    seconds: float = 0.0
    attempts: int = 1


class Summary(Record):
    """``batch.json``: what the folder holds."""

    format_version: int = FORMAT_VERSION
    disclaimer: str = DISCLAIMER
    tumorchain_agent: str = __version__
    rows: int
    answered: int
    failed: int
    errors: dict[str, int] = Field(default_factory=dict)
    """Error code → rows."""
    options: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    """Of the last run."""
    finished: bool = False


class BatchFolder:
    """``DIR``: batch.json, rows/ID.json, and at the end answers.parquet and index.html."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))

    def check(self) -> None:
        """OutputError when the folder holds something else; nothing is written."""
        try:
            foreign = self.path.exists() and not (self.path / MANIFEST).is_file() and not self._is_begun()
        except OSError as error:
            raise self._unusable(error) from error
        if foreign:
            raise OutputError(
                f"--out {self.path} holds files but no {MANIFEST} of an earlier batch; name a new folder"
            )

    def _is_begun(self) -> bool:
        """Whether it is empty, or what a run left that couldn't write the manifest."""
        names = {each.name for each in self.path.iterdir() if not _DRAFT.fullmatch(each.name)}
        return names <= {LOCK, ROWS} and not (ROWS in names and any((self.path / ROWS).iterdir()))

    def check_table(self, rows: Iterable[Row]) -> None:
        """OutputError when there are answers, and none to a scan and question of ``rows``: another table's."""
        asked = {(row.scan, row.question) for row in rows}
        others = False
        for file in (self.path / ROWS).glob("*.json"):
            known = _asked(file)
            if known in asked:
                return
            others = others or known is not None
        if others:
            raise OutputError(
                f"--out {self.path} holds the answers of another table, none to a scan and question of this one; "
                "name a new folder, or delete that one if they may go"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made if need be, for this run alone. OutputError when another run has it."""
        try:
            (self.path / ROWS).mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise OutputError(
                f"--out {self.path} is in use by another run; wait for it, or end it"
            ) from error
        finally:
            os.close(lock)

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(f"--out {self.path} can't be written ({error.strerror}); name another folder")

    def outcome(self, row: Row) -> Outcome | None:
        """What is known of a row; ``None`` for nothing, or a file that another version wrote."""
        try:
            text = (self.path / ROWS / f"{row.id}.json").read_text(encoding="utf-8")
            return Outcome.model_validate_json(text)
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, outcome: Outcome) -> None:
        """Keep a row's outcome, whole or not at all."""
        with _whole_file(self.path / ROWS / f"{outcome.row.id}.json") as file:
            file.write(outcome.model_dump_json(indent=1).encode())

    def write_summary(self, summary: Summary) -> None:
        with _whole_file(self.path / MANIFEST) as file:
            file.write(summary.model_dump_json(indent=2).encode())

    def outcomes(self, rows: Iterable[Row]) -> Iterator[Outcome]:
        """Of those rows that have one, in order, one in memory at a time."""
        for row in rows:
            if (found := self.outcome(row)) is not None:
                yield found

    def count(self, rows: Sequence[Row]) -> tuple[int, Counter[str]]:
        """Answered rows, and failed ones by error code."""
        answered, errors = 0, Counter[str]()
        for outcome in self.outcomes(rows):
            if outcome.status == "answered":
                answered += 1
            else:
                errors[outcome.error_code or "unknown"] += 1
        return answered, errors

    def write_parquet(self, rows: Sequence[Row]) -> None:
        """``answers.parquet``: a line for each row, failed ones too, whose conclusion is null."""
        import pyarrow.parquet as parquet

        schema = _schema(sorted({name for row in rows for name in row.more}))
        with (
            _whole_file(self.path / ANSWERS) as file,
            parquet.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            group: list[dict[str, Any]] = []
            for outcome in self.outcomes(rows):
                group.append(flat(outcome))
                if len(group) == _GROUP:
                    _write_group(writer, group, schema)
                    group.clear()
            _write_group(writer, group, schema)


def _asked(file: Path) -> tuple[str, str] | None:
    """Scan and question of an answered row, whatever version wrote it."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        row = told["row"]
        return (str(row["scan"]), str(row["question"])) if told["status"] == "answered" else None
    except (ValueError, KeyError, TypeError):
        return None


def _whole_file(path: Path) -> Any:
    return whole_file(path, "free space, then run the same command again: finished rows are kept")


def _write_group(writer: Any, lines: list[dict[str, Any]], schema: Any) -> None:
    import pyarrow

    if lines:
        writer.write_table(pyarrow.Table.from_pylist(lines, schema))


def _schema(more: Sequence[str]) -> Any:
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    kinds = {
        **dict.fromkeys(("id", "scan", "question", "masks"), text),
        "volume": pa.int64(),
        **dict.fromkeys(("status", "error_code", "error", "conclusion"), text),
        **dict.fromkeys(("primary_organ", "t", "n", "m", "stage"), text),
        **dict.fromkeys(("tnm_flags", "organs_examined", "organs_absent", "notices"), texts),
        **dict.fromkeys(("stopped_because", "scan_id", "checkpoint_id", "llm", "thread_id"), text),
        **dict.fromkeys(
            ("rounds", "prompt_tokens", "cached_tokens", "completion_tokens", "attempts"), pa.int64()
        ),
        "seconds": pa.float64(),
        "answer_json": text,
        "disclaimer": text,
        **dict.fromkeys((f"table.{name}" for name in more), text),
    }
    note = {"tumorchain-agent": json.dumps({"version": __version__, "disclaimer": DISCLAIMER})}
    return pa.schema(list(kinds.items()), metadata=note)


def flat(outcome: Outcome) -> dict[str, Any]:
    """The columns of ``answers.parquet``; a failed row has no value in any that tells of an answer."""
    row = outcome.row
    line: dict[str, Any] = {
        **row.model_dump(exclude={"more"}),
        **{f"table.{name}": value for name, value in row.more.items()},
        "status": outcome.status,
        "error_code": outcome.error_code,
        "error": outcome.error,
        "attempts": outcome.attempts,
        "seconds": outcome.seconds,
        "disclaimer": outcome.disclaimer,
    }
    return line if outcome.answer is None else line | _of_answer(outcome.answer)


def _of_answer(answer: Answer) -> dict[str, Any]:
    tnm, usage = answer.tnm, answer.usage
    return {
        "conclusion": answer.conclusion,
        **{name: getattr(tnm, name) for name in ("primary_organ", "t", "n", "m", "stage")},
        "tnm_flags": list(tnm.flags),
        "organs_examined": list(answer.organs_examined),
        "organs_absent": list(answer.organs_absent),
        "notices": [notice.message for notice in answer.notices],
        "stopped_because": answer.stopped_because,
        "scan_id": answer.scan.scan_id,
        "checkpoint_id": answer.versions.checkpoint_id,
        "llm": answer.versions.llm,
        "thread_id": answer.thread_id,
        "rounds": len(answer.rounds),
        **usage.model_dump(),
        "answer_json": answer.model_dump_json(),
    }
