"""An LLM behind an OpenAI-compatible endpoint, e.g. vLLM with ``--enable-prompt-embeds``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import openai
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr, ValidationError

from tumorchain_agent.errors import ChatModelError, CheckpointError, EndpointError
from tumorchain_agent.settings import Settings

if TYPE_CHECKING:
    from tumorchain_agent.model.checkpoint import CheckpointInfo

MAX_RETRIES: Final = 2
_FAILURES: Final = (openai.OpenAIError, TimeoutError, ValueError, TypeError, KeyError)
"""What the client raises for a refusal, a lost connection, or an answer that is no chat completion."""


class _Model(BaseModel):
    id: str
    root: str | None = None


class _Models(BaseModel):
    """``GET /models``, as much of it as matters."""

    data: list[_Model]


class ServedChatModel(ChatOpenAI):
    """``ChatOpenAI`` whose failures are :class:`ChatModelError`, a stream that breaks off early included."""

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        with _as_chat_error(self.openai_api_base):
            return super()._generate(*args, **kwargs)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        with _as_chat_error(self.openai_api_base):
            return await super()._agenerate(*args, **kwargs)

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        ended = False
        with _as_chat_error(self.openai_api_base):
            for chunk in super()._stream(*args, **kwargs):
                ended = ended or _is_end(chunk)
                yield chunk
        self._check_ended(ended)

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        ended = False
        with _as_chat_error(self.openai_api_base):
            async for chunk in super()._astream(*args, **kwargs):
                ended = ended or _is_end(chunk)
                yield chunk
        self._check_ended(ended)

    def _check_ended(self, ended: bool) -> None:
        if not ended:
            raise ChatModelError(
                f"{self.openai_api_base} broke off its answer: look into the server's log, ask again"
            )


def connect(
    settings: Settings,
    info: CheckpointInfo | None,
    *,
    temperature: float,
    max_tokens: int,
    max_retries: int = MAX_RETRIES,
    http_async_client: Any = None,
) -> ServedChatModel:
    """A client of ``settings.llm_url``.

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
        temperature=temperature,
        max_completion_tokens=max_tokens,
        timeout=settings.llm_timeout_s,
        stream_chunk_timeout=settings.llm_timeout_s,
        max_retries=max_retries,
        http_async_client=http_async_client,
        stream_usage=True,
        use_responses_api=False,
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
    with (
        _as_chat_error(url),
        openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=MAX_RETRIES) as client,
    ):
        answer = client.get("/models", cast_to=object)
    try:
        return {model.id: model.root or "" for model in _Models.model_validate(answer).data}
    except ValidationError as error:
        raise EndpointError(
            f"{url}/models is no list of models: check that --llm-url is an OpenAI-compatible address"
        ) from error


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


def _is_end(chunk: ChatGenerationChunk) -> bool:
    return bool((chunk.generation_info or {}).get("finish_reason"))


@contextmanager
def _as_chat_error(url: str | None) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise _kind(error)(f"{url}: {reason}: {_remedy(error, reason)}") from error


def _kind(error: Exception) -> type[ChatModelError]:
    if isinstance(error, openai.APITimeoutError):
        return ChatModelError
    wrong_address = isinstance(error, openai.APIConnectionError | openai.NotFoundError)
    return EndpointError if wrong_address else ChatModelError


def _remedy(error: Exception, reason: str) -> str:
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "raise TUMORCHAIN_LLM_TIMEOUT_S or ask less at once"
    if isinstance(error, openai.APIConnectionError):
        return "check that the server runs and --llm-url is right"
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return "set TUMORCHAIN_LLM_API_KEY"
    if isinstance(error, openai.NotFoundError):
        return "check --llm-url and --llm-model"
    if "prompt_embeds" in reason or "prompt-embeds" in reason:
        return "start vLLM with --enable-prompt-embeds, or pass --evidence images or text"
    if "context" in reason or "maximum model length" in reason:
        return "use --history latest or fewer rounds (--max-rounds)"
    return "look into the server's log"
