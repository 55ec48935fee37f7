"""Who is asked: the whole agent, which measures what can be measured, or a vision LLM on slices as a baseline."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.records import EvidenceKind, Record
from tumorchain_agent.tools.cache import Part, content_key
from tumorchain_agent.tools.quantity_answers import Measured, answer
from tumorchain_agent.tools.quantity_facts import NotMeasured
from tumorchain_agent.tools.quantity_options import free_text, letter
from tumorchain_agent.tools.quantity_questions import parse_question
from tumorchain_agent.training.evaluation import identity
from tumorchain_agent.training.evaluation.masks import KnownFacts
from tumorchain_agent.training.evaluation.prompts import Asked, read_prompt
from tumorchain_agent.training.evaluation.reading import read_answer

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from tumorchain_agent.graph.client import CTTools
    from tumorchain_agent.settings import Settings

log = logging.getLogger(__name__)

UNANSWERED: Final = "unanswered"
"""Stands for no answer: no metric reads a letter, a number, yes or no in it."""


class Said(Record):
    """An answer in the form that was wanted."""

    text: str
    how: Literal["measured", "llm", "unanswered"]
    raw: str = ""
    """The whole text that it was read from."""
    rounds: tuple[str, ...] = ()
    """What the agent wrote round by round, ``raw`` last."""
    sources: tuple[str, ...] = ()
    seconds: float = 0.0
    note: str = ""
    """Why a measurement question wasn't measured, or what failed."""

    @property
    def chain(self) -> str:
        """The whole reasoning."""
        return " ".join(self.rounds) or self.raw


class Subject(Protocol):
    name: str

    def made_with(self, scan: Path, image: str) -> str:
        """A hash of all that an answer rests on beside its prompt."""

    async def answer(self, prompt: str, scan: Path, image: str) -> Said:
        """An answer to a prompt about a scan; a failure is an unanswered one with its reason."""


def measure(known: KnownFacts, asked: Asked, scan: Path, image: str) -> Said:
    """The measured answer, or an unanswered one with the reason. Raises TumorChainError for a scan or mask."""
    query = parse_question(asked.question)
    try:
        if query is None:
            raise NotMeasured("the question asks for no measurement")
        measured = answer(query, known.of(scan, image))
        text = letter(measured, asked.options) if asked.form == "letter" else _worded(asked, measured)
        if text is None:
            raise NotMeasured(f"no single choice says it ({measured.text})")
    except NotMeasured as reason:
        return Said(text=UNANSWERED, how="unanswered", note=str(reason))
    raw = " ".join([measured.text, *(f"{limit}." for limit in measured.limits)])
    return Said(text=text, how="measured", raw=raw, sources=measured.sources)


def _worded(asked: Asked, measured: Measured) -> str:
    return free_text(measured, yes_no=asked.form == "yes_no")


class AgentSubject:
    """Measurements where the question asks for one and the masks tell it, in every evidence mode; else the graph."""

    def __init__(
        self,
        facts: KnownFacts,
        tools: CTTools,
        chat_model: Callable[[], BaseChatModel],
        evidence: EvidenceKind,
        name: str,
    ) -> None:
        self.name = name
        self._known, self._tools, self._chat_model, self._evidence = facts, tools, chat_model, evidence

    def made_with(self, scan: Path, image: str) -> str:
        masks = self._known.files(image)
        shown = identity.of_files(masks) if masks else self._segmenter
        return content_key(self._identity, identity.of_files([scan]), shown)

    @cached_property
    def _identity(self) -> Part:
        return identity.of_agent(self._known, self._evidence, self._chat_model)

    @cached_property
    def _segmenter(self) -> Part:
        return identity.of_segmenter(self._known.bench.settings)

    async def answer(self, prompt: str, scan: Path, image: str) -> Said:
        from anyio import to_thread

        asked, started, note = read_prompt(prompt), time.perf_counter(), ""
        try:
            if parse_question(asked.question) is not None:
                said = await to_thread.run_sync(measure, self._known, asked, scan, image)
                if said.how == "measured":
                    return said.model_copy(update={"seconds": time.perf_counter() - started})
                note = said.note
            said = await self._reason(asked, scan, image)
        except TumorChainError as error:
            log.warning("%s: %s", image, error)
            said = Said(text=UNANSWERED, how="unanswered", note=str(error))
        told = "; ".join(filter(None, (note, said.note)))
        return said.model_copy(update={"seconds": time.perf_counter() - started, "note": told})

    async def _reason(self, asked: Asked, scan: Path, image: str) -> Said:
        from tumorchain_agent.graph.run import ask

        given = self._known.label_map(image)
        result = await ask(
            self._tools,
            self._chat_model(),
            str(scan),
            asked.plain,
            masks=str(given) if given else None,
            evidence=self._evidence,
            checkpoint_db=None,
        )
        rounds = tuple(each.text.strip() for each in result.rounds)
        words = rounds[-1]
        text = read_answer(words, asked)
        uris = tuple(dict.fromkeys(uri for claim in result.claims for uri in claim.evidence_uris))
        if text is None:
            return Said(
                text=UNANSWERED,
                how="unanswered",
                raw=words,
                rounds=rounds,
                note="the text answers in no form that was wanted",
            )
        return Said(text=text, how="llm", raw=words, rounds=rounds, sources=uris)


def agent_name(settings: Settings, evidence: EvidenceKind) -> str:
    """How the agent is called in tables."""
    llm = settings.llm_model or (settings.model.name if settings.model else "nano")
    return f"agent ({llm}, {evidence})"


@asynccontextmanager
async def open_agent(
    settings: Settings,
    evidence: EvidenceKind,
    facts: KnownFacts,
    chat_model: Callable[[], BaseChatModel] | None = None,
) -> AsyncIterator[AgentSubject]:
    """The agent over the workbench of ``facts``, until the block ends. The LLM is loaded when it is first needed."""
    from tumorchain_agent.graph.client import CTTools
    from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
    from tumorchain_agent.model.chat import chat_model_from

    load = chat_model or cache(partial(chat_model_from, settings, evidence=evidence))
    async with connect_in_memory(build_server(facts.bench)) as client:
        yield AgentSubject(facts, CTTools(client), load, evidence, agent_name(settings, evidence))
