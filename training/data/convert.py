"""Other people's question files → a TumorCoT file, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data import deeptumorvqa, m3d, rad3d
from tumorchain_agent.training.data.files import Advance, Problem, write_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.rows import Converted, Source
from tumorchain_agent.training.data.summary import Summary, Tally

Reader = Callable[[Source, Advance | None], Iterator[Converted]]

READERS: Final[dict[str, Reader]] = {
    "m3d-vqa": m3d.read_vqa,
    "m3d-cap": m3d.read_captions,
    "deeptumorvqa": deeptumorvqa.read,
    "3d-rad": rad3d.read,
}


class BadRowsError(DataError):
    """Rows can't be read, so nothing was written."""

    def __init__(self, message: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass
class Conversion:
    """What came of a file's rows."""

    rows: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)
    """Of the first bad rows."""
    tally: Tally = field(default_factory=Tally)

    @property
    def summary(self) -> Summary:
        return self.tally.summary()


def convert(
    name: str,
    source: Source,
    *,
    skip_bad: bool = False,
    first: int = 20,
    on_progress: Advance | None = None,
) -> Conversion:
    """Write ``source.out`` from the rows of ``source.path`` as the reader of a format gives them.

    Rows that can't be read are counted, and the ``first`` kept. Unless ``skip_bad``, they end in BadRowsError, with
    nothing written; so does a file without one good row.
    """
    done = Conversion()

    def good() -> Iterator[CoTSample]:
        for number, item in READERS[name](source, on_progress):
            done.rows = number
            if isinstance(item, CoTSample):
                done.tally.add(item)
                yield item
                continue
            done.bad += 1
            if len(done.problems) < first:
                done.problems.append(item)
        if done.bad == done.rows or (done.bad and not skip_bad):
            raise _refusal(source, done, skip_bad)

    write_samples(source.out, good())
    return done


def _refusal(source: Source, done: Conversion, skip_bad: bool) -> BadRowsError:
    found = f"{done.bad:,} of {done.rows:,} rows of {source.path.name} can't be read"
    remedy = "is it a file of this format?" if skip_bad or not done.rows else "mend them, or pass --skip-bad"
    return BadRowsError(f"{found}, nothing is written; {remedy}", tuple(done.problems))
