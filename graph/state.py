"""What the graph knows between nodes: plain JSON values only, so that any LangGraph checkpointer keeps it.

Tensors and pictures are never part of it: rounds and evidence hold their URIs.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field

from tumorchain_agent.records import (
    EvidenceKind,
    Notice,
    OrganEvidence,
    Record,
    Round,
    ScanInfo,
    SegmentationInfo,
    TokenSet,
)

Json = dict[str, Any]
"""A record as ``model_dump(mode="json")``."""

History = Literal["append", "latest"]
StopReason = Literal["no new organ", "max_rounds"]


class IIRConfig(Record):
    """How a question is reasoned about; the same for all rounds of a thread."""

    evidence: EvidenceKind = "tokens"
    """What the LLM can read: TumorChain tokens, pictures, or text alone."""

    history: History = "append"
    """``append`` keeps all rounds and evidence (eq. 3); ``latest`` is eq. 7 literally."""

    max_rounds: int = Field(default=8, ge=1)
    """Guard against endless rounds; hitting it is reported."""

    zoom: bool | None = None
    """Tokens of each organ's crop, too; ``None``: as the checkpoint was trained."""

    llm: str | None = None
    """Name of the LLM for the record; ``None``: what the chat model says of itself."""


class Asked(TypedDict):
    """An organ to examine and the words that named it."""

    organ: str
    asked_as: str


class Span(TypedDict):
    """When a phase was at work, Unix seconds."""

    phase: str
    start: float
    end: float


class SegmentationState(TypedDict):
    """The label map in use: its name for the tools and where it came from."""

    segmentation_id: str
    info: Json


def add_new(known: list[Json], new: list[Json]) -> list[Json]:
    """Reducer: what isn't known yet is appended, so that the same notice from two sources stands once."""
    result = list(known)
    result.extend(item for item in new if item not in result)
    return result


def add(known: list[Any], new: list[Any]) -> list[Any]:
    """Reducer: append."""
    return [*known, *new]


def fresh(items: list[Any]) -> list[Any]:
    """An update that replaces what a reducer has gathered, where the state begins anew."""
    from langgraph.types import Overwrite

    return Overwrite(items)  # type: ignore[return-value]


class IIRInput(TypedDict, total=False):
    """What the graph is invoked with; ``scan_path`` and ``question`` are required."""

    scan_path: str
    question: str
    masks: str | None
    """A label map of the user's in place of a segmentation run."""
    volume: int | None
    """Which volume of a 4-D file."""
    opened: Json | None
    """What ``open_scan`` has just said of that file, where the caller has asked already."""


class IIROutput(TypedDict, total=False):
    """What the graph returns."""

    answer: Json
    """:class:`~tumorchain_agent.records.Answer`."""


class IIRState(IIRInput, IIROutput, total=False):
    """The whole state. Each list of records is in the order in which things happened."""

    scan: Json
    global_tokens: Json | None
    """τ_g, ``None`` when the evidence is not tokens."""
    segmentation: SegmentationState
    rounds: list[Json]
    pending: list[Asked]
    """New organs of the last round, in order of mention; empty when the reasoning is over."""
    evidence: Annotated[list[Json], add]
    stopped_because: StopReason | None
    notices: Annotated[list[Json], add_new]
    spans: Annotated[list[Span], add]


class FirstLookInput(TypedDict, total=False):
    """What encoding and round 1 need: nothing of the segmentation."""

    scan_path: str
    volume: int | None
    scan: Json
    question: str


class FirstLookOutput(TypedDict, total=False):
    """What encoding and round 1 give back to the whole."""

    global_tokens: Json | None
    rounds: list[Json]
    notices: Annotated[list[Json], add_new]
    spans: Annotated[list[Span], add]


class ExamineInput(TypedDict):
    """What a parallel branch gets to examine one organ."""

    organ: str
    asked_as: str
    scan_path: str
    volume: int | None
    masks: str | None
    scan: Json
    segmentation: SegmentationState


def dump(record: Record) -> Json:
    """A record as JSON values."""
    return record.model_dump(mode="json")


def scan_of(state: IIRState | ExamineInput | FirstLookInput) -> ScanInfo:
    return ScanInfo.model_validate(state["scan"])


def segmentation_of(state: IIRState | ExamineInput) -> SegmentationInfo:
    return SegmentationInfo.model_validate(state["segmentation"]["info"])


def global_tokens_of(state: IIRState) -> TokenSet | None:
    tokens = state.get("global_tokens")
    return None if tokens is None else TokenSet.model_validate(tokens)


def rounds_of(state: IIRState) -> list[Round]:
    return [Round.model_validate(item) for item in state.get("rounds", [])]


def evidence_of(state: IIRState) -> dict[str, OrganEvidence]:
    """Organ → what is known of it."""
    records = (OrganEvidence.model_validate(item) for item in state.get("evidence", []))
    return {record.organ: record for record in records}


def notices_of(state: IIRState) -> list[Notice]:
    return [Notice.model_validate(item) for item in state.get("notices", [])]
