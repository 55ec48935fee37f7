"""The agent behind one blocking call, for callers that know nothing of async code."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import anyio

from tumorchain_agent.errors import InputError, TumorChainError
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.records import EvidenceKind
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.quantity_questions import parse_question
from tumorchain_agent.training.evaluation.masks import KnownFacts
from tumorchain_agent.training.evaluation.prompts import read_prompt
from tumorchain_agent.training.evaluation.subjects import UNANSWERED, Said, measure, open_agent

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_KINDS: Final[tuple[EvidenceKind, ...]] = get_args(EvidenceKind)


class BlockingAgent:
    """Keeps workbench and LLM between calls; each call has an event loop of its own, so that no thread outlives it."""

    def __init__(self, evidence: str, masks: Path | None, settings: Settings | None = None) -> None:
        kinds = {str(kind): kind for kind in _KINDS}
        if evidence not in kinds:
            raise InputError(
                f"evidence {evidence!r} is none of {', '.join(kinds)}; correct TUMORCHAIN_EVIDENCE"
            )
        self._evidence = kinds[evidence]
        self._settings = settings or Settings()
        self._facts = KnownFacts(Workbench(self._settings), masks)
        self._loaded = cache(self._load)

    def answer(self, prompt: str, scan: Path, image: str) -> Said:
        """One answer; a failure is an unanswered one. What is measured needs neither server nor LLM."""
        asked = read_prompt(prompt)
        try:
            if parse_question(asked.question) is not None:
                said = measure(self._facts, asked, scan, image)
                if said.how == "measured":
                    return said
        except TumorChainError as error:
            return Said(text=UNANSWERED, how="unanswered", note=str(error))
        return anyio.run(self._answer, prompt, scan, image)

    def close(self) -> None:
        """Ends the segmentation worker."""
        self._facts.bench.close()

    async def _answer(self, prompt: str, scan: Path, image: str) -> Said:
        served = self._settings.llm_url is not None
        model = self._load if served else self._loaded
        async with open_agent(self._settings, self._evidence, self._facts, model) as agent:
            return await agent.answer(prompt, scan, image)

    def _load(self) -> BaseChatModel:
        """A client of a server belongs to one event loop; a model in this process is loaded once."""
        return chat_model_from(self._settings, evidence=self._evidence)
