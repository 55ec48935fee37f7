"""The experts that are language models: a prompt, a typed record; one repair attempt, then the case is set aside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from tumorchain_agent.records import Record
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.engine.calls import Caller, CallRefused, Turn, Usage
from tumorchain_agent.training.engine.config import ModelConfig, Stage
from tumorchain_agent.training.engine.faults import Caught, Fault, SetAsideError, caught
from tumorchain_agent.training.engine.pairs import Pair
from tumorchain_agent.training.engine.prompts import REPAIR
from tumorchain_agent.training.engine.store import Reply
from tumorchain_agent.training.replies import json_object, without_thoughts

R = TypeVar("R", bound=Record)
_REFUSAL: Final = re.compile(
    r"\b(?:i['’]?m sorry|i can['’]?t|i cannot|i am (?:unable|not able)|as an ai|can['’]t (?:help|assist|provide))\b",
    re.I,
)


class Verdict(Record):
    """Of the calibrator."""

    consistent: bool
    issues: tuple[str, ...] = ()
    suspected_cause: str | None = None


class Summary(Record):
    """Of the summarizer."""

    consistent: bool
    issues: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()


@dataclass
class Tally:
    """What a case has used and what was found wrong on its way."""

    usage: dict[Stage, Usage] = field(default_factory=dict)
    caught: list[Caught] = field(default_factory=list)

    def note(self, by: str, faults: Sequence[Fault]) -> None:
        self.caught += caught(by, faults)


@dataclass(frozen=True)
class Desk:
    """Where a case's experts are asked."""

    caller: Caller
    tally: Tally

    async def ask(
        self,
        stage: Stage,
        model: ModelConfig,
        turns: Sequence[Turn],
        schema: type[R],
        check: Callable[[R], list[Fault]] | None = None,
        *,
        by: str | None = None,
        temperature: float | None = None,
        nth: int = 0,
    ) -> R:
        """A typed answer without faults, which are noted as found by ``by``. SetAsideError after one repair attempt."""
        asked = list(turns)
        for _ in range(2):
            reply = await self._reply(stage, model, asked, temperature, nth)
            found, faults = read_reply(reply, schema)
            name = "validator"
            if found is not None and check is not None:
                faults, name = check(found), by or "validator"
            if found is not None and not faults:
                return found
            self.tally.note(name, faults)
            problems = "\n".join(f"- {each.message}" for each in faults[:8])
            asked = [*turns, ("assistant", reply.text or "-"), ("user", REPAIR.format(problems=problems))]
        raise SetAsideError(name, faults)

    async def _reply(
        self, stage: Stage, model: ModelConfig, turns: Sequence[Turn], temperature: float | None, nth: int
    ) -> Reply:
        try:
            reply = await self.caller.ask(stage, model, turns, temperature=temperature, nth=nth)
        except CallRefused as error:
            fault = Fault(kind="call_refused", message=str(error)[:300])
            self.tally.note("validator", [fault])
            raise SetAsideError("validator", [fault]) from error
        self.tally.usage.setdefault(stage, Usage()).add(reply, model)
        return reply


def read_reply(reply: Reply, schema: type[R]) -> tuple[R | None, list[Fault]]:
    """A reply as a record, or what is wrong with it."""
    if reply.filtered:
        return None, [Fault(kind="refusal", message="the endpoint's filter withheld the answer")]
    values, fault = _json(reply)
    if fault:
        return None, [fault]
    try:
        return schema.model_validate_json(json.dumps(values)), []
    except ValidationError as error:
        return None, [Fault(kind="wrong_shape", message=explain(error)[:1500])]


def _json(reply: Reply) -> tuple[Any, Fault | None]:
    text = without_thoughts(reply.text)
    if "{" not in text and _REFUSAL.search(text):
        return None, Fault(
            kind="refusal", message="the expert refused; the data are for research, answer in JSON"
        )
    if reply.cut_off:
        return None, Fault(kind="truncated", message="the answer was cut off at the token limit; be shorter")
    if not text:
        return None, Fault(kind="empty_answer", message="the answer is empty; give the JSON object")
    try:
        return json_object(text), None
    except ValueError as error:
        return None, Fault(
            kind="invalid_json", message=f"no JSON object ({error}); give one, and nothing else"
        )
