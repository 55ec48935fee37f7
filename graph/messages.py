"""Turns → LangChain messages: only here tensors and pictures are in memory, for the length of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.prompts import Part, PicturePart, TextPart, TokensPart, Turn


async def to_messages(turns: Sequence[Turn], tools: CTTools) -> list[BaseMessage]:
    """The chat in the one message format of all backends: parts of text, prompt_embeds, image_url."""
    return [await _message(turn, tools) for turn in turns]


async def _message(turn: Turn, tools: CTTools) -> BaseMessage:
    if turn.role == "user":
        return HumanMessage(content=[await _content(part, tools) for part in turn.parts])
    text = "".join(part.text for part in turn.parts if isinstance(part, TextPart))
    return SystemMessage(content=text) if turn.role == "system" else AIMessage(content=text)


async def _content(part: Part, tools: CTTools) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case TokensPart(uri, _, count):
            return {"type": "prompt_embeds", "data": await tools.tokens(uri, count)}
        case PicturePart(uri, _):
            return {"type": "image_url", "image_url": {"url": await tools.picture(uri)}}
