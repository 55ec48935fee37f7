"""Questions about one scan, at once over vLLM and one by one in process: ``python benchmarks/serving_concurrency.py``.

Whole answers through the graph and the MCP server, whose evidence is on disk already, so that the LLM's work and the
agent's own is what is timed. The same questions in each way; the two ways take turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import anyio
import numpy as np
from langchain_core.language_models import BaseChatModel
from mcp import Client
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


async def measure(url: str, folder: Path, scan: Scan, texts: Sequence[str]) -> dict[str, float]:
    """Way → seconds for all questions."""
    settings = client(url, folder / "cache")
    served = chat_model_from(settings)
    alone = chat_model_from(settings.model_copy(update={"llm_url": None}))
    found: dict[str, float] = {}
    with closing(Workbench(settings)) as bench:
        async with connect_in_memory(build_server(bench)) as server:
            await all_at_once(server, served, scan, texts, 4)
            found["in process"] = await all_at_once(server, alone, scan, texts, 1)
            for at_once in AT_ONCE:
                found[str(at_once)] = await all_at_once(server, served, scan, texts, at_once)
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
    seconds = {way: float(np.median([run[way] for run in runs])) for way in runs[0]}
    base = seconds["in process"]
    rows = [
        [f"vLLM, {way} at once" if way.isdigit() else f"{way}, one after another",
         f"{taken:.1f}", f"{len(texts) / taken:.2f}", f"{base / taken:.2f}×"]
        for way, taken in seconds.items()
    ]  # fmt: skip
    gain = base / seconds[str(AT_ONCE[-1])]
    text = table((f"{len(texts)} questions", "seconds", "answers a second", "against in process"), rows)
    result = {"questions": len(texts), "seconds": seconds, "gain": gain, "wanted": WANTED}
    return finish(result, text, gain >= WANTED, f"{WANTED:.0f}× with {AT_ONCE[-1]} at once", args.json)


if __name__ == "__main__":
    raise SystemExit(main())
