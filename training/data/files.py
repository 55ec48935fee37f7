"""TumorCoT files, ``.jsonl`` or ``.jsonl.gz``: read line by line, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from pydantic import ValidationError

from tumorchain_agent.errors import DataError, InputError
from tumorchain_agent.records import Record
from tumorchain_agent.training.atomic import whole_file
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.policy import BadSample, Reason
from tumorchain_agent.training.data.record import CoTSample

SUFFIXES: Final = (".jsonl", ".jsonl.gz")
MAX_LINE: Final = 4 << 20
"""Bytes. A longer line is refused without being held in memory."""

Advance = Callable[[int], None]
"""Called with the number of bytes of a file that are read, from time to time."""


class Problem(Record):
    """What is wrong with a line of a file, or a row of a table, and how to mend it."""

    line: int
    """From 1. Tables count rows, without their header."""
    patient: str | None = None
    reason: Reason = Reason.BAD_LINE
    message: str

    def text(self, unit: str = "line") -> str:
        """``line 12 (patient P-7): …``"""
        patient = f" (patient {self.patient})" if self.patient else ""
        return f"{unit} {self.line:,}{patient}: {self.message}"

    def as_bad_sample(self) -> BadSample:
        return BadSample(sample=f"line {self.line}", reason=self.reason, message=self.message)


def check_name(path: Path) -> Path:
    """The path, if its name is that of a TumorCoT file; InputError otherwise."""
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path} is not named .jsonl or .jsonl.gz; name it so")
    return path


@contextmanager
def reading(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The bytes of a file, unpacked if its name ends in ``.gz``, and the file itself.

    The position in the file itself tells how far reading is. InputError when there is no such file.
    """
    try:
        raw = path.open("rb")
    except FileNotFoundError as cause:
        raise InputError(f"{path} does not exist; check the path") from cause
    except OSError as cause:
        raise InputError(f"{path} can't be read ({cause.strerror}); check the path") from cause
    with raw:
        if path.suffix != ".gz":
            yield raw, raw
            return
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield unpacked, raw  # type: ignore[misc]


def read_lines(path: Path, on_progress: Advance | None = None) -> Iterator[tuple[int, CoTSample | Problem]]:
    """Every line with its number from 1: a sample, or what is wrong. One line at a time is in memory.

    A file that is cut off ends with a Problem. InputError when there is no such file.
    """
    with reading(check_name(path)) as (stream, raw):
        for number, line in numbered_lines(stream):
            yield number, line if isinstance(line, Problem) else _parse(number, line)
            if on_progress and number % 1000 == 0:
                on_progress(raw.tell())
        if on_progress:
            on_progress(raw.tell())


def read_samples(path: Path) -> Iterator[CoTSample]:
    """The samples of a good file; DataError, naming the line, at the first that isn't."""
    for _, item in read_lines(path):
        if isinstance(item, Problem):
            raise DataError(f"{path.name} {item.text()}")
        yield item


def numbered_lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | Problem]]:
    """Lines with their numbers from 1; a Problem for one that is too long, and at the end of a damaged file."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_LINE)
            whole = line.endswith(b"\n") or len(line) < MAX_LINE or _skip_line(stream)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            text = f"the file is cut off or damaged here ({error}); copy it again"
            yield number, Problem(line=number, reason=Reason.TRUNCATED_FILE, message=text)
            return
        if not line:
            return
        if whole:
            yield number, line
        else:
            text = f"longer than {MAX_LINE >> 20} MiB; write one object a line"
            yield number, Problem(line=number, message=text)


def _skip_line(stream: IO[bytes]) -> bool:
    """Read on to the end of a line. Was there nothing left of it?"""
    part = stream.readline(MAX_LINE)
    nothing = not part
    while part and not part.endswith(b"\n"):
        part = stream.readline(MAX_LINE)
    return nothing


def _parse(number: int, line: bytes) -> CoTSample | Problem:
    if not line.strip():
        return Problem(line=number, message="empty; remove the line")
    if number == 1 and line.startswith(b"\xef\xbb\xbf"):
        return Problem(
            line=number, message="starts with a byte-order mark; save the file as UTF-8 without one"
        )
    try:
        return CoTSample.model_validate_json(line)
    except ValidationError as error:
        return Problem(line=number, patient=_patient(line), message=explain(error))


def _patient(line: bytes) -> str | None:
    """The patient of a bad line, where that much can be read."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    patient = value.get("patient") if isinstance(value, dict) else None
    return patient if isinstance(patient, str) else None


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream that takes the place of ``path`` when the block ends without an error, else leaves no trace.

    Names in ``.gz`` are packed; equal content gives equal bytes. OutputError when the place can't be written.
    """
    with whole_file(path, "free space or name another file") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                yield packed  # type: ignore[misc]
        else:
            yield raw


def write_samples(path: Path, samples: Iterable[CoTSample]) -> int:
    """Write a file whole or not at all; the number of samples."""
    count = 0
    with writing(check_name(path)) as stream:
        for sample in samples:
            stream.write(sample.line())
            count += 1
    return count
