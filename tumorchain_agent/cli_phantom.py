"""``tumorchain-agent phantom``: phantom CTs with label maps, lesion masks, truth and reports."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tumorchain_agent.cli_numbers import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that gets one folder a patient")
    parser.add_argument("--n", metavar="N", type=whole(0), default=1, help="patients (default: 1)")
    parser.add_argument(
        "--seed", metavar="S", type=whole(0), default=0, help="seed of the first patient (default: 0)"
    )
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="write one .npz a patient, for training segmentation, in place of NIfTI",
    )


def run(args: argparse.Namespace) -> int:
    """Write the cohort; patients that are there already are kept."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tumorchain_agent.errors import OutputError
    from tumorchain_agent.records import DISCLAIMER
    from tumorchain_agent.training.phantom.export import write_cohort

    columns = (TextColumn("phantoms"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(file=sys.stderr)) as bar:
            task = bar.add_task("phantoms", total=args.n)
            for _ in write_cohort(args.out, args.n, args.seed, arrays=args.arrays):
                bar.advance(task)
    except OSError as error:
        raise OutputError(f"{args.out} can't be written ({error.strerror}); name another folder") from error
    print(f"{args.n} phantoms in {args.out}. Synthetic, no real patients. {DISCLAIMER}")
    return 0
