"""Ask a question of a scan: the one entrance that the CLI, the MCP server and notebooks use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.types import Durability, StateSnapshot

from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.graph import events
from tumorchain_agent.graph.build import IIRGraph, build_iir_graph
from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.events import progress_events
from tumorchain_agent.graph.prompts import check_question, check_zoom
from tumorchain_agent.graph.state import History, IIRConfig, IIRInput, dump
from tumorchain_agent.graph.threads import make_thread_id, open_checkpoints
from tumorchain_agent.records import Answer, EvidenceKind, Notice, Round, SegmentationInfo
from tumorchain_agent.tools.segment_parts import organs_looked_for

if TYPE_CHECKING:
    from mcp import Client

OnEvent = Callable[[events.Event], None]


async def ask(
    client: Client | CTTools,
    chat_model: BaseChatModel,
    scan: str,
    question: str,
    *,
    masks: str | None = None,
    evidence: EvidenceKind = "tokens",
    history: History = "append",
    max_rounds: int = 8,
    checkpoint_db: Path | None,
    thread_id: str | None = None,
    fresh: bool = False,
    on_event: OnEvent | None = None,
    volume: int | None = None,
    zoom: bool | None = None,
    checkpoint_id: str | None = None,
) -> Answer:
    """Reason about a scan (paper 3.2) and return the answer with all that it rests on.

    ``scan`` and ``masks`` are paths on the MCP server's machine. With ``checkpoint_db`` a run that was cut
    off, even by kill −9, goes on where it stopped, and a question that was answered before is answered from
    there; ``fresh`` forgets what was. Rounds that are not run again come as events marked ``replayed``.
    ``zoom`` is as the checkpoint was trained unless it is false. ``checkpoint_id`` is of the checkpoint that
    the server runs: what was asked with another one is asked anew.

    Raises QuestionError, OutputError when the database can't be used, and whatever the tools and the chat
    model raise.
    """
    asked = check_question(question)
    check_zoom(evidence, zoom)
    config = IIRConfig(evidence=evidence, history=history, max_rounds=max_rounds, zoom=zoom)
    tools = client if isinstance(client, CTTools) else CTTools(client)
    request = IIRInput(scan_path=scan, question=asked, masks=masks, volume=volume)
    emit = on_event or _nobody
    if checkpoint_db is None:
        return await _stream(build_iir_graph(tools, chat_model, config=config), request, {}, emit)
    opened = await tools.open_scan(scan, volume, progress_events(emit, "open"))
    request["opened"] = dump(opened)
    thread = thread_id or make_thread_id(opened.scan_id, asked, config, chat_model, masks, checkpoint_id)
    tell = progress_events(emit, "open")
    waits = partial(tell, None, "waiting for another run of this question")
    async with open_checkpoints(checkpoint_db, thread, waits) as saver:
        if fresh:
            await saver.adelete_thread(thread)
        graph = build_iir_graph(tools, chat_model, config=config, checkpointer=saver)
        return await _go_on(graph, tools, request, {"configurable": {"thread_id": thread}}, emit)


def _nobody(event: events.Event) -> None:
    """Nobody watches."""


async def _go_on(
    graph: IIRGraph, tools: CTTools, request: IIRInput, config: RunnableConfig, emit: OnEvent
) -> Answer:
    """The thread's answer: the one it has, or the rest of the way to it."""
    snapshot = await graph.aget_state(config, subgraphs=True)
    begun = bool(snapshot.next) or "answer" in snapshot.values
    asked_before = begun and snapshot.values.get("question") == request["question"]
    if not asked_before or not await _same_segmentation(tools, request, snapshot, emit):
        return await _stream(graph, request, config, emit)
    for record in _finished_rounds(snapshot):
        emit(events.RoundFinished(round=record, replayed=True))
    if snapshot.next:
        return await _stream(graph, None, config, emit)
    answer = Answer.model_validate(snapshot.values["answer"])
    emit(events.NoticeRaised(notice=_answered_before(snapshot)))
    emit(events.Answered(answer=answer, replayed=True))
    return answer


async def _same_segmentation(
    tools: CTTools, request: IIRInput, snapshot: StateSnapshot, emit: OnEvent
) -> bool:
    """Whether the label map is still the one that the thread began with; other weights may be installed now.

    The server is told of scan and label map on the way, in case that it was started anew.
    """
    known = snapshot.values.get("segmentation")
    if known is None:
        return True
    scan_id = snapshot.values["scan"]["scan_id"]
    organs = organs_looked_for(SegmentationInfo.model_validate(known["info"]))
    now = await tools.segment_organs(scan_id, request.get("masks"), progress_events(emit, "segment"), organs)
    return bool(now.segmentation_id == known["segmentation_id"])


async def _stream(graph: IIRGraph, request: IIRInput | None, config: RunnableConfig, emit: OnEvent) -> Answer:
    """Run the graph to its end. Every step is on disk before the next begins."""
    answer: Answer | None = None
    durability: Durability | None = "sync" if graph.checkpointer else None
    async for part in graph.astream(
        request, config, stream_mode="custom", subgraphs=True, durability=durability
    ):
        _namespace, event = cast(tuple[tuple[str, ...], events.Event], part)
        emit(event)
        if isinstance(event, events.Answered):
            answer = event.answer
    if answer is None:
        raise TumorChainError("the reasoning ended without an answer; ask again with --fresh")
    return answer


def _finished_rounds(snapshot: StateSnapshot) -> list[Round]:
    """Rounds in the checkpoint; round 1 may still be in its own branch, whose sibling was cut off."""
    found: list[dict[str, Any]] = snapshot.values.get("rounds", [])
    for task in snapshot.tasks:
        branch = task.state.values if isinstance(task.state, StateSnapshot) else task.result
        found = (branch or {}).get("rounds") or found
    return [Round.model_validate(item) for item in found]


def _answered_before(snapshot: StateSnapshot) -> Notice:
    when = (snapshot.created_at or "")[:16].replace("T", " ")
    return Notice(
        code="answered_before",
        message=f"This question was answered before ({when} UTC); this is that answer. --fresh reasons anew.",
        severity="info",
    )
