"""How much of a prompt that was seen before comes from vLLM's KV cache: ``python benchmarks/serving_cache.py``.

Several questions about each of several phantoms, round after round, prompts as the graph lays them out. A position
can be reused when it and all before it stood in an earlier prompt, in whole blocks of the cache. What the model wrote
itself becomes part of the next prompt as well; vLLM 0.32 hashes it otherwise than as part of a prompt with embeddings
and computes it again, so it is counted in a line of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from serving_parts import client, finish, parser, table, vllm

from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.model.checkpoint import NANO_DIR, load_tokenizer
from tumorchain_agent.model.template import EmbedsPiece, Message, Piece, encode_embeds, render
from tumorchain_agent.model.vllm_server import CPU_BLOCK_TOKENS, GPU_BLOCK_TOKENS, find_build
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.phantom.text import ask
from tumorchain_agent.training.suite.patients import Making, views_of
from tumorchain_agent.training.suite.talks import EncodedScan, Talk
from tumorchain_agent.training.tasks import SUBTASKS

WANTED = 0.95
MAX_ROUNDS = 4
Row = int | tuple[int, int]
"""A token id, or the address of an embedding's tensor and its row."""


@dataclass
class Counted:
    """Positions of prompts that could be reused, and that were."""

    prompts: int = 0
    positions: int = 0
    reusable: int = 0
    with_replies: int = 0
    cached: int = 0

    def share(self) -> float:
        return self.cached / self.reusable if self.reusable else float("nan")


@dataclass
class Cache:
    """All that the server has seen."""

    block: int
    prompts: list[list[Row]] = field(default_factory=list)
    replied: list[list[Row]] = field(default_factory=list)

    def add(self, rows: list[Row], reply: list[Row], cached: int, counted: Counted) -> None:
        counted.prompts += 1
        counted.positions += len(rows)
        counted.cached += cached
        counted.reusable += self._longest(rows, self.prompts)
        counted.with_replies += self._longest(rows, [*self.prompts, *self.replied])
        self.prompts.append(rows)
        self.replied.append([*rows, *reply])

    def _longest(self, rows: list[Row], known: Sequence[list[Row]]) -> int:
        common = max((_common(rows, each) for each in known), default=0)
        return min(common, len(rows) - 1) // self.block * self.block


def _common(a: Sequence[Row], b: Sequence[Row]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def rows_of(pieces: Sequence[Piece]) -> list[Row]:
    rows: list[Row] = []
    for piece in pieces:
        if isinstance(piece, EmbedsPiece):
            rows.extend((piece.embeds.data_ptr(), i) for i in range(len(piece)))
        else:
            rows.extend(piece.ids)
    return rows


def as_langchain(message: Message) -> BaseMessage:
    if message.role == "assistant":
        return AIMessage("".join(str(part) for part in message.parts))
    return HumanMessage(
        [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "prompt_embeds", "data": encode_embeds(part)}
            for part in message.parts
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--scans", type=int, default=4)
    options.add_argument("--questions", type=int, default=4, help="of a scan")
    args = options.parse_args(argv)
    block = CPU_BLOCK_TOKENS if find_build() == "cpu" else GPU_BLOCK_TOKENS
    first, later, questions = Counted(), Counted(), Counted()
    tokenizer, tower = load_tokenizer(NANO_DIR), ServedCheckpoint(Settings())
    with tempfile.TemporaryDirectory() as name, vllm(Path(name), args.llm_url) as url:
        model, cache = chat_model_from(client(url, Path(name) / "cache")), Cache(block)
        for seed in range(args.seed, args.seed + args.scans):
            (view,) = views_of(seed, Making(tower.preprocessing, spacing=(3.0, 3.0, 6.0)))
            scan = EncodedScan(view, tower)
            for number, text in enumerate(_texts(seed, args.questions)):
                talk = Talk(scan, text, max_rounds=MAX_ROUNDS)
                while not talk.over:
                    messages = talk.messages("append")
                    rows = rows_of(render(messages, tokenizer, add_generation_prompt=True))
                    reply = model.invoke([as_langchain(message) for message in messages])
                    said = tokenizer.encode(reply.text, add_special_tokens=False)
                    usage = reply.usage_metadata
                    cached = usage["input_token_details"]["cache_read"] if usage else 0
                    counted = later if talk.rounds else questions if number else first
                    cache.add(rows, said, cached, counted)
                    talk.said(reply.text)
    named = {
        "first round of a scan": first,
        "first round of a later question": questions,
        "rounds ≥ 2": later,
    }
    lines = [
        [name, str(c.prompts), str(c.positions), str(c.cached), str(c.reusable), _share(c.share()),
         _share(c.cached / c.with_replies if c.with_replies else float("nan"))]
        for name, c in named.items()
    ]  # fmt: skip
    head = ("prompts", "n", "positions", "from the cache", "reusable", "share", "share if replies counted")
    reached = min(questions.share(), later.share()) >= WANTED
    result = {"block_tokens": block, "wanted": WANTED, "rows": {k: vars(c) for k, c in named.items()}}
    wanted = f"a share of {WANTED} of what earlier prompts held, in blocks of {block}"
    return finish(result, table(head, lines), reached, wanted, args.json)


def _share(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"


def _texts(seed: int, count: int) -> list[str]:
    import numpy as np

    rng = np.random.default_rng(seed)
    names = [name for name in SUBTASKS if name != "tumor_position"]
    return [ask(rng, names[i % len(names)], None) for i in range(count)]


if __name__ == "__main__":
    raise SystemExit(main())
