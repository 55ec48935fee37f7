"""The ``ask`` tool: the graph, as a client of the very server that it is called through."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from mcp import Client

from tumorchain_agent.errors import LabelMapError, ScanError
from tumorchain_agent.mcp_server.calls import ProgressReporter, relayed
from tumorchain_agent.records import Answer, EvidenceKind

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from tumorchain_agent.graph.events import Event
    from tumorchain_agent.graph.state import History
    from tumorchain_agent.mcp_server.workbench import Workbench

Connect = Callable[[], AbstractAsyncContextManager[Client]]

THREADS = "threads.sqlite"
"""In the cache folder: where questions resume from, shared with the command line."""


class Asker:
    """Keeps the chat model loaded between questions."""

    def __init__(self, workbench: Workbench, connect: Connect) -> None:
        """``connect`` makes a client of the server whose tools these are."""
        self._bench = workbench
        self._settings = workbench.settings
        self._connect = connect
        self._models: dict[EvidenceKind, BaseChatModel] = {}
        self._loading = anyio.Lock()

    async def ask(
        self,
        path: str,
        question: str,
        reporter: ProgressReporter,
        *,
        masks: str | None = None,
        evidence: EvidenceKind | None = None,
        history: History | None = None,
        max_rounds: int | None = None,
        volume: int | None = None,
        zoom: bool | None = None,
    ) -> Answer:
        """Reason about a scan; raises what the tools, the chat model and the graph raise."""
        from tumorchain_agent.graph.prompts import check_question, check_zoom
        from tumorchain_agent.graph.run import ask

        guard = self._bench.guard
        path = str(guard.read(path, ScanError))
        masks = None if masks is None else str(guard.read(masks, LabelMapError))
        kind = evidence or "tokens"
        asked = check_question(question)
        check_zoom(kind, zoom)
        async with relayed(reporter) as relay, self._connect() as client:

            def on_event(event: Event) -> None:
                if (phase_and_fraction := told(event)) is not None:
                    relay(*phase_and_fraction)

            relay("opening", 0.0)
            trained = self._trained_history(kind)
            if kind == "tokens":
                self._bench.served.zoom(zoom)
            checkpoint_id = self._bench.served.behind(kind)
            chat_model = await self._chat_model(kind)
            answer = await ask(
                client,
                chat_model,
                path,
                asked,
                masks=masks,
                evidence=kind,
                history=history or trained,
                max_rounds=max_rounds or self._settings.max_rounds,
                checkpoint_db=self._settings.cache_dir / THREADS,
                on_event=on_event,
                volume=volume,
                zoom=zoom,
                checkpoint_id=checkpoint_id,
            )
        self._bench.answers.keep(answer)
        return answer

    async def _chat_model(self, evidence: EvidenceKind) -> BaseChatModel:
        from tumorchain_agent.model.chat import chat_model_from

        async with self._loading:
            if evidence not in self._models:
                load = partial(chat_model_from, self._settings, evidence=evidence)
                self._models[evidence] = await anyio.to_thread.run_sync(load)
            return self._models[evidence]

    def _trained_history(self, evidence: EvidenceKind) -> History:
        """What the checkpoint's LLM was trained with; other LLMs get all rounds."""
        return self._bench.served.info.history if evidence == "tokens" else "append"


def told(event: Event) -> tuple[str, float] | None:
    """Phase and fraction of the whole for a progress notification; ``None`` for an event that tells none.

    How many rounds there will be is unknown: each takes a third of what is left.
    """
    from tumorchain_agent.graph import events

    match event:
        case events.Progress(phase="segment"):
            return f"segment: {event.message}", 0.02 + 0.38 * (event.fraction or 0.0)
        case events.Progress():
            return f"{event.phase}: {event.message}", 0.02
        case events.RoundStarted():
            organs = f": {', '.join(event.organs)}" if event.organs else ""
            return f"round {event.index}{organs}", 1.0 - 0.6 * (2 / 3) ** (event.index - 1)
        case events.OrganExamined():
            return f"examined {event.evidence.organ}", 0.4
        case events.Answered():
            return "answered", 1.0
    return None
