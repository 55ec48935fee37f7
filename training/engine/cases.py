"""Where cases come from: a folder of phantoms, or JSON Lines that name scans and hold their two reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from tumorchain_agent.errors import DataError, InputError, LabelMapError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.organs import MERGE, ORGANS
from tumorchain_agent.tools.read_nifti import read_nifti
from tumorchain_agent.tools.scan import MAX_VOXELS
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.files import Problem, numbered_lines, reading

SCAN, LABELS, RADIOLOGY, PATHOLOGY = "ct.nii.gz", "labels.nii.gz", "report.txt", "pathology.txt"
MAX_REPORT: Final = 60_000
"""Characters of a report; more is no report."""


class CaseLine(Record):
    """A line of a file of cases; paths are relative to the file."""

    id: str
    patient: str
    scan: str
    label_map: str | None = None
    radiology: str
    pathology: str | None = None


@dataclass(frozen=True)
class Case:
    """A patient's scan with what was written about it."""

    number: int
    """From 0, in the order of the source: that of the output."""
    id: str
    patient: str
    scan: Path
    label_map: Path | None
    radiology: str
    pathology: str | None

    @property
    def key(self) -> str:
        """Hash of the reports: what an expert is told in place of a name."""
        text = json.dumps([self.radiology, self.pathology])
        return blake2b(text.encode(), digest_size=8).hexdigest()


def count_cases(source: Path) -> int:
    """How many cases there are, without reading them. InputError when there is no such source."""
    if source.is_dir():
        return len(_folders(source))
    with reading(_checked(source)) as (stream, _):
        return sum(1 for _ in numbered_lines(stream))


def read_cases(source: Path) -> Iterator[Case | Problem]:
    """Cases one at a time, or what is wrong with one. InputError when there is no such source."""
    yield from _of_cohort(source) if source.is_dir() else _of_lines(_checked(source))


def _checked(source: Path) -> Path:
    if not source.exists():
        raise InputError(f"{source} does not exist; name a cohort's folder or a .jsonl file of cases")
    if not source.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{source} is no folder and not named .jsonl or .jsonl.gz; name it so")
    return source


def _folders(source: Path) -> list[Path]:
    folders = sorted(path.parent for path in source.glob(f"*/{RADIOLOGY}"))
    if not folders:
        raise InputError(
            f"{source} holds no folders with {RADIOLOGY}; make some with tumorchain-agent phantom"
        )
    return folders


def _of_cohort(source: Path) -> Iterator[Case | Problem]:
    for number, folder in enumerate(_folders(source)):
        try:
            radiology = _text(folder / RADIOLOGY)
            pathology = _text(folder / PATHOLOGY) if (folder / PATHOLOGY).exists() else None
        except DataError as error:
            yield Problem(line=number + 1, patient=folder.name, message=str(error))
            continue
        labels = folder / LABELS
        scan = folder / SCAN
        yield Case(
            number, folder.name, folder.name, scan, labels if labels.exists() else None, radiology, pathology
        )


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} can't be read; check the file") from error
    return _report(text, path.name)


def _report(text: str, name: str) -> str:
    if not text.strip() or len(text) > MAX_REPORT:
        raise DataError(
            f"{name} is {'empty' if not text.strip() else 'no report, but very long'}; correct it"
        )
    return text.strip()


def _of_lines(source: Path) -> Iterator[Case | Problem]:
    folder = source.absolute().parent
    with reading(source) as (stream, _):
        for number, line in numbered_lines(stream):
            if isinstance(line, Problem):
                yield line
                continue
            try:
                found = CaseLine.model_validate_json(line)
                radiology = _report(found.radiology, "radiology")
                pathology = None if found.pathology is None else _report(found.pathology, "pathology")
            except ValidationError as error:
                yield Problem(line=number, message=explain(error))
                continue
            except DataError as error:
                yield Problem(line=number, patient=found.patient, message=str(error))
                continue
            labels = None if found.label_map is None else folder / found.label_map
            yield Case(number - 1, found.id, found.patient, folder / found.scan, labels, radiology, pathology)


def organs_in(label_map: Path) -> tuple[str, ...]:
    """Organs of Table 10 that a label map holds. DataError when it can't be read."""
    try:
        values = read_nifti(label_map, volume=None, max_voxels=MAX_VOXELS, error=LabelMapError).values
    except LabelMapError as error:
        raise DataError(f"label map: {error}") from error
    ids = np.unique(values)
    known = ids[(ids > 0) & (ids < len(MERGE))].astype(np.intp)
    return tuple(ORGANS[int(each)] for each in np.unique(MERGE[known]) if each)
