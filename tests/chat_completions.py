"""Answers of OpenAI's chat completions, as the servers of tests send them."""

from __future__ import annotations

import json
from typing import Any


def completion(model: str, text: str, usage: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": model}
    return {**body, "choices": [choice], "usage": usage}


def said(text: str) -> list[dict[str, Any]]:
    """Choices of an event that goes on with the answer."""
    return [{"index": 0, "delta": {"role": "assistant", "content": text}}]


def over(finish: str = "stop") -> list[dict[str, Any]]:
    """Choices of the event that ends it."""
    return [{"index": 0, "delta": {}, "finish_reason": finish}]


def event(model: str, choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One event of a stream."""
    body = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": choices}
    return f"data: {json.dumps(body | more)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
