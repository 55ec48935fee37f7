"""``tumorchain-agent train``: train a TumorChain model by a YAML configuration, or plan its memory."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.cli_numbers import whole

if TYPE_CHECKING:
    from tumorchain_agent.training.hco.config import TrainConfig
    from tumorchain_agent.training.hco.sources import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or nano, 3b, 7b")
    parser.add_argument(
        "--set", metavar="A.B=C", action="append", default=[], help="change a key, e.g. stages.cot.steps=100"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of this training (default: runs/ and the CONFIG's name)",
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only fill the cache of preprocessed volumes, then stop"
    )
    parser.add_argument(
        "--plan", action="store_true", help="only print the memory that it takes for each device, then stop"
    )
    parser.add_argument(
        "--devices", metavar="N", type=whole(1), default=32, help="devices of the --plan (default: 32)"
    )


def run(args: argparse.Namespace) -> int:
    """Train, resume, prepare or plan. The table of a plan goes to stdout, everything else to stderr."""
    from tumorchain_agent.training.hco.load_config import load_config

    config = load_config(args.config, args.set)
    if args.plan:
        from tumorchain_agent.training.hco.memory import plan_text

        print(plan_text(config, args.devices))
        return 0
    out = args.out or Path("runs") / Path(args.config).stem
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    room = logging.getLogger("tumorchain_agent.training")
    room.addHandler(handler)
    room.setLevel(logging.INFO)
    try:
        return _train(config, out, prepare=args.prepare)
    finally:
        room.removeHandler(handler)


def _train(config: TrainConfig, out: Path, *, prepare: bool) -> int:
    from tumorchain_agent.training.hco.build import build, prepared_sources
    from tumorchain_agent.training.hco.trainer import train

    if prepare:
        for name, source in zip(("training", "held-out"), prepared_sources(config, out), strict=True):
            _fill(name, source, max(config.data.workers, 1))
        return 0
    setup = build(config, out)
    place = train(setup)
    if setup.engine.main:
        print(
            f"trained {place.total_steps} steps on {place.samples} samples: {out / 'best'}", file=sys.stderr
        )
    return 0


def _fill(name: str, source: Source, workers: int) -> None:
    """Preprocess all scans with a progress bar; those that can't be used are named."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tumorchain_agent.training.hco.sources import fill_cache

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{name} volumes", total=len(source))
        bad = fill_cache(source, workers, lambda count: bar.advance(task, count))
    for wrong in bad.values():
        print(f"bad: {wrong.message}", file=sys.stderr)
