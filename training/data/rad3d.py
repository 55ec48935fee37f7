"""3D-RAD's CSV files (Tang-xiaoxiao/3D-RAD) as TumorCoT samples: chest CT of CT-RATE, six tasks.

A sample's task is ``external``, its subtask ``3d-rad/`` and the file's own task name. Closed questions are choices; Yes
and No without written choices become two. There is no reasoning, so no rounds. A volume's name begins with its patient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data.files import Advance
from tumorchain_agent.training.data.record import EXTERNAL, SCHEMA_VERSION, CoTSample, is_number
from tumorchain_agent.training.data.rows import (
    Converted,
    Row,
    Source,
    as_choice,
    choices_of,
    csv_rows,
    file_side,
    letter_of,
    needed,
    to_samples,
)
from tumorchain_agent.training.data.split import relative_to

COLUMNS: Final = (
    "Task", "Subtask", "VolumeName", "Question", "Answer", "QuestionType", "AnswerChoice", "Choice A", "Choice B",
    "Choice C", "Choice D",
)  # fmt: skip
_YES_NO: Final = {"A": "Yes", "B": "No"}


def read(source: Source, on_progress: Advance | None = None) -> Iterator[Converted]:
    """Rows from 1, samples or problems. A closed question becomes a choice, unless ``open_ended``."""
    side = source.split or file_side(source)

    def make(number: int, row: Row) -> CoTSample:
        volume = needed(row, "VolumeName")
        kind = needed(row, "QuestionType").lower()
        if kind not in ("open", "close", "closed"):
            raise DataError(f"QuestionType is {row['QuestionType']!r}; write Open or Close")
        answer = _free(row) if kind == "open" or source.open_ended else _choice(row)
        return CoTSample(
            format_version=SCHEMA_VERSION,
            id=f"3d-rad/{source.path.name.split('.')[0]}/{number}",
            patient=f"ct-rate:{_patient(volume)}",
            scan=relative_to((source.scans or source.path.parent) / volume, source.out.parent),
            task=EXTERNAL,
            subtask=f"3d-rad/{needed(row, 'Task')}",
            question=needed(row, "Question"),
            split=side,
            provenance={
                "source": "3d-rad",
                "file": source.path.name,
                "row": number,
                "volume": volume,
                "task": row["Task"],
                "subtask": row["Subtask"],
            },
            **answer,
        )

    return to_samples(csv_rows(source.path, COLUMNS, on_progress), make)


def _patient(volume: str) -> str:
    """``train_1_a_1.nii.gz`` → ``train_1``: patient, scan and reconstruction follow each other."""
    parts = volume.split("/")[-1].split(".")[0].split("_")
    return "_".join(parts[:2])


def _choice(row: Row) -> Row:
    choices = choices_of(row)
    told = needed(row, "Answer")
    if not choices:
        choices = _YES_NO
        correct = next((key for key, text in choices.items() if told.lower().startswith(text.lower())), "")
    else:
        correct = letter_of(needed(row, "AnswerChoice"))
    if correct not in choices:
        raise DataError(f"the answer {told[:40]!r} is none of the choices {', '.join(choices)}; correct it")
    return as_choice(choices, correct)


def _free(row: Row) -> Row:
    answer = needed(row, "Answer")
    kind = "number" if is_number(answer) else "open"
    return {"answer": answer, "conclusion": answer, "answer_type": kind}
