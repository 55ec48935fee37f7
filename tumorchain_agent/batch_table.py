"""The table of ``batch``: a CSV of scans and questions, checked whole before any work."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import Field

from tumorchain_agent.errors import InputError
from tumorchain_agent.records import Record

NEEDED: Final = ("scan", "question")
KNOWN: Final = (*NEEDED, "id", "masks", "volume")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAMED: Final = 5
"""So many bad rows are named."""


class Row(Record):
    """A question of a scan, as the table gives it."""

    id: str
    """Names the row's file; ``row-0001`` … where the table has no ids."""
    scan: str
    """A path as the workers see it: absolute, or as written where it is on another machine."""
    question: str
    masks: str | None = None
    volume: int | None = None
    more: dict[str, str] = Field(default_factory=dict)
    """The table's other columns, carried along."""


def read_table(path: Path) -> list[Row]:
    """The rows in order; relative paths start from the table's folder.

    Raises InputError that names the first bad lines: a missing column, an empty cell, an id that is used twice or
    can't name a file, a volume that is no number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
            columns = list(lines[0]) if lines else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} can't be read as CSV ({reason}); save it as UTF-8 with a header") from error
    if not lines:
        raise InputError(f"{path} has no rows; it needs a header and the columns {' and '.join(NEEDED)}")
    _check_columns(path, columns, lines)
    rows = [_row(path.parent.absolute(), number, line, len(lines)) for number, line in enumerate(lines, 1)]
    _check_rows(path, rows, lines)
    return rows


def _check_columns(path: Path, columns: Sequence[str | None], lines: Sequence[dict[str, str]]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; its header must name {', '.join(NEEDED)}")
    ragged = [number for number, line in enumerate(lines, 1) if None in line or None in line.values()]
    if ragged:
        raise InputError(
            f"{path}: row {ragged[0]} has more or fewer cells than the header; put quotes around commas"
        )


def _row(folder: Path, number: int, line: dict[str, str], count: int) -> Row:
    cells = {name: value.strip() for name, value in line.items()}
    volume = cells.get("volume") or None
    return Row(
        id=cells.get("id") or f"row-{number:0{max(4, len(str(count)))}d}",
        scan=_path(folder, cells["scan"]) if cells["scan"] else "",
        question=cells["question"],
        masks=_path(folder, cells["masks"]) if cells.get("masks") else None,
        volume=int(volume) if volume is not None and volume.isdecimal() else None,
        more={name: value for name, value in cells.items() if name not in KNOWN},
    )


def _path(folder: Path, text: str) -> str:
    return str(folder / Path(text).expanduser())


def _check_rows(path: Path, rows: Sequence[Row], lines: Sequence[dict[str, str]]) -> None:
    problems, seen = [], dict[str, int]()
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1):
        volume = line.get("volume", "").strip()
        if not row.scan or not row.question:
            problems.append(f"row {number} has no {'question' if row.scan else 'scan'}")
        elif not _ID.fullmatch(row.id):
            problems.append(f"row {number}: id {row.id[:40]!r} isn't of letters, digits, '.', '_' and '-'")
        elif row.id.lower() in seen:
            problems.append(f"row {number} has the id of row {seen[row.id.lower()]}, {row.id}")
        elif volume and not volume.isdecimal():
            problems.append(f"row {number}: volume {volume[:20]!r} is not a whole number from 0")
        seen.setdefault(row.id.lower(), number)
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise InputError(f"{path}: {'; '.join(problems[:_NAMED])}{more}; correct the table")
