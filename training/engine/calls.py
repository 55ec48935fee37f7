"""Calls of the experts' models: cached by content, as fast as endpoints allow, tried again where that helps."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

import anyio
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage

from tumorchain_agent.errors import ChatModelError, TumorChainError
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.engine.config import ModelConfig, Stage
from tumorchain_agent.training.engine.store import Reply, Store

log = logging.getLogger(__name__)

Turn = tuple[str, str]
"""Role (system, user, assistant) and text."""

MAX_LIMITED_S: Final = 3600.0
"""So long one call may be kept waiting by rate limits."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_NO_QUOTA: Final = "insufficient_quota"
_CUT_OFF: Final = frozenset({"length", "max_tokens"})
_ROLES: Final[dict[str, type[BaseMessage]]] = {
    "system": SystemMessage, "user": HumanMessage, "assistant": AIMessage,
}  # fmt: skip


class CallRefused(TumorChainError):
    """The endpoint won't take this one call (400, 413, 422): the case is set aside, others go on."""


class Stopped(TumorChainError):
    """The run is being stopped; no further call begins."""

    exit_code = 130


@dataclass
class Usage:
    """Of a stage."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def add(self, reply: Reply, model: ModelConfig) -> None:
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.cost += (reply.prompt_tokens * model.price_in + reply.completion_tokens * model.price_out) / 1e6


@dataclass
class _Endpoint:
    """Of one model at one address: closed until a moment when it said that it is asked too often."""

    closed_until: float = 0.0
    answered: bool = False

    def close(self, pause: float, why: ChatModelError) -> None:
        """For so many seconds at least; one line in the log for each pause, not for each call that is limited."""
        now = time.monotonic()
        if now >= self.closed_until:
            log.warning("%s; limited, waiting %.1f s", why, pause)
        self.closed_until = max(self.closed_until, now + pause)


@dataclass
class Paid:
    """What this process has asked for, as against what was cached."""

    calls: int = 0
    cached: int = 0
    limited: int = 0
    """Answers 429."""
    tokens: int = 0
    cost: float = 0.0


@dataclass
class Caller:
    """Asks models. One for a run; ``stopping`` ends it between calls."""

    store: Store
    stopping: anyio.Event = field(default_factory=anyio.Event)
    paid: Paid = field(default_factory=Paid)
    http: Any = None
    _endpoints: dict[tuple[str, str], _Endpoint] = field(default_factory=dict)
    _clients: dict[tuple[ModelConfig, float], Any] = field(default_factory=dict)
    _locks: dict[str, anyio.Lock] = field(default_factory=dict)
    _waiting: Counter[str] = field(default_factory=Counter)

    async def ask(
        self,
        stage: Stage,
        model: ModelConfig,
        turns: Sequence[Turn],
        *,
        temperature: float | None = None,
        nth: int = 0,
    ) -> Reply:
        """The reply to a conversation. ``nth`` tells apart calls that are to be drawn anew.

        Raises Stopped, CallRefused, and ChatModelError when the endpoint fails for good.
        """
        heat = model.temperature if temperature is None else temperature
        key = call_key(stage, model, turns, heat, nth)
        async with self._alone(key):
            kept = self.store.reply(key)
            if kept is not None:
                self.paid.cached += 1
                return kept
            reply = await self._fetch(model, heat, turns)
            self.store.put_reply(key, reply)
            usage = Usage()
            usage.add(reply, model)
            self.paid.calls += 1
            self.paid.tokens += reply.prompt_tokens + reply.completion_tokens
            self.paid.cost += usage.cost
            return reply

    @asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """Two cases with the same question make one call."""
        lock = self._locks.setdefault(key, anyio.Lock())
        self._waiting[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._locks[key]

    async def _fetch(self, model: ModelConfig, temperature: float, turns: Sequence[Turn]) -> Reply:
        endpoint = self._endpoints.setdefault((model.url, model.model), _Endpoint())
        client = self._client(model, temperature)
        messages = [_ROLES[role](content=text) for role, text in turns]
        tries, limited, limited_s = 0, 0, 0.0
        while True:
            await self._until(endpoint.closed_until)
            if self.stopping.is_set():
                raise Stopped("stopped; the same command goes on where this one stopped")
            try:
                reply = await _call(client, messages, stream=model.stream)
            except ChatModelError as error:
                wait = _retry_after(error)
                if _status(error) == 429:
                    self.paid.limited += 1
                    _raise_if_unpaid(error, model)
                    pause = max(wait or 0.0, _backoff(limited))
                    limited, limited_s = limited + 1, limited_s + pause
                    if limited_s > MAX_LIMITED_S:
                        raise
                    endpoint.close(pause, error)
                    continue
                _raise_if_final(error, first=not endpoint.answered, tries_left=model.retries - tries)
                log.warning("%s; trying again", error)
                await self._until(time.monotonic() + (_backoff(tries) if wait is None else wait))
                tries += 1
            else:
                endpoint.answered = True
                return reply

    async def _until(self, moment: float) -> None:
        """Sleep until a moment, or until the run is stopped."""
        while (left := moment - time.monotonic()) > 0 and not self.stopping.is_set():
            with anyio.move_on_after(left):
                await self.stopping.wait()

    def _client(self, model: ModelConfig, temperature: float) -> Any:
        found = self._clients.get((model, temperature))
        if found is None:
            from tumorchain_agent.model.served import connect

            settings = Settings(
                llm_url=model.url,
                llm_model=model.model,
                llm_api_key=model.api_key,
                llm_timeout_s=model.timeout_s,
            )
            found = self._clients[model, temperature] = connect(
                settings,
                None,
                temperature=temperature,
                max_tokens=model.max_tokens,
                tries_again=False,
                streams=model.stream,
                http_async_client=self.http,
            )
        return found


def call_key(stage: Stage, model: ModelConfig, turns: Sequence[Turn], temperature: float, nth: int) -> str:
    """Hash of all that decides a reply; the address isn't part of it, the model's name is."""
    parts = [stage, model.model, str(model.max_tokens), repr(temperature), str(nth)]
    parts += [each for turn in turns for each in turn]
    digest = blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@asynccontextmanager
async def open_caller(store: Store) -> AsyncIterator[Caller]:
    """A caller whose connections are closed at the end."""
    import openai

    async with openai.DefaultAsyncHttpxClient() as http:
        yield Caller(store, http=http)


async def _call(client: Any, messages: list[BaseMessage], *, stream: bool) -> Reply:
    if not stream:
        return _reply(await client.ainvoke(messages))
    whole: AIMessageChunk | None = None
    async for chunk in client.astream(messages):
        whole = chunk if whole is None else whole + chunk
    if whole is None:
        raise ChatModelError("the endpoint broke off its answer before it began")
    return _reply(whole)


def _reply(message: Any) -> Reply:
    reason = message.response_metadata.get("finish_reason")
    usage = message.usage_metadata or {}
    return Reply(
        text=str(message.text),
        cut_off=reason in _CUT_OFF,
        filtered=reason == "content_filter",
        prompt_tokens=usage.get("input_tokens", 0),
        completion_tokens=usage.get("output_tokens", 0),
    )


def _status(error: ChatModelError) -> int | None:
    status = getattr(error.__cause__, "status_code", None)
    return status if isinstance(status, int) else None


def _retry_after(error: ChatModelError) -> float | None:
    """Seconds that the endpoint asks to wait, as a number or a date."""
    response = getattr(error.__cause__, "response", None)
    if response is None:
        return None
    text = str(response.headers.get("retry-after", "")).strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _raise_if_unpaid(error: ChatModelError, model: ModelConfig) -> None:
    """A used-up quota is answered 429 too, and no waiting helps."""
    cause = error.__cause__
    if _NO_QUOTA in (getattr(cause, "code", None), getattr(cause, "type", None)):
        raise ChatModelError(
            f"{model.url}: the quota for {model.model} is used up ({_NO_QUOTA}); pay for more or name another "
            "endpoint in the configuration, and the same command goes on where this one stopped"
        ) from error


def _raise_if_final(error: ChatModelError, *, first: bool, tries_left: int) -> None:
    """Let through what is worth another try: time-outs, lost connections, broken-off streams, 408, 409 and 5xx."""
    status = _status(error)
    if status in (400, 413, 422):
        raise CallRefused(str(error)) from error
    if status is not None and status < 500 and status not in (408, 409):
        raise error
    unreachable = status is None and type(error.__cause__).__name__ == "APIConnectionError"
    if tries_left <= 0 or (unreachable and first):
        raise error


def _backoff(tries: int) -> float:
    return float(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**tries))
