"""What happens while a question is reasoned about, for whoever watches: the CLI, the MCP server, a notebook.

Nodes write these to LangGraph's custom stream; :func:`~tumorchain_agent.graph.run.ask` hands them to
``on_event``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from tumorchain_agent.records import Answer, Notice, OrganEvidence, Record, Round


class RoundStarted(Record):
    """An LLM call begins."""

    type: Literal["round_started"] = "round_started"
    index: int
    organs: tuple[str, ...] = ()
    """Organs whose evidence this round is shown for the first time."""
    prompt: str


class OrganExamined(Record):
    """The evidence of one organ is ready, for the round to come."""

    type: Literal["organ_evidence"] = "organ_evidence"
    evidence: OrganEvidence


class Token(Record):
    """The next piece of a round's text."""

    type: Literal["token"] = "token"
    round: int
    text: str


class RoundFinished(Record):
    """A round with its whole text, organs and usage."""

    type: Literal["round_finished"] = "round_finished"
    round: Round
    replayed: bool = False
    """From the checkpoint of an earlier run: none of its tokens were streamed in this one."""


class NoticeRaised(Record):
    """Something the reader must know; it is in the answer as well, unless it is about this run only."""

    type: Literal["notice"] = "notice"
    notice: Notice


Phase = Literal["open", "encode", "segment", "evidence"]


class Progress(Record):
    """Long work moves on."""

    type: Literal["progress"] = "progress"
    phase: Phase
    fraction: float | None = None
    """0 to 1, ``None`` when it isn't known."""
    message: str = ""


class Answered(Record):
    """The end."""

    type: Literal["answer"] = "answer"
    answer: Answer
    replayed: bool = False


Event = RoundStarted | OrganExamined | Token | RoundFinished | NoticeRaised | Progress | Answered


def progress_events(emit: Callable[[Event], None], phase: Phase) -> Callable[[float | None, str], None]:
    """A tool's progress callback that emits events of a phase."""
    return lambda fraction, message: emit(Progress(phase=phase, fraction=fraction, message=message))
