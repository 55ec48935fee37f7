"""The table of ``batch``: a CSV of scans and questions, checked whole before any work."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import Field

from tumorchain_agent.errors import InputError
from tumorchain_agent.records import Record

NEEDED: Final = ("scan", "question")
KNOWN: Final = (*NEEDED, "id", "masks", "volume")
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGITS: Final = 9
"""Of a volume's number at most; no scan has so many."""
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

    Raises InputError that names the first bad lines: a column that is missing or there twice, an empty cell, an id
    that is used twice or can't name a file, a path that no file can have, a volume that is no number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            lines, columns = list(reader), list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} can't be read as CSV ({reason}); save it as UTF-8 with a header") from error
    if not lines:
        raise InputError(f"{path} has no rows; it needs a header and the columns {' and '.join(NEEDED)}")
    _check_columns(path, columns, lines)
    rows = [_row(path.parent.absolute(), number, line, len(lines)) for number, line in enumerate(lines, 1)]
    _check_rows(path, rows, lines)
    return rows


def _check_columns(path: Path, columns: Sequence[str], lines: Sequence[dict[str, str]]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; its header must name {', '.join(NEEDED)}")
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise InputError(f"{path} has {columns.count(twice[0])} columns {twice[0][:40]!r}; leave one of them")
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
        volume=int(volume) if volume is not None and _is_volume(volume) else None,
        more={name: value for name, value in cells.items() if name not in KNOWN},
    )


def _path(folder: Path, text: str) -> str:
    """Absolute; empty for one that no file can have. Whether it can be reached is the row's own matter."""
    from tumorchain_agent.mcp_server.index import local_path

    given = text if text.startswith("~") else str(folder / text)
    try:
        return str(local_path(given, InputError))
    except InputError as error:
        return given if isinstance(error.__cause__, OSError) else ""


def _is_volume(text: str) -> bool:
    return text.isdecimal() and len(text.lstrip("0")) <= _DIGITS


def _check_rows(path: Path, rows: Sequence[Row], lines: Sequence[dict[str, str]]) -> None:
    problems, seen = [], dict[str, int]()
    for number, (row, line) in enumerate(zip(rows, lines, strict=True), 1):
        scan, masks, volume = (line.get(name, "").strip() for name in ("scan", "masks", "volume"))
        if not scan or not row.question:
            problems.append(f"row {number} has no {'question' if scan else 'scan'}")
        elif not row.scan or (masks and not row.masks):
            name, path_of = ("masks", masks) if row.scan else ("scan", scan)
            problems.append(f"row {number}: {name} {path_of[:40]!r} can't be a path")
        elif not _ID.fullmatch(row.id):
            problems.append(f"row {number}: id {row.id[:40]!r} isn't of letters, digits, '.', '_' and '-'")
        elif row.id.lower() in seen:
            problems.append(f"row {number} has the id of row {seen[row.id.lower()]}, {row.id}")
        elif volume and not _is_volume(volume):
            most = 10**_DIGITS - 1
            problems.append(f"row {number}: volume {volume[:20]!r} is not a whole number from 0 to {most}")
        seen.setdefault(row.id.lower(), number)
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise InputError(f"{path}: {'; '.join(problems[:_NAMED])}{more}; correct the table")
