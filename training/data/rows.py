"""Rows of other people's question files: CSV, JSON and JSON Lines, one row at a time, as samples or problems."""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from pydantic import ValidationError

from tumorchain_agent.errors import DataError, InputError
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.files import Advance, Problem, numbered_lines, reading
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.record import CoTSample, Split

Row = dict[str, Any]
Numbered = tuple[int, Row | Problem]
Converted = tuple[int, CoTSample | Problem]

_MISSING: Final = frozenset({"", "na", "-", "nan"})
_SIDES: Final[dict[str, Split]] = {
    "train": "train", "test": "test", "val": "test", "validation": "test", "holdout": "test",
}  # fmt: skip
"""Words in the name of a file or a split. What was held out for validation is not trained on."""
_MARK = re.compile(r"(?<![A-Za-z0-9])([A-Z]):\s*")


@dataclass(frozen=True)
class Source:
    """A file to convert, and where things lie."""

    path: Path
    out: Path
    """The TumorCoT file to write: scans are named relative to its folder."""
    scans: Path | None = None
    """Folder that the file's image paths start from; by default the one that the benchmark has them in."""
    split: Split | None = None
    """Side of all rows, in place of what the file or its name says."""
    open_ended: bool = False
    """Take the free answer where a row has choices as well."""


def present(value: object) -> str | None:
    """A field's text, or ``None`` where it says that there is none: empty, ``NA``, ``-``, ``nan``, null."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _MISSING else text


def needed(row: Row, field: str) -> str:
    """A field's text. DataError when there is none."""
    text = present(row.get(field))
    if text is None:
        raise DataError(f"{field} is missing; fill it in or remove the row")
    return text


def side_named(words: str) -> Split | None:
    """The side that a name speaks of, e.g. ``M3D_VQA_train``; ``None`` when it speaks of none or of both."""
    sides = {_SIDES[word] for word in re.split(r"[^a-z]+", words.lower()) if word in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def file_side(source: Source) -> Split:
    """The side of a whole file, from the option or its name."""
    side = source.split or side_named(source.path.name)
    if side is None:
        raise InputError(f"the name of {source.path} tells no split; pass --split train or --split test")
    return side


def inline_choices(text: str) -> tuple[str, dict[str, str]]:
    """``"Which? A: one B: two"`` → the question and its choices by letter.

    The choices are the last run A, B, C … of single letters with a colon. DataError when there is none.
    """
    marks = list(_MARK.finditer(text))
    for start in range(len(marks) - 1, -1, -1):
        run = _run(marks[start:]) if marks[start][1] == "A" else []
        if len(run) > 1:
            ends = [*(mark.start() for mark in run[1:]), len(text)]
            choices = {
                mark[1]: text[mark.end() : end].strip(" \t\r\n,;")
                for mark, end in zip(run, ends, strict=True)
            }
            return text[: run[0].start()].strip(), choices
    raise DataError(f"no choices A: … B: … are found in {text[-60:]!r}; write them behind the question")


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]]:
    """A, then the first B after it, then the first C after that …"""
    run: list[re.Match[str]] = []
    for mark in marks:
        if mark[1] == chr(ord("A") + len(run)):
            run.append(mark)
    return run


def choices_of(row: Row) -> dict[str, str]:
    """Letter → text of the columns ``Choice A`` to ``Choice D`` that say something."""
    return {letter: text for letter in "ABCD" if (text := present(row[f"Choice {letter}"]))}


def as_choice(choices: dict[str, str], correct: str) -> Row:
    """Fields of a sample whose answer is one of ``choices``."""
    answer = choices[correct]
    return {
        "choices": choices, "correct": correct, "answer": answer, "conclusion": answer, "answer_type": "choice",
    }  # fmt: skip


def letter_of(value: str) -> str:
    """The letter in ``A``, ``A.``, ``A: text``, ``(a)``."""
    found = re.match(r"\(?([A-Za-z])(?![A-Za-z0-9])", value)
    if found is None:
        raise DataError(f"{value[:40]!r} is not the letter of a choice; write one")
    return found[1].upper()


def to_samples(rows: Iterable[Numbered], make: Callable[[int, Row], CoTSample]) -> Iterator[Converted]:
    """Every row as ``make`` reads it; what can't be read is a Problem with the row's number."""
    for number, row in rows:
        if isinstance(row, Problem):
            yield number, row
            continue
        try:
            yield number, make(number, row)
        except ValidationError as error:
            yield number, Problem(line=number, message=explain(error))
        except DataError as error:
            yield number, Problem(line=number, message=str(error))


def csv_rows(path: Path, columns: Iterable[str], on_progress: Advance | None = None) -> Iterator[Numbered]:
    """Rows of a CSV file with a header, from 1. InputError when one of ``columns`` is missing."""
    with reading(path) as (stream, raw):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        table = csv.DictReader(text)
        number = 0
        try:
            _check_columns(path, table.fieldnames, columns)
            for number, row in enumerate(table, start=1):
                yield number, _checked(number, row)
                _tell(on_progress, number, raw)
        except (csv.Error, EOFError, zlib.error, OSError) as error:
            yield number + 1, _damaged(number + 1, f"{error}; perhaps a quote is not closed")


def _check_columns(path: Path, found: Iterable[str] | None, wanted: Iterable[str]) -> None:
    missing = [column for column in wanted if column not in (found or ())]
    if missing:
        raise InputError(f"{path} lacks the column {', '.join(missing)}; is it a file of this format?")


def _checked(number: int, row: dict[Any, Any]) -> Row | Problem:
    if None in row or None in row.values():
        return Problem(line=number, message="has another number of fields than the header; mend its quotes")
    if any("\udc80" <= char <= "\udcff" for value in row.values() for char in value):
        return Problem(line=number, message="is not UTF-8; save the file as UTF-8")
    return row


def json_lines(path: Path, on_progress: Advance | None = None) -> Iterator[Numbered]:
    """Objects of a JSON Lines file."""
    with reading(path) as (stream, raw):
        for number, line in numbered_lines(stream):
            yield number, line if isinstance(line, Problem) else _object(number, line)
            _tell(on_progress, number, raw)


def _object(number: int, line: bytes) -> Row | Problem:
    try:
        value = json.loads(line)
    except ValueError as error:
        return Problem(line=number, message=f"not JSON ({error}); write one object a line, in UTF-8")
    return as_row(number, value)


def as_row(number: int, value: object) -> Row | Problem:
    """A JSON value that should be an object."""
    if isinstance(value, dict):
        return value
    return Problem(line=number, message=f"is {str(value)[:40]!r}, not an object; write one")


def _tell(on_progress: Advance | None, number: int, raw: IO[bytes]) -> None:
    if on_progress and number % 1000 == 0:
        on_progress(raw.tell())


def _damaged(number: int, why: str) -> Problem:
    text = f"nothing can be read from here on ({why}); mend or copy the file again"
    return Problem(line=number, reason=Reason.TRUNCATED_FILE, message=text)
