"""The worker of a batch: one process that answers row after row with its models loaded."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tumorchain_agent.batch_rows import Outcome
from tumorchain_agent.batch_table import Row
from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.records import EvidenceKind, Record
from tumorchain_agent.settings import Settings

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from tumorchain_agent.graph.state import History
    from tumorchain_agent.records import Answer

MAX_ATTEMPTS: Final = 2
WORKER_DIED: Final = "WorkerDied"


class Reasoning(Record):
    """How every row is answered."""

    evidence: EvidenceKind = "tokens"
    history: str | None = None
    zoom: bool | None = None
    max_rounds: int = 8


class Attempts:
    """Counts how often a row was begun; outlives the workers, so that a row that kills them is given up."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}

    def begin(self, row_id: str) -> int:
        """The number of this attempt, from 1."""
        self._begun[row_id] = self._begun.get(row_id, 0) + 1
        return self._begun[row_id]


class RowAsker:
    """Called by Ray Data with one row at a time; the models are loaded with the first."""

    def __init__(self, settings: dict[str, Any], reasoning: str, attempts: Any) -> None:
        from tumorchain_agent.mcp_server.server import build_server
        from tumorchain_agent.mcp_server.workbench import Workbench

        self._settings = Settings(**settings)
        self._reasoning = Reasoning.model_validate_json(reasoning)
        self._attempts = attempts
        self._bench = Workbench(self._settings, memory_bytes=0)
        self._server = build_server(self._bench)
        self._model: BaseChatModel | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, str]:
        """``{"row": …, "key": …}`` → ``{"outcome": …}``, all JSON."""
        import ray

        row = Row.model_validate_json(item["row"])
        attempt = int(ray.get(self._attempts.begin.remote(row.id)))
        if attempt > MAX_ATTEMPTS:
            outcome = given_up(row, str(item["key"]), attempt - 1)
        else:
            outcome = self.outcome(row, str(item["key"]), attempt)
        return {"outcome": outcome.model_dump_json()}

    def outcome(self, row: Row, key: str, attempt: int = 1) -> Outcome:
        """The answer, or the error of ours that stood in its way."""
        import anyio

        began = time.monotonic()
        found = partial(Outcome, row=row, key=key, attempts=attempt)
        try:
            answer = anyio.run(self._answer, row)
        except TumorChainError as error:
            text = " ".join(str(error).split())
            return found(status="failed", error_code=error.code, error=text, seconds=_since(began))
        return found(status="answered", answer=answer, seconds=_since(began))

    async def _answer(self, row: Row) -> Answer:
        from tumorchain_agent.graph.client import CTTools
        from tumorchain_agent.graph.prompts import check_question
        from tumorchain_agent.graph.run import ask
        from tumorchain_agent.mcp_server.asking import THREADS
        from tumorchain_agent.mcp_server.server import connect_in_memory

        asked, wanted = check_question(row.question), self._reasoning
        async with connect_in_memory(self._server) as client:
            tools = CTTools(client)
            scan = await tools.open_scan(row.scan, row.volume)
            if row.masks is not None:
                await tools.segment_organs(scan.scan_id, row.masks)
            return await ask(
                tools,
                self._chat_model(),
                row.scan,
                asked,
                masks=row.masks,
                evidence=wanted.evidence,
                history=self._history(),
                max_rounds=wanted.max_rounds,
                checkpoint_db=self._settings.cache_dir / THREADS,
                volume=row.volume,
                zoom=wanted.zoom,
                checkpoint_id=self._bench.served.behind(wanted.evidence),
            )

    def _chat_model(self) -> BaseChatModel:
        from tumorchain_agent.model.chat import chat_model_from

        if self._model is None:
            self._model = chat_model_from(self._settings, evidence=self._reasoning.evidence)
        return self._model

    def _history(self) -> History:
        if self._reasoning.history is not None:
            return "latest" if self._reasoning.history == "latest" else "append"
        return self._bench.served.info.history if self._reasoning.evidence == "tokens" else "append"


def given_up(row: Row, key: str, attempts: int) -> Outcome:
    """A row whose worker died each time."""
    message = (
        f"the worker process died {attempts} times while it was at this row, for want of memory perhaps; "
        "ask it alone, or give each worker more memory with fewer --workers"
    )
    return Outcome(
        row=row, key=key, status="failed", error_code=WORKER_DIED, error=message, attempts=attempts
    )


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def to_item(row: Row, key: str) -> dict[str, str]:
    """A row as Ray Data carries it."""
    return {"row": row.model_dump_json(), "key": key}


def from_item(item: dict[str, Any]) -> Outcome:
    """What a worker returned."""
    return Outcome.model_validate(json.loads(item["outcome"]))
