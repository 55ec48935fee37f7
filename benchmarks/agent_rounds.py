"""The agent's own time per round, and what segmentation adds to an answer: a scripted chat model, our real server.

Own time is everything but the LLM, the encoder and the segmentation: graph, protocol, evidence from the cache, prompts,
checkpoints on disk. A second question on the same scan is what is measured, as its tokens and masks are there.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
from bench import Row, Table, main
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.graph.fakes import FakeCT, ScriptedModel
from tumorchain_agent.graph.client import CTTools, connect
from tumorchain_agent.graph.run import ask
from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.phantom.export import write_cohort

ORGANS = ("liver", "spleen", "pancreas", "stomach", "colon", "aorta")
QUESTIONS = 40
TALK_S = 0.4
"""How long the slow LLM of the second table takes for a round."""


def replies(rounds: int) -> list[str]:
    """Each names one organ that is new, the last none."""
    return [f"Let us look at the {organ}." for organ in ORGANS[: rounds - 1]] + ["Impression: no tumor."]


class Slow(ScriptedModel):
    """Takes its time, as an LLM on another machine would, without this machine's processor."""

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        await asyncio.sleep(TALK_S)
        for chunk in super()._stream(messages):
            yield ChatGenerationChunk(message=AIMessageChunk(**chunk.message.model_dump(exclude={"type"})))


async def rounds_alone(folder: Path, rounds: int, questions: int) -> list[float]:
    """Own milliseconds a round, one figure a question."""
    (patient,) = [path.parent for path in folder.glob("cohort/*/ct.nii.gz")]
    found = []
    with Workbench(Settings(cache_dir=folder / "cache")) as bench:
        checkpoint = bench.served.checkpoint_id
        async with connect_in_memory(build_server(bench)) as client:
            for number in range(questions + 2):
                model = ScriptedModel(replies=replies(rounds), checkpoint_id=checkpoint)
                began = time.perf_counter()
                answer = await ask(
                    CTTools(client), model, str(patient / "ct.nii.gz"), f"Is there a tumor? ({number})",
                    masks=str(patient / "labels.nii.gz"), checkpoint_db=folder / "threads.sqlite", fresh=True,
                )  # fmt: skip
                took = time.perf_counter() - began
                spent = sum(answer.timings_s.get(phase, 0.0) for phase in ("encode", "segment"))
                assert len(answer.rounds) == rounds
                if number >= 2:
                    found.append(1000 * (took - spent) / rounds)
    return found


async def segmentation_beside(seconds: float) -> float:
    """Seconds of a two-round answer whose segmentation takes so long; 0 is none at all."""

    async def hook(tool: str, organ: str) -> None:
        if tool == "segment_organs" and seconds:
            await asyncio.sleep(seconds)

    model = Slow(replies=["Look at the liver.", "Impression: no tumor."])
    async with connect(FakeCT(hook=hook).server()) as client:
        began = time.perf_counter()
        await ask(CTTools(client), model, "ct.nii.gz", "Is there a tumor?", checkpoint_db=None)
        return time.perf_counter() - began


def tables() -> Iterator[Table]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        list(write_cohort(folder / "cohort", 1, 0, spacing=None, workers=1))
        own = sorted(anyio.run(rounds_alone, folder, 4, QUESTIONS))
    p50, p99 = statistics.median(own), own[min(len(own) - 1, round(0.99 * len(own)))]
    against = f"{QUESTIONS} later questions of 4 rounds, scripted LLM"
    rows = (
        Row("own time a round, p50", against, f"{p50:.1f} ms", "≤ 15 ms", p50 <= 15),
        Row("own time a round, p99", against, f"{p99:.1f} ms", "≤ 50 ms", p99 <= 50),
    )
    yield Table("The agent's own time", rows)
    yield _added()


def _added() -> Table:
    length = 0.75 * TALK_S
    anyio.run(segmentation_beside, 0.0)
    extra = []
    for turn in range(9):
        order = (0.0, length) if turn % 2 == 0 else (length, 0.0)
        found = {seconds: anyio.run(segmentation_beside, seconds) for seconds in order}
        extra.append((found[length] - found[0.0]) / length)
    share = statistics.median(extra)
    text = f"{100 * share:.1f} % ({100 * min(extra):.1f}–{100 * max(extra):.1f}, {len(extra)} pairs)"
    row = Row(
        f"of a segmentation of {length:g} s, beside a round of {TALK_S:g} s",
        "none at all",
        text,
        "≤ 10 %",
        share <= 0.1,
    )
    return Table("Time that segmentation adds to an answer, when it is shorter than round 1", (row,))


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
