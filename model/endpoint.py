"""What may go wrong at an OpenAI-compatible endpoint: whether to try again, how long to wait, what to tell the user."""

from __future__ import annotations

import random
from typing import Final

import openai

from tumorchain_agent.errors import ChatModelError, EndpointError

FAILURES: Final = (openai.OpenAIError, TimeoutError, ValueError, TypeError, KeyError)
"""What the client raises for a refusal, a lost connection, or an answer that is no chat completion."""

PAUSES_S: Final = (0.5, 2.0)
"""Before the second and the third attempt; there is no fourth."""
LONGEST_PAUSE_S: Final = 10.0
"""A server that asks for more patience than this is an error at once."""
CONNECT_S: Final = 10.0
_PASSING: Final = frozenset({408, 409, 429, 500, 502, 503, 504})


def time_limits(timeout_s: float) -> openai.Timeout:
    """At most ``timeout_s`` between two signs of life, and less for the connection."""
    return openai.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))


def pause_before(attempts: int, error: Exception) -> float | None:
    """Seconds to wait after so many attempts, a little more than the schedule by chance; ``None``: give up."""
    if attempts > len(PAUSES_S) or not _may_pass(error):
        return None
    pause = max(PAUSES_S[attempts - 1] * random.uniform(1.0, 1.25), _asked_for(error))
    return pause if pause <= LONGEST_PAUSE_S else None


def _may_pass(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in _PASSING
    return isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)


def _asked_for(error: Exception) -> float:
    """The ``Retry-After`` of a refusal, in seconds."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    try:
        return float(error.response.headers.get("retry-after", "0"))
    except ValueError:
        return 0.0


def chat_error(
    url: str | None, error: Exception, attempts: int, timeout_s: float | None = None
) -> ChatModelError:
    """One line: the address, what happened, what to do."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, openai.APITimeoutError | TimeoutError) and timeout_s is not None:
        reason = f"no sign of life for {timeout_s:g} s"
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    return _kind(error)(f"{url}: {reason}{tried}: {_remedy(error, reason)}")


def _kind(error: Exception) -> type[ChatModelError]:
    if isinstance(error, openai.APITimeoutError):
        return ChatModelError
    wrong_address = isinstance(error, openai.APIConnectionError | openai.NotFoundError)
    return EndpointError if wrong_address else ChatModelError


def _remedy(error: Exception, reason: str) -> str:
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "raise TUMORCHAIN_LLM_TIMEOUT_S or ask less at once"
    if isinstance(error, openai.APIConnectionError):
        return "check that the server runs, and has started, and --llm-url is right"
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return "set TUMORCHAIN_LLM_API_KEY"
    if isinstance(error, openai.NotFoundError):
        return "check --llm-url and --llm-model"
    if isinstance(error, openai.RateLimitError):
        return "the server is busy: ask again later"
    if "context" in reason or "maximum model length" in reason:
        return "use --history latest or fewer rounds (--max-rounds)"
    if "hidden" in reason:
        return "the server runs another checkpoint than the evidence tokens are of: serve that one"
    if "prompt_embeds" in reason or "prompt-embeds" in reason:
        return "start vLLM with --enable-prompt-embeds, or pass --evidence images or text"
    return "look into the server's log"
