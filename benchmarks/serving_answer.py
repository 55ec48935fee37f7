"""Seconds to an answer of four rounds over vLLM, and what segmentation adds: ``python benchmarks/serving_answer.py``.

Ways that take turns, each on a new scan whose results nobody has yet:

- ``ours``: prefix cache, segmentation beside encoding and round 1, networks loaded by an earlier scan;
- ``plain``: the same rounds without prefix cache, segmentation after round 1, networks loaded anew.

Then, of scans that are open, with a round 1 that lasts longer than segmentation: it runs ``beside`` that round,
``after`` it, or has run before and is ``there``. How many cores are busy tells whether there is room beside anything.
nano stops after two rounds or so; here each round is made to name one more organ.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
from bench import cores
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from serving_parts import Scan, client, finish, parser, scans, table, vllm

from tumorchain_agent.graph.client import CTTools, OnProgress, Segmented
from tumorchain_agent.graph.events import Event, RoundFinished
from tumorchain_agent.graph.run import ask
from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.records import Answer
from tumorchain_agent.settings import Settings

WANTED, WANTED_ADDED = 3.0, 0.10
ROUNDS = 4
PROBE_TOKENS, MOST_TOKENS, LONGER = 100, 4000, 1.5
WARM_UP = 2
ORGANS = ("spleen", "gallbladder", "aorta")
"""That nano names by itself in none of its rounds."""
QUESTION = "Is there a tumor, and what is the TNM stage?"


class Led(BaseChatModel):
    """A chat model whose rounds each name one more organ; ``salted`` takes the prefix cache away from it."""

    inner: Any
    salted: bool = False
    first_tokens: int = 0
    """Round 1 is made this long where it is not 0."""

    @property
    def _llm_type(self) -> str:
        return "led"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise TypeError("only streams are measured")

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        number = sum(isinstance(message, AIMessage) for message in messages)
        body: dict[str, Any] = {"cache_salt": uuid.uuid4().hex} if self.salted else {}
        if number == 0 and self.first_tokens:
            body |= {"ignore_eos": True}
            kwargs |= {"max_completion_tokens": self.first_tokens}
        async for chunk in self.inner._astream(messages, *args, extra_body=body, **kwargs):
            yield chunk
        if number < len(ORGANS):
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=f" The {ORGANS[number]} needs a closer look.")
            )


class Serial(CTTools):
    """Segments when round 1 is over."""

    first_round: anyio.Event

    async def segment_organs(
        self,
        scan_id: str,
        masks: str | None = None,
        on_progress: OnProgress | None = None,
        organs: Sequence[str] | None = None,
    ) -> Segmented:
        await self.first_round.wait()
        return await super().segment_organs(scan_id, masks, on_progress, organs)


@dataclass(frozen=True)
class Timed:
    """An answer, how long it took, and how many of the machine's cores worked meanwhile."""

    seconds: float
    cores: float
    answer: Answer


def busy_seconds() -> float:
    """Seconds that the machine's cores have worked, whoever for."""
    spent = psutil.cpu_times()
    return float(spent.user + spent.nice + spent.system)


async def answer(
    bench: Workbench,
    model: Led,
    scan: Scan,
    *,
    serial: bool = False,
    rounds: int = ROUNDS,
    opened: bool = False,
    segmented: bool = False,
) -> Timed:
    """From the question to the answer, the scan being open or segmented before."""
    async with connect_in_memory(build_server(bench)) as server:
        tools = Serial(server) if serial else CTTools(server)
        over = anyio.Event()
        if isinstance(tools, Serial):
            tools.first_round = over
        if opened or segmented:
            info = await tools.open_scan(scan.scan)
            if segmented:
                await tools.segment_organs(info.scan_id)

        def on_event(event: Event) -> None:
            if isinstance(event, RoundFinished):
                over.set()

        started, worked = time.monotonic(), busy_seconds()
        found = await ask(
            tools, model, scan.scan, QUESTION, checkpoint_db=None, max_rounds=rounds, on_event=on_event
        )
        seconds = time.monotonic() - started
        return Timed(seconds, (busy_seconds() - worked) / seconds, found)


def compare(url: str, folder: Path, files: Sequence[Scan]) -> dict[str, list[float]]:
    """Way → seconds of each scan; the first scan only warms up."""
    settings = client(url, folder / "ours")
    model = chat_model_from(settings)
    found: dict[str, list[float]] = {"ours": [], "plain": [], "ours, later question": []}
    with closing(Workbench(settings)) as bench:
        for number, scan in enumerate(files):
            ours = anyio.run(partial(answer, bench, Led(inner=model), scan))
            again = anyio.run(partial(answer, bench, Led(inner=model), scan))
            cold = Settings(cache_dir=folder / f"plain{number}", llm_url=url)
            with closing(Workbench(cold)) as fresh:
                plain = anyio.run(partial(answer, fresh, Led(inner=model, salted=True), scan, serial=True))
            rounds = [len(timed.answer.rounds) for timed in (ours, plain)]
            if rounds != [ROUNDS, ROUNDS]:
                raise SystemExit(f"{rounds} rounds in place of {ROUNDS}")
            if number:
                for way, timed in zip(found, (ours, plain, again), strict=True):
                    found[way].append(timed.seconds)
    return found


def overlap(url: str, folder: Path, files: Sequence[Scan]) -> dict[str, list[float]]:
    """Way → seconds of each scan that is open but not yet encoded; how long segmentation takes alone; busy cores.

    Two scans warm up; by the second, round 1 is given as many tokens as make it half as long again as segmentation.
    """
    model = Led(inner=chat_model_from(client(url, folder / "model")), first_tokens=PROBE_TOKENS)
    found: dict[str, list[float]] = {
        name: [] for name in ("beside", "after", "there", "segmentation", "cores")
    }
    ways: dict[str, dict[str, bool]] = {"beside": {}, "after": {"serial": True}, "there": {"segmented": True}}
    with ExitStack() as stack:
        benches = {
            way: stack.enter_context(closing(Workbench(client(url, folder / f"overlap {way}"))))
            for way in ways
        }
        for number, scan in enumerate(files):
            for way, how in ways.items():
                timed = anyio.run(partial(answer, benches[way], model, scan, rounds=2, opened=True, **how))
                found[way].append(timed.seconds)
                if way == "after" and timed.answer.segmentation:
                    found["segmentation"].append(timed.answer.segmentation.seconds)
            found["cores"].append(timed.cores)
            if number < WARM_UP:
                longer = LONGER * found["segmentation"][-1] / timed.answer.rounds[0].seconds
                model.first_tokens = int(min(max(model.first_tokens * longer, PROBE_TOKENS), MOST_TOKENS))
    return {way: seconds[WARM_UP:] for way, seconds in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--scans", type=int, default=6, help="without those that warm up")
    args = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, vllm(Path(name), args.llm_url) as url:
        folder = Path(name)
        files = scans(folder / "scans", args.scans + WARM_UP, args.seed)
        ways = compare(url, folder, files[1:])
        beside = overlap(url, folder, files)
    seconds = {way: float(np.median(each)) for way, each in (ways | beside).items()}
    gain = seconds["plain"] / seconds["ours"]
    added = _added(beside)
    head = ("answer of four rounds", "seconds", "spread", "against plain")
    first = table(head, [_row(way, ways[way], seconds["plain"]) for way in ways])
    second = table(
        (
            f"segmentation ({seconds['segmentation']:.2f} s) and a round 1 that is longer",
            "seconds",
            "spread",
            "adds",
        ),
        [_added_row(way, beside, seconds) for way in ("beside", "after", "there")],
    )
    result = {"seconds": seconds, "runs": ways | beside, "gain": gain, "segmentation_adds": added}
    wanted = f"{WANTED:.0f}× plain, and beside round 1 segmentation adds {WANTED_ADDED:.0%} of its duration at most"
    text = (
        f"{first}\n\n{second}\n\n{gain:.2f}× plain; segmentation adds {added:.0%} of its duration; without it "
        f"{seconds['cores']:.2f} of {cores()} cores are busy"
    )
    return finish(result, text, gain >= WANTED and added <= WANTED_ADDED, wanted, args.json)


def _row(way: str, runs: Sequence[float], plain: float) -> list[str]:
    median = float(np.median(runs))
    return [way, f"{median:.2f}", f"{min(runs):.2f}–{max(runs):.2f}", f"{plain / median:.2f}×"]


def _added(runs: dict[str, list[float]]) -> float:
    """What segmentation beside round 1 adds, as a share of its own duration: median over scans."""
    pairs = zip(runs["beside"], runs["there"], runs["segmentation"], strict=True)
    return float(np.median([(beside - there) / segmentation for beside, there, segmentation in pairs]))


def _added_row(way: str, runs: dict[str, list[float]], seconds: dict[str, float]) -> list[str]:
    added = (seconds[way] - seconds["there"]) / seconds["segmentation"]
    return [way, f"{seconds[way]:.2f}", f"{min(runs[way]):.2f}–{max(runs[way]):.2f}", f"{added:.0%}"]


if __name__ == "__main__":
    raise SystemExit(main())
