"""Answers of the ``ask`` tool, kept to be explained, traced and reported on later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import ValidationError

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server.index import Index
from tumorchain_agent.mcp_server.results import Explanation
from tumorchain_agent.records import Answer, Claim, Measurement, OrganEvidence, Picture

KIND = "answers"


class Render(Protocol):
    """Makes the page that a physician reads of an answer; it comes from the front door."""

    def __call__(
        self,
        answer: Answer,
        pictures: Mapping[str, Sequence[tuple[Picture, bytes]]],
        measurements: Sequence[Measurement] = ...,
    ) -> str: ...


class Answers:
    """By thread id: the same question of the same scan is one answer."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def keep(self, answer: Answer) -> None:
        self._index.write(KIND, answer.thread_id, answer.model_dump(mode="json"))

    def find(self, answer_id: str) -> Answer:
        """Raises InputError for an id that isn't known, or of an older version's answer."""
        fact = self._index.read(KIND, answer_id)
        if fact is None:
            raise InputError(
                f"answer {answer_id[:60]!r} is not known here; pass the thread_id of an answer of ask"
            )
        try:
            return Answer.model_validate(fact)
        except ValidationError as error:
            raise InputError(f"answer {answer_id} is of another version; ask the question again") from error


def explain(answer: Answer, number: int) -> Explanation:
    """One claim of an answer, counted from 1, with what it rests on. Raises InputError for no such claim."""
    if not 1 <= number <= len(answer.claims):
        count = f"claims 1 to {len(answer.claims)}" if answer.claims else "no claims"
        raise InputError(f"the answer has {count}, not {number}; count its claims from 1")
    claim = answer.claims[number - 1]
    shown = _evidence(answer, claim)
    organs = {evidence.organ for _, evidence in shown}
    return Explanation(
        answer_id=answer.thread_id,
        question=answer.question,
        number=number,
        claim=claim,
        evidence=tuple(evidence for _, evidence in shown),
        rounds=tuple(dict.fromkeys(index for index, _ in shown)),
        organs_without_evidence=tuple(organ for organ in claim.organs if organ not in organs),
        notices=answer.notices,
    )


def _evidence(answer: Answer, claim: Claim) -> list[tuple[int, OrganEvidence]]:
    """Round and evidence of each organ that the claim names, or whose files it points to."""
    return [
        (item.index, evidence)
        for item in answer.rounds
        for evidence in item.evidence
        if evidence.organ in claim.organs or set(evidence.uris) & set(claim.evidence_uris)
    ]
