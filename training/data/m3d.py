"""M3D-VQA's CSV and M3D-Cap's JSON (BAAI-DCAI/M3D) as TumorCoT samples.

None of their questions is one of the paper's subtasks: a sample's task is ``external``, its subtask ``m3d-vqa/plane``,
``…/phase``, ``…/organ``, ``…/abnormality``, ``…/position`` or ``m3d-cap/report``. There is no reasoning, so no rounds.
The series of a case lie in one folder: that folder is the patient. Volumes are ``.npy`` model volumes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data.files import Advance, Problem
from tumorchain_agent.training.data.json_items import list_items
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.record import EXTERNAL, SCHEMA_VERSION, CoTSample, Split
from tumorchain_agent.training.data.rows import (
    Converted,
    Numbered,
    Row,
    Source,
    as_choice,
    as_row,
    choices_of,
    csv_rows,
    file_side,
    letter_of,
    needed,
    to_samples,
)
from tumorchain_agent.training.data.split import relative_to

log = logging.getLogger(__name__)

KINDS: Final = {"1": "plane", "2": "phase", "3": "organ", "4": "abnormality", "5": "position"}
"""Question Type of M3D-VQA."""
COLUMNS: Final = (
    "Image Path", "Question Type", "Question", "Choice A", "Choice B", "Choice C", "Choice D",
    "Answer", "Answer Choice",
)  # fmt: skip
"""Columns that are read; the tenth, Text, is the report that the questions were made of."""
CAPTION_QUESTION: Final = "Describe the findings of this CT."
_LISTS: Final[dict[str, Split]] = {"train": "train", "validation": "test", "test": "test"}
_LEAST: Final = 5
"""A part of a report with fewer characters than this says nothing (so M3D's own preparation holds)."""


def read_vqa(source: Source, on_progress: Advance | None = None) -> Iterator[Converted]:
    """``M3D_VQA_{train,val,test}.csv``, ``M3D_VQA_yn_train.csv``: rows from 1, samples or problems.

    A row with choices becomes a choice, unless ``open_ended``; one without (all NA) an open question.
    """
    side = file_side(source)

    def make(number: int, row: Row) -> CoTSample:
        kind = KINDS.get(needed(row, "Question Type"))
        if kind is None:
            raise DataError(f"Question Type is {row['Question Type']!r}; write 1 to 5")
        answer = _choice(row) if _has_choices(row) and not source.open_ended else _free(row)
        image = needed(row, "Image Path")
        return CoTSample(
            format_version=SCHEMA_VERSION,
            id=f"m3d-vqa/{source.path.name.split('.')[0]}/{number}",
            patient=_patient(image),
            scan=_scan(source, image),
            task=EXTERNAL,
            subtask=f"m3d-vqa/{kind}",
            question=needed(row, "Question"),
            split=side,
            provenance={"source": "m3d-vqa", "file": source.path.name, "row": number, "image": image},
            **answer,
        )

    return to_samples(csv_rows(source.path, COLUMNS, on_progress), make)


def _has_choices(row: Row) -> bool:
    return bool(choices_of(row))


def _choice(row: Row) -> Row:
    choices = choices_of(row)
    correct = letter_of(needed(row, "Answer Choice"))
    if correct not in choices:
        raise DataError(f"Answer Choice is {correct}, but Choice {correct} is missing; fill it in")
    return as_choice(choices, correct)


def _free(row: Row) -> Row:
    answer = needed(row, "Answer")
    return {"answer": answer, "conclusion": answer, "answer_type": "open"}


def read_captions(source: Source, on_progress: Advance | None = None) -> Iterator[Converted]:
    """``M3D_Cap.json``: the lists train, validation and test, items numbered from 1 through all of them.

    Each item's report is read from its text file. Other lists repeat items of test; they are passed over.
    """

    def make(number: int, row: Row) -> CoTSample:
        image, text = needed(row, "image"), needed(row, "text")
        report = _report(_folder(source) / text)
        return CoTSample(
            format_version=SCHEMA_VERSION,
            id=f"m3d-cap/{number}",
            patient=_patient(image),
            scan=_scan(source, image),
            task=EXTERNAL,
            subtask="m3d-cap/report",
            question=CAPTION_QUESTION,
            conclusion=report,
            answer=report,
            answer_type="open",
            split=source.split or _LISTS[row["list"]],
            provenance={"source": "m3d-cap", "list": row["list"], "row": number, "image": image},
        )

    return to_samples(_caption_items(source, on_progress), make)


def _caption_items(source: Source, on_progress: Advance | None) -> Iterator[Numbered]:
    number = 0
    passed_over: set[str] = set()
    try:
        for name, item in list_items(source.path, on_progress):
            if name in _LISTS:
                number += 1
                row = as_row(number, item)
                yield number, row if isinstance(row, Problem) else row | {"list": name}
            elif name not in passed_over:
                passed_over.add(name)
                log.warning(
                    "%s: the list %s is passed over; it repeats items of test", source.path.name, name
                )
    except DataError as error:
        number += 1
        yield number, Problem(line=number, reason=Reason.TRUNCATED_FILE, message=str(error))


def _report(path: Path) -> str:
    """The part of a report after ``study_findings:``, else ``discussion:``, else all of it, in one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"text {path} can't be read ({error.strerror}); pass --scans, or restore it"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"text {path} is not UTF-8; save it so") from error
    parts = [text.partition(mark)[2] for mark in ("study_findings:", "discussion:")]
    for part in [*parts, text]:
        joined = " ".join(part.split())
        if len(joined.replace(" ", "")) >= _LEAST:
            return joined
    raise DataError(f"text {path} says nothing; remove the item")


def _folder(source: Source) -> Path:
    return source.scans or source.path.parent


def _scan(source: Source, image: str) -> str:
    return relative_to(_folder(source) / image, source.out.parent)


def _patient(image: str) -> str:
    """``m3d:`` and the folder of the image, or the image itself where it lies in none."""
    path = PurePosixPath(image)
    folder = path.parent.as_posix()
    return f"m3d:{path.stem if folder in ('.', '/') else folder}"
