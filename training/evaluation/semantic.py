"""Semantic accuracy of open answers (paper 10.2): does an answer keep the reference's medical meaning?

By an LLM behind an address, or offline by rules (``meaning``): all that the reference says must be said, and nothing
contradicted. What a judge can't tell is unscored, never right or wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from tumorchain_agent.training.evaluation.meaning import same_meaning
from tumorchain_agent.training.evaluation.runner import Item, Line
from tumorchain_agent.training.evaluation.scoring import points
from tumorchain_agent.training.replies import json_in

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

ATTEMPTS: Final = 3
_PROMPT: Final = """You compare a model's answer about a CT scan with the reference answer.
Find the kind of question and its clinical core. The answer is correct when it keeps the core medical meaning, however
it is worded; it is wrong when it adds a finding, leaves out the core or contradicts it.
Question: {question}
Reference: {reference}
Answer: {answer}
Reply with JSON only: {{"correct": true}} or {{"correct": false}}"""


class Judge(Protocol):
    name: str

    async def compare(self, question: str, reference: str, answer: str) -> float | None:
        """1 for the same meaning, 0 for another, ``None`` when it can't be told."""


class OfflineJudge:
    """Compares facts, numbers and words; no model."""

    name = "facts (deterministic)"

    async def compare(self, question: str, reference: str, answer: str) -> float | None:
        same = same_meaning(reference, answer)
        return None if same is None else float(same)


class LLMJudge:
    """Asks a model; a reply that isn't the JSON asked for is asked for again, then unscored."""

    def __init__(self, chat_model: BaseChatModel, name: str) -> None:
        self.name, self._chat_model = name, chat_model

    async def compare(self, question: str, reference: str, answer: str) -> float | None:
        prompt = _PROMPT.format(question=question, reference=reference, answer=answer)
        for _ in range(ATTEMPTS):
            verdict = json_in(await say(self._chat_model, prompt)).get("correct")
            if isinstance(verdict, bool):
                return float(verdict)
        return None


async def say(chat_model: BaseChatModel, prompt: str) -> str:
    """One reply. Raises ChatModelError."""
    from langchain_core.messages import HumanMessage

    from tumorchain_agent.graph.llm import generate

    return (await generate(chat_model, [HumanMessage(content=prompt)], lambda _: None)).text


async def judge_open(
    items: Sequence[Item], lines: Mapping[str, Sequence[Line]], judge: Judge
) -> dict[tuple[str, str], float | None]:
    """(subject, id) → points of the answers that only a judge can compare."""
    judged: dict[tuple[str, str], float | None] = {}
    for subject, said in lines.items():
        for item, line in zip(items, said, strict=True):
            if points(item.sample, line) is None:
                judged[subject, item.sample.id] = await judge.compare(
                    item.sample.question, item.sample.answer, line.said.text
                )
    return judged
