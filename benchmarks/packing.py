"""Training tokens per second, packed and unpacked, on the same questions: ``python benchmarks/packing.py``.

Three ways through the same forward and backward passes of eq. 8, with the encoder trained along, taking turns:

- ``packed``: what training does: a scan is encoded once for all its questions, its tokens stand once in a row
  without padding, questions don't see each other;
- ``one by one``: each question by itself, its scan encoded anew;
- ``padded``: as many questions at a time as in a packed row, padded to the longest, each scan encoded anew.

A token is a position of a conversation as inference would lay it out, so that shared positions count for each
question that rests on them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench import machine
from torch.nn import functional as F

from tumorchain_agent.model.template import IGNORED_LABEL
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.training.hco.batches import Prepared, joint_batches
from tumorchain_agent.training.hco.build import build_model, corpus
from tumorchain_agent.training.hco.config import TrainConfig
from tumorchain_agent.training.hco.joint import JointModel
from tumorchain_agent.training.hco.load_config import load_config
from tumorchain_agent.training.hco.rows import encode
from tumorchain_agent.training.hco.samples import of_phantom, turns
from tumorchain_agent.training.hco.scans import VolumeCache
from tumorchain_agent.training.hco.sources import PhantomSource
from tumorchain_agent.training.packing import packed_mode
from tumorchain_agent.training.phantom.volume import make_pool

WANTED = 3.0


def patients(config: TrainConfig, folder: Path, count: int) -> tuple[list[Prepared], JointModel]:
    """Phantoms with their encoded questions, and nano's model with random weights."""
    make_pool(folder / "pool", count, 0, 2)
    source = PhantomSource(folder / "pool", count, 0, VolumeCache(folder / "cache"))
    tokenizer = build_nano_tokenizer(corpus(source, config), vocabulary=config.model.vocabulary)
    prepared = []
    for number in range(count):
        scan = source.make(number)
        items = [
            of_phantom(scan, [0, number * 100 + k], None, f"{number}/{k}")
            for k in range(config.questions_per_scan)
        ]
        encoded = tuple(
            encode(item.name, turns(item, "cot", scan.coverage), scan.coverage, tokenizer) for item in items
        )
        prepared.append(Prepared(scan, dict(scan.abnormal), encoded, None, tuple(i.name for i in items)))
    return prepared, build_model(config, tokenizer)


def packed(model: JointModel, config: TrainConfig, prepared: Sequence[Prepared]) -> None:
    with packed_mode(model.llm):
        for batch, _ in joint_batches(prepared, config.row_tokens, text=True, dense_targets=False):
            sums = model(batch)
            sums.loss(1.0, sums.text_tokens, sums.organs).backward()


def _alone(prepared: Sequence[Prepared]) -> list[Prepared]:
    """Each question with a scan of its own."""
    return [replace(p, encoded=(e,), names=(e.name,)) for p in prepared for e in p.encoded]


def one_by_one(model: JointModel, config: TrainConfig, prepared: Sequence[Prepared]) -> None:
    for each in _alone(prepared):
        padded_batch(model, config, [each])


def padded(model: JointModel, config: TrainConfig, prepared: Sequence[Prepared]) -> None:
    padded_batch(model, config, _alone(prepared))


def padded_batch(model: JointModel, config: TrainConfig, questions: Sequence[Prepared]) -> None:
    """The usual way: [questions, longest] positions with an attention mask."""
    batches = [joint_batches([q], config.row_tokens, text=True, dense_targets=False)[0][0] for q in questions]
    rows = [batch.row for batch in batches if batch.row is not None]
    volumes = torch.cat([b.volumes for b in batches if b.volumes is not None])
    with torch.autocast("cpu", model.autocast, enabled=model.autocast is not None):
        tokens = model.tower.encode(volumes)
        embeds = [model.embeds(t, row) for row, t in zip(rows, tokens, strict=True)]
        longest = max(len(e) for e in embeds)
        mask = torch.stack([(torch.arange(longest) < len(e)).long() for e in embeds])
        filled = torch.stack([F.pad(e, (0, 0, 0, longest - len(e))) for e in embeds])
        logits = model.llm(inputs_embeds=filled, attention_mask=mask).logits[:, :-1]
        each = [
            model.cls_loss(t, b.organs) / len(b.organs.labels) for t, b in zip(tokens, batches, strict=True)
        ]
    wanted = torch.stack(
        [F.pad(row.labels, (0, longest - len(row.labels)), value=IGNORED_LABEL) for row in rows]
    )[:, 1:]
    text = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED_LABEL)
    (text + torch.stack(each).mean()).backward()  # type: ignore[no-untyped-call]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--questions", type=int, default=4, help="of a scan")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    config = load_config(
        "nano", [f"batch={args.scans * args.questions}", f"questions_per_scan={args.questions}"]
    )
    ways: dict[str, Callable[[JointModel, TrainConfig, Sequence[Prepared]], None]] = {
        "packed": packed, "one by one": one_by_one, "padded": padded,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        prepared, model = patients(config, Path(name), args.scans)
    count = sum(len(e.ids) for p in prepared for e in p.encoded)
    print(
        f"{machine()}, torch {torch.__version__}; {args.scans} scans, {args.questions} questions each, {count} tokens"
    )
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(args.repeats + 1):
        for way, run in ways.items():
            model.zero_grad()
            start = time.monotonic()
            run(model, config, prepared)
            if turn:
                seconds[way].append(time.monotonic() - start)
    medians = {way: float(np.median(found)) for way, found in seconds.items()}
    for way, median in medians.items():
        spread = f"{min(seconds[way]):.2f}–{max(seconds[way]):.2f} s"
        gain = median / medians["packed"]
        print(
            f"{way}: {count / median:.0f} tokens/s (median {median:.2f} s, {spread}); packed is {gain:.2f}x"
        )
    ratio = medians["one by one"] / medians["packed"]
    print(
        f"wanted: {WANTED:.0f}x the unpacked, re-encoding loop; {'reached' if ratio >= WANTED else 'missed'}"
    )
    return 0 if ratio >= WANTED else 1


if __name__ == "__main__":
    raise SystemExit(main())
