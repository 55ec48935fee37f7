"""DeepTumorVQA, version 1 (CSV) and 2 (JSON, JSON Lines, CSV), as TumorCoT samples (paper 4.2, Table 7).

Where a question asks what one of the paper's subtasks asks, of one of its five organs, it carries that subtask
(``SAME_QUESTION``); else its task is ``external`` and its subtask ``deeptumorvqa/`` and the benchmark's own name. That
name, the organ and what else the row tells stay in the provenance. There is no reasoning, so no rounds. An image is
a patient: the files don't tell which scans are of one person.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tumorchain_agent.errors import DataError, InputError, UnknownOrganError
from tumorchain_agent.tools.organs import FIVE, resolve_organ
from tumorchain_agent.training.data.files import Advance, Problem
from tumorchain_agent.training.data.json_items import list_items
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.record import EXTERNAL, SCHEMA_VERSION, CoTSample, is_number
from tumorchain_agent.training.data.rows import (
    Converted,
    Numbered,
    Row,
    Source,
    as_choice,
    as_row,
    csv_rows,
    file_side,
    inline_choices,
    json_lines,
    letter_of,
    needed,
    present,
    side_named,
    to_samples,
)
from tumorchain_agent.training.data.split import relative_to
from tumorchain_agent.training.tasks import TASK_OF

SAME_QUESTION: Final = {
    "liver lesion existence": "tumor_position",
    "pancreatic lesion existence": "tumor_position",
    "colon lesion existence": "tumor_position",
    "largest lesion location": "segment",
    "largest lesion attenuation": "density",
    "lesion counting": "count",
    "largest lesion diameter": "others",
    "pancreatic tumor staging": "tumor",
}
"""Subtype of DeepTumorVQA → subtask of the paper."""

_COLUMNS: Final = ("Image ID", "question", "answer")
_KEPT: Final = (
    "organ", "lesion", "question_type", "requires_tools", "spacing", "shape", "sex", "age", "scanner", "contrast",
)  # fmt: skip


def read(source: Source, on_progress: Advance | None = None) -> Iterator[Converted]:
    """Rows from 1, samples or problems. A row with choices becomes a choice, unless ``open_ended``."""

    def make(number: int, row: Row) -> CoTSample:
        image = needed(row, "image_id")
        subtype = " ".join(needed(row, "question_subtype").replace("_", " ").split())
        task, subtask = paper_subtask(subtype, present(row.get("organ")))
        choosing = present(row.get("mc_question")) is not None and not source.open_ended
        provenance: Row = {"source": "deeptumorvqa", "row": number, "question_subtype": subtype}
        provenance |= {key: row[key] for key in _KEPT if present(row.get(key)) is not None}
        answer = _choice(row) if choosing else _free(row)
        if answer["answer"] != present(row.get("answer")):
            provenance["answer"] = row.get("answer")
        return CoTSample.model_validate(
            {
                "format_version": SCHEMA_VERSION,
                "id": f"deeptumorvqa/{present(row.get('qid')) or number}",
                "patient": image,
                "scan": _scan(source, image),
                "task": task,
                "subtask": subtask,
                "split": source.split or side_named(str(row.get("split", ""))) or file_side(source),
                "provenance": provenance,
                **answer,
            }
        )

    return to_samples(_rows(source, on_progress), make)


def paper_subtask(subtype: str, organ: str | None) -> tuple[str, str]:
    """Task and subtask of a question of a subtype about an organ."""
    subtask = SAME_QUESTION.get(subtype)
    if subtask is not None and organ is not None:
        try:
            if resolve_organ(organ.replace("_", " ").lower()) in FIVE:
                return TASK_OF[subtask], subtask
        except UnknownOrganError:
            pass
    return EXTERNAL, f"deeptumorvqa/{subtype}"


def _rows(source: Source, on_progress: Advance | None) -> Iterator[Numbered]:
    """Rows under the names of version 2, whatever the file."""
    name = source.path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        rows = csv_rows(source.path, _COLUMNS, on_progress)
    elif name.endswith(".jsonl"):
        rows = json_lines(source.path, on_progress)
    elif name.endswith(".json"):
        rows = _questions(source, on_progress)
    else:
        raise InputError(f"{source.path} is not named .csv, .json or .jsonl; pass a question file")
    for number, row in rows:
        yield number, row if isinstance(row, Problem) else {_field(key): value for key, value in row.items()}


def _questions(source: Source, on_progress: Advance | None) -> Iterator[Numbered]:
    number = 0
    try:
        for name, item in list_items(source.path, on_progress):
            if name == "questions":
                number += 1
                yield number, as_row(number, item)
    except DataError as error:
        number += 1
        yield number, Problem(line=number, reason=Reason.TRUNCATED_FILE, message=str(error))


def _field(column: str) -> str:
    """``Image ID`` → ``image_id``, ``multiple-choice question`` → ``mc_question``."""
    plain = re.sub(r"[\s_-]+", "_", column.strip().lower())
    return {"question_id": "qid", "multiple_choice_question": "mc_question"}.get(plain, plain)


def _choice(row: Row) -> Row:
    stem, choices = inline_choices(needed(row, "mc_question"))
    choices = {letter: text for letter, text in choices.items() if present(text)}
    correct = letter_of(needed(row, "correct_option"))
    if correct not in choices:
        raise DataError(f"correct_option is {correct}, which is none of the choices {', '.join(choices)}")
    return as_choice(choices, correct) | {"question": stem or needed(row, "question")}


def _free(row: Row) -> Row:
    answer = needed(row, "answer")
    kind = "number" if is_number(answer) else "open"
    return {"question": needed(row, "question"), "answer": answer, "conclusion": answer, "answer_type": kind}


def _scan(source: Source, image: str) -> str:
    """``ct/BDMAP_…/ct.nii.gz`` beside the questions, as the benchmark has it."""
    folder = source.scans or source.path.parent / "ct"
    return relative_to(folder / image / "ct.nii.gz", source.out.parent)
