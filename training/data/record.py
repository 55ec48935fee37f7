"""One line of TumorCoT data (paper 2.1): a question about a patient's CT with the rounds that answer it.

The schema is published as ``schemas/tumorcot.schema.json``; what it can't say (an organ examined once only, the
last round ending with the conclusion) is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import TypeAliasType

from tumorchain_agent.errors import UnknownOrganError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.organs import ORGANS, resolve_organ
from tumorchain_agent.training.tasks import TASKS, Task

SCHEMA_VERSION: Final = 1
EXTERNAL: Final = "external"
"""Task of a question that is none of the paper's; its subtask is ``benchmark/kind``."""

AnswerType = Literal["choice", "open", "number"]
Split = Literal["train", "test"]

_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?:\s*(?:%|HU|cc|m[lL]|[cm]m(?:\^?[23²³])?))?")
_EXTERNAL_SUBTASK: Final = r"^[^/\s]+/.*\S"
_NAMES: Final = frozenset(ORGANS.values())


def is_number(text: str) -> bool:
    """Is a text one number, alone or in %, HU, ml, cc, mm or cm and their powers: ``12.5``, ``12.5 cm3``?"""
    return _NUMBER.fullmatch(text) is not None


def _table_organ(name: str) -> str:
    if name in _NAMES:
        return name
    try:
        raise ValueError(f"{name[:80]!r} is not the name of Table 10; write {resolve_organ(name)!r}")
    except UnknownOrganError as error:
        raise ValueError(str(error)) from error


def _relative(path: str) -> str:
    if path.startswith("/") or "\\" in path or re.match(r"[A-Za-z]:", path):
        raise ValueError(f"{path[:80]!r} is not relative; write it relative to this file, with slashes")
    return path


Text = Annotated[str, StringConstraints(pattern=r"\S")]
Letter = Annotated[str, StringConstraints(pattern=r"^[A-Z]$")]
Choices = Annotated[
    dict[Letter, Text],
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {"^[A-Z]$": {"type": "string", "pattern": r"\S"}},
            "additionalProperties": False,
            "minProperties": 2,
        }
    ),
]
RelativePath = Annotated[
    Text,
    AfterValidator(_relative),
    WithJsonSchema({"type": "string", "pattern": r"^(?!/|[A-Za-z]:)[^\\]*[^\\\s][^\\]*$"}),
]
Organ = TypeAliasType(
    "Organ",
    Annotated[
        str,
        AfterValidator(_table_organ),
        WithJsonSchema({"type": "string", "enum": list(ORGANS.values())}),
    ],
)


class CoTRound(Record):
    """R_cot^i with the evidence that it was given (eq. 4, 6)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    organs: tuple[Organ, ...]
    """Organs whose evidence the round is shown, by their names of Table 10; none in the first round."""
    absent: tuple[Organ, ...] = ()
    """Those of `organs` that the scan doesn't hold: the round is told so in words, and shown no tokens."""
    text: Text
    """What the assistant says in this round, whole."""


def _when(field: str, value: str, then: JsonValue, otherwise: JsonValue = True) -> JsonValue:
    """A rule of JSON Schema on what one field's value demands of others."""
    return {
        "if": {"properties": {field: {"const": value}}, "required": [field]},
        "then": then,
        "else": otherwise,
    }


def _conditions(schema: dict[str, JsonValue]) -> None:
    """Add to the schema what fields demand of each other."""
    pairs: list[tuple[str, JsonValue]] = [(task, {"enum": list(names)}) for task, names in TASKS.items()]
    pairs.append((EXTERNAL, {"pattern": _EXTERNAL_SUBTASK}))
    rules = [_when("task", task, {"properties": {"subtask": subtask}}) for task, subtask in pairs]
    chosen: JsonValue = {
        "required": ["choices", "correct"],
        "properties": {"choices": {"type": "object"}, "correct": {"type": "string"}},
    }
    free: JsonValue = {"properties": {"choices": {"type": "null"}, "correct": {"type": "null"}}}
    rules.append(_when("answer_type", "choice", chosen, free))
    first_round: JsonValue = {"properties": {"organs": {"maxItems": 0}}}
    schema["allOf"] = [*rules, {"properties": {"rounds": {"prefixItems": [first_round]}}}]


class CoTSample(Record):
    """One line of a TumorCoT file."""

    model_config = ConfigDict(
        title="TumorCoT sample",
        use_attribute_docstrings=True,
        json_schema_extra=_conditions,
    )

    format_version: Literal[1]
    """1, the version of this schema."""
    id: Text
    """Names the sample in messages; unlike that of any other line of the file."""
    patient: Text
    """All samples of a patient carry the same id and lie on one side of the split."""
    scan: RelativePath
    """CT, relative to the folder of this file: NIfTI, a DICOM folder or zip, or a `.npy` model volume."""
    scan_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}$")] | None = None
    """The scan's id by content (`open_scan` tells it); checked by `data validate --scans`."""
    label_map: RelativePath | None = None
    """TotalSegmentator v2 label map on the scan's grid, relative to the folder of this file."""
    task: Literal[Task, "external"]
    """One of the paper's 4 tasks, or `external`."""
    subtask: Text
    """One of the task's subtasks (Table 1); `benchmark/kind` where the task is external."""
    question: Text
    """Without its choices."""
    choices: Choices | None = None
    """Letter → text, where the answer is one of them."""
    correct: Letter | None = None
    """The letter of the right choice."""
    rounds: tuple[CoTRound, ...] = ()
    """Reasoning, round by round; none where only question and answer are known."""
    conclusion: Text
    """The sentences that answer the question; the last round's text ends with them."""
    answer: Text
    """The answer proper, which an evaluation compares: for `choice` the text of the right one, for `number`
    the number, with its unit if any."""
    answer_type: AnswerType
    split: Split
    provenance: dict[str, JsonValue] = Field(default_factory=dict)
    """Where the sample comes from; free."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._of_task(), *self._of_answer(), *self._of_rounds()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _of_task(self) -> Iterator[str]:
        if self.task == EXTERNAL:
            if not re.search(_EXTERNAL_SUBTASK, self.subtask):
                yield f"subtask of an external task is {self.subtask[:80]!r}; write it as benchmark/kind"
        elif self.subtask not in TASKS[self.task]:
            names = ", ".join(TASKS[self.task])
            yield f"{self.subtask[:80]!r} is no subtask of {self.task}; use one of {names}"

    def _of_answer(self) -> Iterator[str]:
        if self.answer_type != "choice":
            if self.choices is not None or self.correct is not None:
                yield f"answer_type is {self.answer_type}, yet there are choices; make it choice or remove them"
            if self.answer_type == "number" and not is_number(self.answer):
                yield f"answer {self.answer[:80]!r} is not one number; correct it, or make answer_type open"
        elif self.choices is None or self.correct is None:
            yield "answer_type is choice, but choices or correct is missing; add them"
        elif self.correct not in self.choices:
            yield f"correct is {self.correct}, which is none of the choices {', '.join(self.choices)}"
        elif len({text.strip().casefold() for text in self.choices.values()}) < max(len(self.choices), 2):
            yield "choices are fewer than two or say the same; give at least two that differ"
        elif self.answer != self.choices[self.correct]:
            yield f"answer is not the text of choice {self.correct}; copy that text"

    def _of_rounds(self) -> Iterator[str]:
        if not self.rounds:
            return
        if self.rounds[0].organs:
            yield "the first round is shown an organ; it sees the whole scan only: move the organ to a later one"
        if any(not each.organs for each in self.rounds[1:]):
            yield "a round after the first is shown no organ; name its organs or join it with the one before"
        shown = [organ for each in self.rounds for organ in each.organs]
        twice = sorted({organ for organ in shown if shown.count(organ) > 1})
        if twice:
            yield f"{', '.join(twice)} is examined more than once; name it in its first round only"
        for index, each in enumerate(self.rounds):
            stray = [organ for organ in each.absent if organ not in each.organs]
            if stray:
                yield f"rounds[{index}].absent names {', '.join(stray)}, which its organs don't; add or remove it"
        if not self.rounds[-1].text.endswith(self.conclusion):
            yield "the last round's text doesn't end with the conclusion; let it"

    @property
    def prompt(self) -> str:
        """The question as it is asked, with its choices."""
        if self.choices is None:
            return self.question
        return " ".join(
            [self.question, "Choices:", *(f"{key}. {text}" for key, text in self.choices.items())]
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """What the assistant says, turn by turn; the conclusion where there are no rounds."""
        return tuple(each.text for each in self.rounds) or (self.conclusion,)

    def line(self) -> bytes:
        """This sample as a line of a file, newline included; fields at their defaults are left out."""
        return self.model_dump_json(exclude_defaults=True).encode() + b"\n"


_ADAPTER: Final[TypeAdapter[CoTSample]] = TypeAdapter(CoTSample)


def sample_schema() -> dict[str, Any]:
    """JSON schema of a line."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_ADAPTER.json_schema(mode="validation"),
    }
