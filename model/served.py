"""An LLM behind an OpenAI-compatible endpoint, e.g. vLLM with ``--enable-prompt-embeds``."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio
import openai
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr, ValidationError

from tumorchain_agent.errors import ChatModelError, CheckpointError, EndpointError
from tumorchain_agent.model.chat import whole
from tumorchain_agent.model.endpoint import FAILURES, chat_error, pause_before, time_limits
from tumorchain_agent.settings import Settings

if TYPE_CHECKING:
    from tumorchain_agent.model.checkpoint import CheckpointInfo

ONE_REQUEST_EACH: Final = {"Connection": "close"}
"""A connection that is kept belongs to its event loop, and the chat model may be used from several in turn."""
_BROKEN_OFF: Final = frozenset({"abort", "error"})


class _Model(BaseModel):
    id: str
    root: str | None = None


class _Models(BaseModel):
    """``GET /models``, as much of it as matters."""

    data: list[_Model]


class ServedChatModel(ChatOpenAI):
    """``ChatOpenAI`` whose failures are :class:`ChatModelError`, a stream that breaks off early included.

    A request that a server refuses for the moment, or can't be reached for, is made again a few times; one
    that got no answer in time is not, and neither is one whose answer had begun.
    """

    checkpoint_id: str | None = None
    """Of the weights that are served, where evidence tokens must be of the same."""
    tries_again: bool = True
    """Off for a caller that keeps to the server's limits itself."""
    streams: bool = True
    """Whether a whole answer, too, is asked for as a stream, whose early end is seen."""

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        progress = _Progress()
        while not self.streams:
            try:
                return super()._generate(*args, **kwargs)
            except FAILURES as error:
                pause = self._pause(error, progress)
            time.sleep(pause)
        return whole(list(self._stream(*args, **kwargs)))

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        progress = _Progress()
        while not self.streams:
            try:
                return await super()._agenerate(*args, **kwargs)
            except FAILURES as error:
                pause = self._pause(error, progress)
            await anyio.sleep(pause)
        return whole([chunk async for chunk in self._astream(*args, **kwargs)])

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        progress = _Progress()
        while True:
            try:
                for chunk in super()._stream(*args, **kwargs):
                    yield progress.seen(chunk)
                return self._check_ended(progress)
            except FAILURES as error:
                pause = self._pause(error, progress)
            time.sleep(pause)

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        progress = _Progress()
        while True:
            try:
                async for chunk in super()._astream(*args, **kwargs):
                    yield progress.seen(chunk)
                self._check_ended(progress)
                return
            except FAILURES as error:
                pause = self._pause(error, progress)
            await anyio.sleep(pause)

    def _pause(self, error: Exception, progress: _Progress) -> float:
        """Seconds until the next attempt; raises ChatModelError when there is none."""
        final = progress.begun or not self.tries_again
        pause = None if final else pause_before(progress.attempts, error)
        if pause is None:
            url, timeout_s = self.openai_api_base, self.stream_chunk_timeout
            raise chat_error(url, error, progress.attempts, timeout_s) from error
        progress.attempts += 1
        return pause

    def _check_ended(self, progress: _Progress) -> None:
        if not progress.ended:
            raise ChatModelError(
                f"{self.openai_api_base} broke off its answer: look into the server's log, ask again"
            )


@dataclass
class _Progress:
    """How far a request has come."""

    attempts: int = 1
    begun: bool = False
    ended: bool = False

    def seen(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A server that is stopped ends its streams well-formed, but says that they were aborted."""
        reason = (chunk.generation_info or {}).get("finish_reason")
        self.begun = True
        self.ended = self.ended or (bool(reason) and reason not in _BROKEN_OFF)
        return chunk


def connect(
    settings: Settings,
    info: CheckpointInfo | None,
    *,
    temperature: float,
    max_tokens: int,
    tries_again: bool = True,
    streams: bool = True,
    http_async_client: Any = None,
) -> ServedChatModel:
    """A client of ``settings.llm_url``; ``http_async_client`` is one whose connections are kept, of one event loop.

    ``info`` is the checkpoint that token evidence comes from, ``None`` for other evidence; the server must
    then serve its LLM under a name or from a folder that holds its ``checkpoint_id``. Without ``llm_model``
    the server must serve one model only. Raises :class:`CheckpointError`, :class:`EndpointError` and
    :class:`ChatModelError`.
    """
    url = _with_version(settings.llm_url or "")
    key = settings.llm_api_key or "none"
    name = settings.llm_model
    if name is None or info is not None:
        served = _served(url, key, settings.llm_timeout_s)
        name = _find(url, served, name)
        if info is not None:
            _check_served(url, name, served[name], info)
    return ServedChatModel(
        model=name,
        base_url=url,
        api_key=SecretStr(key),
        default_headers=ONE_REQUEST_EACH if http_async_client is None else None,
        http_async_client=http_async_client,
        tries_again=tries_again,
        streams=streams,
        temperature=temperature,
        max_completion_tokens=max_tokens,
        timeout=time_limits(settings.llm_timeout_s),
        stream_chunk_timeout=settings.llm_timeout_s,
        max_retries=0,
        stream_usage=True,
        use_responses_api=False,
        checkpoint_id=None if info is None else info.checkpoint_id,
    )


def _with_version(url: str) -> str:
    if not _is_http(url):
        raise EndpointError(f"LLM address {url!r} is no http(s) URL: use e.g. http://localhost:8000/v1")
    return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        addressed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return addressed and all(char.isprintable() and not char.isspace() for char in url)


def _served(url: str, key: str, timeout: float) -> dict[str, str]:
    """Model name → where its server has it from, ``""`` when it doesn't say."""
    answer = _list_models(url, key, timeout)
    try:
        return {model.id: model.root or "" for model in _Models.model_validate(answer).data}
    except ValidationError as error:
        raise EndpointError(
            f"{url}/models is no list of models: check that --llm-url is an OpenAI-compatible address"
        ) from error


def _list_models(url: str, key: str, timeout: float) -> object:
    limits = time_limits(timeout)
    with openai.OpenAI(base_url=url, api_key=key, timeout=limits, max_retries=0) as client:
        attempts = 1
        while True:
            try:
                return client.get("/models", cast_to=object)
            except FAILURES as error:
                pause = pause_before(attempts, error)
                if pause is None:
                    raise chat_error(url, error, attempts, timeout) from error
            time.sleep(pause)
            attempts += 1


def _find(url: str, served: dict[str, str], name: str | None) -> str:
    if name is None and len(served) == 1:
        return next(iter(served))
    if name is None or name not in served:
        raise EndpointError(
            f"{url} serves {', '.join(served) or 'no model'}: name one of them with --llm-model"
        )
    return name


def _check_served(url: str, name: str, root: str, info: CheckpointInfo) -> None:
    from tumorchain_agent.model.checkpoint import served_name

    if info.checkpoint_id not in f"{name} {root}":
        raise CheckpointError(
            f"{url} serves {name}, the evidence tokens belong to checkpoint {info.checkpoint_id}: "
            f"pass --evidence images or text, serve that folder with --served-model-name {served_name(info)}, "
            "or pass its --model"
        )
