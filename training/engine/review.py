"""Expert review of a data set (paper 11.5): a sheet of drawn samples, and the tally of what experts wrote into it."""

from __future__ import annotations

import csv
import heapq
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Final

from tumorchain_agent.errors import DataError, InputError
from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.training.atomic import whole_file
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.tasks import SUBTASKS

COLUMNS: Final = (
    "id", "patient", "scan", "task", "subtask", "question", "choices", "reasoning", "answer", "usable", "quality",
    "comment",
)  # fmt: skip
USABLE, QUALITY = ("yes", "no"), ("high", "acceptable")
_GUIDE: Final = (
    f"{DISCLAIMER} usable: yes where the answer is what the reports say, else no. quality, of usable ones: high "
    "where the reasoning is complete, sound and coherent, acceptable where steps are brief. comment is free."
)


class Rate(Record):
    """A share with its 95 % interval (Wilson)."""

    count: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def text(self) -> str:
        return (
            f"{100 * self.share:.2f} % ({100 * self.low:.1f}–{100 * self.high:.1f}) of {self.of:,}"
            if self.of
            else "–"
        )


class Review(Record):
    """What the experts found."""

    notice: str = DISCLAIMER
    rows: int
    unrated: int
    usable: Rate
    high: Rate
    """Of usable ones."""
    subtasks: dict[str, tuple[Rate, Rate]]
    """Usable and high, by subtask."""

    def markdown(self) -> str:
        lines = [
            f"{self.notice} {self.rows:,} samples, {self.unrated:,} of them not rated yet.",
            "",
            "| | usable | of these high quality |",
            "| --- | --- | --- |",
            f"| **all** | {self.usable.text()} | {self.high.text()} |",
        ]
        lines += [
            f"| {name} | {usable.text()} | {high.text()} |" for name, (usable, high) in self.subtasks.items()
        ]
        return "\n".join(lines)


def wilson(count: int, of: int) -> Rate:
    """A share's 95 % interval that stays within 0 and 1."""
    if not of:
        return Rate(count=0, of=0, low=0.0, high=1.0)
    z, p = 1.959964, count / of
    middle, half = p + z * z / (2 * of), z * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    scale = 1 + z * z / of
    return Rate(
        count=count, of=of, low=max(0.0, (middle - half) / scale), high=min(1.0, (middle + half) / scale)
    )


def write_sheet(source: Path, out: Path, count: int, seed: int = 0) -> int:
    """Draw ``count`` samples, evenly over the subtasks, into a CSV file; the number drawn. Memory holds those only."""
    drawn: dict[str, list[tuple[int, str, CoTSample]]] = defaultdict(list)
    for sample in read_samples(source):
        digest = blake2b(sample.id.encode(), digest_size=8, key=seed.to_bytes(16, "little")).digest()
        heap = drawn[sample.subtask]
        heapq.heappush(heap, (-int.from_bytes(digest, "little"), sample.id, sample))
        if len(heap) > count:
            heapq.heappop(heap)
    chosen = list(_evenly(drawn, count))
    if not chosen:
        raise InputError(f"{source} holds no samples; run the engine first")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("#", _GUIDE))
    writer.writerow(COLUMNS)
    writer.writerows(_row(sample) for sample in chosen)
    with whole_file(out) as file:
        file.write(text.getvalue().encode("utf-8-sig"))
    return len(chosen)


def _evenly(drawn: dict[str, list[tuple[int, str, CoTSample]]], count: int) -> Iterator[CoTSample]:
    """Turn by turn one of each subtask, in the order of Table 1."""
    order = [name for name in SUBTASKS if name in drawn] + sorted(set(drawn) - set(SUBTASKS))
    queues = {name: sorted(drawn[name], reverse=True) for name in order}
    given = 0
    while given < count and any(queues.values()):
        for name in order:
            if queues[name] and given < count:
                given += 1
                yield queues[name].pop(0)[2]


def _row(sample: CoTSample) -> tuple[str, ...]:
    choices = " / ".join(f"{letter}. {text}" for letter, text in (sample.choices or {}).items())
    values = (
        sample.id, sample.patient, sample.scan, sample.task, sample.subtask, sample.question, choices,
        "\n".join(sample.texts), sample.answer, "", "", "",
    )  # fmt: skip
    return tuple(f"'{value}" if value[:1] in "=+-@" and value else value for value in values)


def tally_sheet(sheet: Path) -> Review:
    """Count what the experts wrote; blank rows are unrated. DataError names a row with words that aren't allowed."""
    usable: Counter[str] = Counter()
    high: Counter[str] = Counter()
    rated: Counter[str] = Counter()
    rows = unrated = 0
    for number, row in _rows(sheet):
        rows += 1
        use, quality, subtask = (
            str(row.get(name) or "").strip().lower() for name in ("usable", "quality", "subtask")
        )
        if not use and not quality:
            unrated += 1
            continue
        if use not in USABLE or quality not in (QUALITY if use == "yes" else ("",)):
            wanted = "yes with high or acceptable, or no without a quality"
            raise DataError(
                f"{sheet.name} row {number} has usable {use!r}, quality {quality!r}; write {wanted}"
            )
        rated[subtask] += 1
        usable[subtask] += use == "yes"
        high[subtask] += quality == "high"
    names = [name for name in SUBTASKS if rated[name]] + sorted(set(rated) - set(SUBTASKS))
    return Review(
        rows=rows,
        unrated=unrated,
        usable=wilson(usable.total(), rated.total()),
        high=wilson(high.total(), usable.total()),
        subtasks={
            name: (wilson(usable[name], rated[name]), wilson(high[name], usable[name])) for name in names
        },
    )


def _rows(sheet: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        lines = list(csv.reader(io.StringIO(sheet.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{sheet} can't be read; name a sheet that tumorchain-agent engine sheet wrote"
        ) from error
    start = next((number for number, line in enumerate(lines) if line[: len(COLUMNS)] == list(COLUMNS)), None)
    if start is None:
        raise DataError(
            f"{sheet.name} lacks the line of column names; keep {', '.join(COLUMNS[-3:])} and the others"
        )
    for number, line in enumerate(lines[start + 1 :], start + 2):
        if any(line):
            yield number, dict(zip(COLUMNS, line, strict=False))
