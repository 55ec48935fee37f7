"""Is a TumorCoT file fit to train on: each line for itself, lines among each other, and the files they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from tumorchain_agent.records import Record
from tumorchain_agent.training.data.files import Advance, Problem, read_lines
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.record import CoTSample, Split
from tumorchain_agent.training.data.scans import (
    BadVolumeError,
    Unusable,
    check_against,
    organs_present,
    scan_id,
    try_open,
)
from tumorchain_agent.training.data.summary import Summary, Tally


class Validation(Record):
    """What came of checking a file."""

    file: str
    lines: int
    bad_lines: int
    reasons: dict[Reason, int]
    """Bad lines by what is wrong first."""
    problems: tuple[Problem, ...]
    """Of the first bad lines."""
    summary: Summary
    """Of the good lines."""

    @property
    def good(self) -> bool:
        return self.lines > 0 and self.bad_lines == 0


def validate_file(
    path: Path, *, scans: bool = False, first: int = 20, on_progress: Advance | None = None
) -> Validation:
    """Check every line of a file; the problems of the ``first`` bad lines are kept, all are counted.

    ``scans`` opens each scan with its label map, once. Lines are read one at a time; what is remembered of
    each is two 8-byte hashes, and of each patient and scan its name. InputError when there is no such file.
    """
    checker = _Checker(path.parent if scans else None)
    tally, reasons = Tally(), Counter[Reason]()
    problems: list[Problem] = []
    lines = bad = 0
    for number, item in read_lines(path, on_progress):
        lines = number
        found = [item] if isinstance(item, Problem) else list(checker.check(number, item))
        if isinstance(item, CoTSample) and not found:
            tally.add(item)
        if found:
            problems += found if bad < first else []
            bad += 1
            reasons[found[0].reason] += 1
    return Validation(
        file=str(path),
        lines=lines,
        bad_lines=bad,
        reasons=dict(reasons),
        problems=tuple(problems),
        summary=tally.summary(),
    )


@dataclass(frozen=True)
class _Found:
    """What is remembered of a scan and its label map after they were opened."""

    scan_id: str | None
    present: frozenset[str] | None


class _Checker:
    """Remembers what lines have in common with the lines before them."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        """Where scans are opened from; ``None``: they aren't."""
        self._ids: dict[int, int] = {}
        self._questions: dict[int, int] = {}
        """Hash → line."""
        self._patients: dict[str, tuple[Split, int]] = {}
        self._scans: dict[str, tuple[str, int]] = {}
        """Scan → patient, line."""
        self._files: dict[tuple[str, str | None], _Found | Unusable] = {}

    def check(self, line: int, sample: CoTSample) -> Iterator[Problem]:
        """What is wrong with a sample that is well-formed by itself."""
        checks = (self._duplicate, self._split, self._shared_scan, self._volumes)
        for check in checks:
            for reason, message in check(line, sample):
                yield Problem(line=line, patient=sample.patient, reason=reason, message=message)

    def _duplicate(self, line: int, sample: CoTSample) -> Iterator[tuple[Reason, str]]:
        earlier = self._ids.setdefault(_hash(sample.id), line)
        if earlier != line:
            yield Reason.DUPLICATE, f"id {sample.id!r} is that of line {earlier:,}; give it another"
        key = _hash(sample.patient, sample.scan, sample.subtask, sample.question)
        earlier = self._questions.setdefault(key, line)
        if earlier != line:
            yield Reason.DUPLICATE, f"asks the same of the same scan as line {earlier:,}; remove one of them"

    def _split(self, line: int, sample: CoTSample) -> Iterator[tuple[Reason, str]]:
        side, earlier = self._patients.setdefault(sample.patient, (sample.split, line))
        if side != sample.split:
            yield (
                Reason.BOTH_SIDES,
                f"{sample.patient} is in {sample.split} here and in {side} on line {earlier:,}; "
                "put all samples of a patient on one side",
            )

    def _shared_scan(self, line: int, sample: CoTSample) -> Iterator[tuple[Reason, str]]:
        patient, earlier = self._scans.setdefault(sample.scan, (sample.patient, line))
        if patient != sample.patient:
            yield (
                Reason.SHARED_SCAN,
                f"{sample.scan} is a scan of {patient} on line {earlier:,}; one of the two names is wrong",
            )

    def _volumes(self, _line: int, sample: CoTSample) -> Iterator[tuple[Reason, str]]:
        if self._folder is None:
            return
        files = (sample.scan, sample.label_map)
        if files not in self._files:
            self._files[files] = _look(sample, self._folder)
        found = self._files[files]
        if isinstance(found, Unusable):
            yield found.reason, found.message
            return
        try:
            check_against(sample, found.scan_id, found.present)
        except BadVolumeError as error:
            yield error.reason, str(error)


def _look(sample: CoTSample, folder: Path) -> _Found | Unusable:
    found = try_open(sample, folder)
    return found if isinstance(found, Unusable) else _Found(scan_id(found), organs_present(found))


def _hash(*texts: str) -> int:
    digest = blake2b("\0".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
