"""Questions about one scan, at once over vLLM and one by one in process: ``python benchmarks/serving_concurrency.py``.

Whole answers through the graph and the MCP server, whose evidence is on disk already, so that the LLM's work and the
agent's own is what is timed; then the same LLM calls by themselves, since on few cores the agent's own work
in one process bounds the whole.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from bench import exponent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from mcp import Client
from pydantic import Field
from serving_parts import Scan, client, finish, parser, scans, table, vllm

from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.run import ask
from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.training.phantom.text import ask as worded
from tumorchain_agent.training.tasks import SUBTASKS

WANTED = 8.0
AT_ONCE = (1, 2, 4, 8, 16, 32)
ANSWERS, CALLS, ALONE = "whole answers", "the LLM calls alone", "in process"
Seconds = dict[str, dict[str, float]]


def questions(count: int) -> list[str]:
    """Different texts."""
    rng, names = np.random.default_rng(0), [name for name in SUBTASKS if name != "tumor_position"]
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(worded(rng, str(rng.choice(names)), None))
        if len(found) < count:
            found.setdefault(f"{worded(rng, str(rng.choice(names)), None)} ({len(found)})")
    return list(found)[:count]


async def all_at_once(
    server: Client, model: BaseChatModel, scan: Scan, texts: Sequence[str], at_once: int
) -> float:
    """Seconds for all answers, ``at_once`` under way at a time."""
    limit, tools = anyio.CapacityLimiter(at_once), CTTools(server)

    async def one(text: str) -> None:
        async with limit:
            await ask(tools, model, scan.scan, text, masks=scan.masks, checkpoint_db=None)

    started = time.monotonic()
    async with anyio.create_task_group() as group:
        for text in texts:
            group.start_soon(one, text)
    return time.monotonic() - started


class Recorder(BaseChatModel):
    """Keeps what an LLM is sent."""

    inner: Any
    sent: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "recorder"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise TypeError("only streams are recorded")

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.sent.append(messages)
        async for chunk in self.inner._astream(messages, *args, **kwargs):
            yield chunk


async def replay(model: BaseChatModel, sent: Sequence[list[BaseMessage]], at_once: int) -> float:
    """Seconds for all LLM calls, ``at_once`` under way at a time."""
    limit = anyio.CapacityLimiter(at_once)

    async def one(messages: list[BaseMessage]) -> None:
        async with limit, aclosing(model.astream(messages)) as chunks:  # type: ignore[type-var]
            async for _ in chunks:
                continue

    started = time.monotonic()
    async with anyio.create_task_group() as group:
        for messages in sent:
            group.start_soon(one, messages)
    return time.monotonic() - started


async def measure(url: str, folder: Path, scan: Scan, texts: Sequence[str]) -> Seconds:
    """What is timed → way → seconds for all questions."""
    settings = client(url, folder / "cache")
    served = chat_model_from(settings)
    alone = chat_model_from(settings.model_copy(update={"llm_url": None}))
    recorder = Recorder(inner=served)
    found: Seconds = {ANSWERS: {}, CALLS: {}}
    with closing(Workbench(settings)) as bench:
        async with connect_in_memory(build_server(bench)) as server:
            await all_at_once(server, recorder, scan, texts, 4)
            found[ANSWERS][ALONE] = await all_at_once(server, alone, scan, texts, 1)
            found[CALLS][ALONE] = await replay(alone, recorder.sent, 1)
            for at_once in AT_ONCE:
                found[ANSWERS][str(at_once)] = await all_at_once(server, served, scan, texts, at_once)
                found[CALLS][str(at_once)] = await replay(served, recorder.sent, at_once)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--questions", type=int, default=32)
    options.add_argument("--repeats", type=int, default=1)
    args = options.parse_args(argv)
    texts = questions(args.questions)
    with tempfile.TemporaryDirectory() as name, vllm(Path(name), args.llm_url) as url:
        (scan,) = scans(Path(name) / "scans", 1, args.seed)
        runs = [anyio.run(measure, url, Path(name) / f"run{i}", scan, texts) for i in range(args.repeats)]
    seconds = {
        what: {way: float(np.median([run[what][way] for run in runs])) for way in runs[0][what]}
        for what in (ANSWERS, CALLS)
    }
    gains = {what: ways[ALONE] / ways[str(AT_ONCE[-1])] for what, ways in seconds.items()}
    text = "\n\n".join(_table(what, ways, len(texts)) for what, ways in seconds.items())
    growth = {what: _growth(ways, len(texts)) for what, ways in seconds.items()}
    text += "\n\nseconds a client waits ~ clients^k: " + ", ".join(
        f"{k:.2f} ({what})" for what, k in growth.items()
    )
    result = {
        "questions": len(texts),
        "seconds": seconds,
        "gain": gains,
        "exponent": growth,
        "wanted": WANTED,
    }
    wanted = f"{WANTED:.0f}× for {ANSWERS} with {AT_ONCE[-1]} at once"
    return finish(result, text, gains[ANSWERS] >= WANTED, wanted, args.json)


def _growth(ways: Mapping[str, float], count: int) -> float:
    """k of a client's seconds for one question ~ clientsᵏ; 0 would be a server that nobody notices the others on."""
    return exponent(AT_ONCE, [ways[str(clients)] * clients / count for clients in AT_ONCE])


def _table(what: str, ways: Mapping[str, float], count: int) -> str:
    rows = [
        [
            f"vLLM, {way} at once" if way.isdigit() else f"{way}, one after another",
            f"{taken:.1f}",
            f"{count / taken:.2f}",
            f"{ways[ALONE] / taken:.2f}×",
        ]
        for way, taken in ways.items()
    ]
    return table((f"{count} questions: {what}", "seconds", "a second", f"against {ALONE}"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
