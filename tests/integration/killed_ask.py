"""Asks once, in a process of its own, and kills itself with SIGKILL where it is told to.

The point is a tool with its organ ("extract_roi_tokens spleen"), "round 2" (the call), "word of round 2" (in
the middle of it), "segment after round 1", "conclude", or "" for no kill.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import anyio
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk

from tests.graph.fakes import FakeCT, ScriptedModel
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.run import ask

ANSWER = "answer.json"
REPLIES = ["See the liver and the spleen.", "See the esophagus.", "Liver: carcinoma, T2 N0 M0."]


def die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise SystemExit("still alive")


class DyingModel(ScriptedModel):
    """Answers by how many rounds it is shown, so that a new process goes on where an old one was."""

    folder: Path
    point: str

    def reply_to(self, messages: list[BaseMessage]) -> str:
        number = 1 + sum(isinstance(message, AIMessage) for message in messages)
        if self.point == f"round {number}":
            die()
        with (self.folder / "work.log").open("a") as log:
            log.write(f"round {number}\n")
        return self.replies[number - 1]

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        number = 1 + sum(isinstance(message, AIMessage) for message in messages)
        for index, chunk in enumerate(super()._stream(messages, *args, **kwargs)):
            if index == 1 and self.point == f"word of round {number}":
                die()
            yield chunk


def round_1_is_on_disk(database: Path) -> bool:
    """Whether the branch of round 1 has left its result with the checkpoint."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "select count(*) from writes where checkpoint_ns = '' and channel = 'rounds' and idx >= 0"
        )
        return bool(rows.fetchone()[0] > 1)


async def main(folder: Path, point: str) -> None:
    database = folder / "threads.sqlite"

    async def hook(tool: str, organ: str) -> None:
        if point == "segment after round 1" and tool == "segment_organs":
            while not round_1_is_on_disk(database):
                await anyio.sleep(0.02)
            die()
        if point == f"{tool} {organ}".strip():
            die()

    ct = FakeCT(disk=folder, hook=hook)
    model = DyingModel(replies=REPLIES, folder=folder, point=point)
    at_the_end = mock.patch("tumorchain_agent.graph.nodes.build_answer", side_effect=die)
    async with connect(ct.server()) as client:
        with at_the_end if point == "conclude" else nullcontext():
            answer = await ask(client, model, "ct.nii.gz", "TNM?", checkpoint_db=database)
    (folder / ANSWER).write_text(answer.model_dump_json())


def run(folder: Path, point: str) -> None:
    """What the process does."""
    anyio.run(main, folder, point)
