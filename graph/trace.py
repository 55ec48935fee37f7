"""``trace.jsonl``: one record a line, all that an answer was made of, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from tumorchain_agent.records import (
    DISCLAIMER,
    FORMAT_VERSION,
    TNM,
    Answer,
    Claim,
    EvidenceKind,
    Measurement,
    Notice,
    OrganEvidence,
    Record,
    ScanInfo,
    SegmentationInfo,
    Usage,
    Versions,
)


class HeaderRecord(Record):
    """The first line."""

    type: Literal["header"] = "header"
    format_version: int = FORMAT_VERSION
    disclaimer: str = DISCLAIMER
    thread_id: str
    question: str
    evidence_kind: EvidenceKind
    versions: Versions


class ScanRecord(ScanInfo):
    type: Literal["scan"] = "scan"


class SegmentationRecord(SegmentationInfo):
    type: Literal["segmentation"] = "segmentation"


class MeasurementRecord(Measurement):
    type: Literal["measurement"] = "measurement"


class EvidenceRecord(OrganEvidence):
    type: Literal["evidence"] = "evidence"
    round: int
    """The round that was shown it first."""


class RoundRecord(Record):
    """One LLM call; its evidence and usage are records of their own."""

    type: Literal["round"] = "round"
    index: int
    prompt: str
    text: str
    organs_shown: tuple[str, ...]
    organs_mentioned: tuple[str, ...]
    new_organs: tuple[str, ...]
    seconds: float


class UsageRecord(Usage):
    """Tokens of one round's LLM call; the whole is the sum."""

    type: Literal["usage"] = "usage"
    round: int


class NoticeRecord(Notice):
    type: Literal["notice"] = "notice"


class ClaimRecord(Claim):
    type: Literal["claim"] = "claim"
    index: int


class TNMRecord(TNM):
    type: Literal["tnm"] = "tnm"


class AnswerRecord(Record):
    """The last line."""

    type: Literal["answer"] = "answer"
    conclusion: str
    organs_examined: tuple[str, ...]
    organs_absent: tuple[str, ...]
    stopped_because: Literal["no new organ", "max_rounds"]
    seconds: float
    timings_s: dict[str, float]


TraceRecord = Annotated[
    HeaderRecord
    | ScanRecord
    | SegmentationRecord
    | MeasurementRecord
    | EvidenceRecord
    | RoundRecord
    | UsageRecord
    | NoticeRecord
    | ClaimRecord
    | TNMRecord
    | AnswerRecord,
    Field(discriminator="type"),
]

_ADAPTER: TypeAdapter[TraceRecord] = TypeAdapter(TraceRecord)


def trace_schema() -> dict[str, Any]:
    """JSON schema of a line of ``trace.jsonl``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_ADAPTER.json_schema(mode="serialization"),
    }


def read_trace_record(line: str | bytes) -> TraceRecord:
    """A line of ``trace.jsonl``; pydantic's ValidationError when it isn't one."""
    return _ADAPTER.validate_json(line)


def trace_records(answer: Answer, measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """The lines as JSON values, from the header over measurements and rounds to the answer."""
    return [record.model_dump(mode="json") for record in _records(answer, measurements)]


def _records(answer: Answer, measurements: Iterable[Measurement]) -> Iterator[TraceRecord]:
    yield HeaderRecord(
        thread_id=answer.thread_id,
        question=answer.question,
        evidence_kind=answer.evidence_kind,
        versions=answer.versions,
    )
    yield ScanRecord(**_fields(answer.scan))
    if answer.segmentation is not None:
        yield SegmentationRecord(**_fields(answer.segmentation))
    for measurement in measurements:
        yield MeasurementRecord(**_fields(measurement))
    yield from _rounds(answer)
    for notice in answer.notices:
        yield NoticeRecord(**_fields(notice))
    for index, claim in enumerate(answer.claims, start=1):
        yield ClaimRecord(index=index, **_fields(claim))
    yield TNMRecord(**_fields(answer.tnm))
    yield AnswerRecord(
        conclusion=answer.conclusion,
        organs_examined=answer.organs_examined,
        organs_absent=answer.organs_absent,
        stopped_because=answer.stopped_because,
        seconds=answer.seconds,
        timings_s=answer.timings_s,
    )


def _rounds(answer: Answer) -> Iterator[TraceRecord]:
    for item in answer.rounds:
        for evidence in item.evidence:
            yield EvidenceRecord(round=item.index, **_fields(evidence))
        yield RoundRecord(
            index=item.index,
            prompt=item.prompt,
            text=item.text,
            organs_shown=tuple(evidence.organ for evidence in item.evidence),
            organs_mentioned=item.organs_mentioned,
            new_organs=item.new_organs,
            seconds=item.seconds,
        )
        yield UsageRecord(round=item.index, **_fields(item.usage))


def _fields(record: Record) -> dict[str, Any]:
    """The fields as they are, records inside stay records."""
    return {name: getattr(record, name) for name in type(record).model_fields}
