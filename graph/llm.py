"""One streamed LLM call: text, usage, and our own error when the model fails or has nothing to say."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage

from tumorchain_agent.errors import ChatModelError
from tumorchain_agent.records import Usage

_CUT_OFF = frozenset({"length", "max_tokens"})


@dataclass(frozen=True)
class Reply:
    """What the LLM said."""

    text: str
    usage: Usage
    cut_off: bool
    """It stopped at its token limit, in the middle of what it had to say."""


async def generate(
    chat_model: BaseChatModel, messages: Sequence[BaseMessage], on_token: Callable[[str], None]
) -> Reply:
    """Stream one reply. ChatModelError when the endpoint fails or the reply is empty."""
    name = llm_name(chat_model)
    whole: AIMessageChunk | None = None
    try:
        async for chunk in chat_model.astream(list(messages)):
            if chunk.text:
                on_token(str(chunk.text))
            whole = chunk if whole is None else whole + chunk
    except _endpoint_errors() as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ChatModelError(
            f"LLM {name} failed: {reason}; check its URL, its model name and that it takes this evidence"
        ) from error
    if whole is None or not str(whole.text).strip():
        raise ChatModelError(f"LLM {name} answered with nothing; check that it takes this kind of evidence")
    return Reply(str(whole.text), _usage(whole), whole.response_metadata.get("finish_reason") in _CUT_OFF)


def llm_name(chat_model: BaseChatModel) -> str:
    """What the chat model calls itself: its model name, else its class."""
    names = (getattr(chat_model, "model_name", None), getattr(chat_model, "model", None))
    for name in (*names, chat_model._identifying_params.get("model_name")):
        if isinstance(name, str) and name:
            return name
    return type(chat_model).__name__


def llm_checkpoint_id(chat_model: BaseChatModel) -> str | None:
    """Hash of the weights, where the chat model knows it; evidence tokens must carry the same."""
    checkpoint_id = getattr(chat_model, "checkpoint_id", None)
    return checkpoint_id if isinstance(checkpoint_id, str) else None


def _usage(message: AIMessageChunk) -> Usage:
    usage = message.usage_metadata
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=usage["input_tokens"],
        cached_tokens=usage.get("input_token_details", {}).get("cache_read", 0),
        completion_tokens=usage["output_tokens"],
    )


def _endpoint_errors() -> tuple[type[Exception], ...]:
    """What chat models of an HTTP endpoint raise, of the packages that are imported anyway."""
    found: list[type[Exception]] = [OSError]
    for package, name in (("openai", "OpenAIError"), ("httpx", "HTTPError"), ("httpx2", "HTTPError")):
        if package in sys.modules:
            found.append(getattr(sys.modules[package], name))
    return tuple(found)
