"""The nodes of IIR: async functions state → update. :mod:`tumorchain_agent.graph.build` wires them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Literal

from langchain_core.language_models import BaseChatModel
from langgraph.config import get_stream_writer
from langgraph.types import Send, StreamWriter

from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.graph import events
from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.conclude import build_answer
from tumorchain_agent.graph.examine import examine_organ
from tumorchain_agent.graph.llm import generate, llm_checkpoint_id
from tumorchain_agent.graph.matching import new_organs
from tumorchain_agent.graph.measured import organs_to_measure
from tumorchain_agent.graph.messages import to_messages
from tumorchain_agent.graph.prompts import check_question, conversation, show
from tumorchain_agent.graph.state import (
    ExamineInput,
    IIRConfig,
    IIRState,
    SegmentationState,
    Span,
    dump,
    evidence_of,
    fresh,
    global_tokens_of,
    rounds_of,
    scan_of,
    segmentation_of,
)
from tumorchain_agent.records import Notice, Round, ScanInfo, TokenSet
from tumorchain_agent.tools.organs import FIVE, display_name, mentioned_organs
from tumorchain_agent.tools.segment_parts import organs_looked_for


@dataclass(frozen=True)
class Nodes:
    """What the nodes work with: the tools behind MCP, the LLM, and how to reason."""

    tools: CTTools
    chat_model: BaseChatModel
    config: IIRConfig

    async def open(self, state: IIRState) -> IIRState:
        """Open the CT, and forget what an earlier question of the same thread may have left."""
        question = check_question(state["question"])
        writer = _writer()
        with _clock("open") as spans:
            if (opened := state.get("opened")) is not None:
                scan = ScanInfo.model_validate(opened)
            else:
                scan = await self.tools.open_scan(
                    state["scan_path"], state.get("volume"), events.progress_events(writer, "open")
                )
        _raise(writer, scan.notices)
        return {
            "question": question,
            "scan": dump(scan),
            "opened": None,
            "rounds": [],
            "pending": [],
            "evidence": fresh([]),
            "stopped_because": None,
            "notices": fresh([dump(notice) for notice in scan.notices]),
            "spans": fresh(spans),
        }

    async def encode(self, state: IIRState) -> IIRState:
        """τ_g of the whole scan; nothing to do for an LLM that doesn't read tokens."""
        if self.config.evidence != "tokens":
            return {"global_tokens": None}
        writer = _writer()
        with _clock("encode") as spans:
            tokens = await self.tools.encode_scan(
                scan_of(state).scan_id, events.progress_events(writer, "encode")
            )
        self._check_checkpoint(tokens)
        _raise(writer, tokens.notices)
        return {
            "global_tokens": dump(tokens),
            "notices": [dump(notice) for notice in tokens.notices],
            "spans": spans,
        }

    async def segment(self, state: IIRState) -> IIRState:
        """The label map; where several networks make it, first that of the organs most likely to be needed."""
        return await self._segmented(state, _first_organs(state["question"]))

    async def _segmented(self, state: IIRState, organs: list[str]) -> IIRState:
        writer = _writer()
        with _clock("segment") as spans:
            found = await self.tools.segment_organs(
                scan_of(state).scan_id, state.get("masks"), events.progress_events(writer, "segment"), organs
            )
        _raise(writer, found.info.notices)
        return {
            "segmentation": SegmentationState(segmentation_id=found.segmentation_id, info=dump(found.info)),
            "notices": [dump(notice) for notice in found.info.notices],
            "spans": spans,
        }

    async def _segmented_also(self, state: IIRState, organs: list[str]) -> IIRState:
        """The networks run that find organs of this round and were left out so far."""
        info = segmentation_of(state)
        looked_for = organs_looked_for(info)
        if looked_for is None or not set(organs).intersection(info.organs_deferred):
            return {}
        await self.tools.restore(
            state["scan_path"], state.get("volume"), info.scan_id, info.weights_id, None, looked_for
        )
        return await self._segmented(state, [*looked_for, *organs])

    async def reason(self, state: IIRState) -> IIRState:
        """The next round: one LLM call with the evidence that is new to it (eq. 4, 6, 7)."""
        writer = _writer()
        rounds, known = rounds_of(state), evidence_of(state)
        shown = [known[asked["organ"]] for asked in state.get("pending", [])]
        turns = conversation(
            self.config, state["question"], scan_of(state), global_tokens_of(state), rounds, shown
        )
        index, prompt = len(rounds) + 1, show(turns[-1])
        organs = tuple(evidence.organ for evidence in shown)
        if shown:
            writer(events.Progress(phase="evidence", fraction=1.0))
        writer(events.RoundStarted(index=index, organs=organs, prompt=prompt))
        with _clock("reason") as spans:
            messages = await to_messages(turns, self.tools)
            reply = await generate(
                self.chat_model, messages, lambda text: writer(events.Token(round=index, text=text))
            )
        texts = (reply.text,) if rounds else _first_texts(state["question"], reply.text)
        record = Round(
            index=index,
            prompt=prompt,
            text=reply.text,
            evidence=tuple(shown),
            organs_mentioned=tuple(mentioned_organs(reply.text)),
            new_organs=tuple(asked["organ"] for asked in new_organs(texts, known)),
            usage=reply.usage,
            seconds=_length(spans),
        )
        writer(events.RoundFinished(round=record))
        notices = [_cut_off(index)] if reply.cut_off else []
        _raise(writer, notices)
        return {
            "rounds": [dump(item) for item in (*rounds, record)],
            "notices": [dump(notice) for notice in notices],
            "spans": spans,
        }

    async def match(self, state: IIRState) -> IIRState:
        """Λ: the last round's new organs are next, unless there are none or no round is left for them."""
        rounds = rounds_of(state)
        first = len(rounds) == 1
        texts = _first_texts(state["question"], rounds[0].text) if first else (rounds[-1].text,)
        pending = new_organs(texts, evidence_of(state))
        if not pending:
            return {"pending": [], "stopped_because": "no new organ"}
        if len(rounds) < self.config.max_rounds:
            also = await self._segmented_also(state, [asked["organ"] for asked in pending])
            return {"pending": pending, **also}
        notice = _out_of_rounds(self.config.max_rounds, [asked["organ"] for asked in pending])
        _raise(_writer(), [notice])
        return {"pending": [], "stopped_because": "max_rounds", "notices": [dump(notice)]}

    def next_step(self, state: IIRState) -> list[Send] | Literal["conclude"]:
        """All new organs side by side, or the end."""
        if state.get("stopped_because"):
            return "conclude"
        shared = {
            "scan_path": state["scan_path"],
            "volume": state.get("volume"),
            "masks": state.get("masks"),
            "scan": state["scan"],
            "segmentation": state["segmentation"],
        }
        return [Send("examine", {**asked, **shared}) for asked in state["pending"]]

    async def examine(self, state: ExamineInput) -> IIRState:
        """The evidence of one organ: mask → Γ → Cls → measure."""
        writer = _writer()
        writer(events.Progress(phase="evidence", message=display_name(state["organ"])))
        with _clock("evidence") as spans:
            evidence = await examine_organ(self.tools, self.config.evidence, state, self.config.zoom)
        if evidence.tokens is not None:
            self._check_checkpoint(evidence.tokens)
        writer(events.OrganExamined(evidence=evidence))
        _raise(writer, evidence.notices)
        return {
            "evidence": [dump(evidence)],
            "notices": [dump(notice) for notice in evidence.notices],
            "spans": spans,
        }

    async def conclude(self, state: IIRState) -> IIRState:
        """The answer record."""
        writer = _writer()
        answer = build_answer(state, self.config, self.chat_model)
        known = state.get("notices", [])
        _raise(writer, [notice for notice in answer.notices if dump(notice) not in known])
        writer(events.Answered(answer=answer))
        return {"answer": dump(answer)}

    def _check_checkpoint(self, tokens: TokenSet) -> None:
        served = llm_checkpoint_id(self.chat_model)
        if served is not None and served != tokens.checkpoint_id:
            raise CheckpointError(
                f"the evidence tokens are of checkpoint {tokens.checkpoint_id} and the LLM is of {served}; "
                "start server and LLM with the same --model"
            )


def _first_organs(question: str) -> list[str]:
    """Those that the question names, or that its measurement needs; else the five digestive organs."""
    return mentioned_organs(f"{question}\n{organs_to_measure(question)}") or list(FIVE)


def _first_texts(question: str, reply: str) -> tuple[str, ...]:
    """What Λ reads after round 1: T_task, R¹, and the organs that a measurement asked for needs."""
    return question, reply, organs_to_measure(question)


def _writer() -> StreamWriter:
    """The custom stream, also for callbacks that run in the MCP client's own task (progress over a pipe)."""
    write, context = get_stream_writer(), copy_context()
    return lambda event: context.copy().run(write, event)


@contextmanager
def _clock(phase: str) -> Iterator[list[Span]]:
    """Puts one span into the list when the block has ended."""
    spans: list[Span] = []
    start = time.time()
    yield spans
    spans.append(Span(phase=phase, start=start, end=time.time()))


def _length(spans: Sequence[Span]) -> float:
    return sum(span["end"] - span["start"] for span in spans)


def _raise(writer: StreamWriter, notices: Sequence[Notice]) -> None:
    for notice in notices:
        writer(events.NoticeRaised(notice=notice))


def _out_of_rounds(max_rounds: int, organs: Sequence[str]) -> Notice:
    names = ", ".join(display_name(organ) for organ in organs)
    return Notice(
        code="max_rounds",
        message=f"Stopped after {max_rounds} rounds; not examined: {names}. Allow more with --max-rounds.",
    )


def _cut_off(index: int) -> Notice:
    return Notice(
        code="reply_cut_off",
        message=f"Round {index} stopped at the LLM's token limit; the rest of its text is missing.",
    )
