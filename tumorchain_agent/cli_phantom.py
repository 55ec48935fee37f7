"""``tumorchain-agent phantom``: phantom CTs with label maps, lesion masks, truth and reports."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tumorchain_agent.cli_numbers import whole

PREVIEWED = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that gets one folder a patient")
    parser.add_argument("--n", metavar="N", type=whole(0), default=1, help="patients (default: 1)")
    parser.add_argument(
        "--seed", metavar="S", type=whole(0), default=0, help="seed of the first patient (default: 0)"
    )
    parser.add_argument(
        "--resolution",
        choices=("full", "nano"),
        default="full",
        help="full is 1.5 x 1.5 x 5 mm; nano is 128 x 128 x 32 voxels, several times faster (default: full)",
    )
    parser.add_argument(
        "--arrays",
        action="store_true",
        help="write one .npz a patient, for training segmentation, in place of NIfTI",
    )
    parser.add_argument(
        "--preview",
        metavar="FILE.png",
        type=Path,
        help=f"also picture the first {PREVIEWED} patients: a slice through the lesion, organs outlined, the truth",
    )


def run(args: argparse.Namespace) -> int:
    """Write the cohort; patients that are there already are kept."""
    from tumorchain_agent.errors import InputError, OutputError
    from tumorchain_agent.records import DISCLAIMER

    if args.preview and (args.preview.suffix.lower() != ".png" or not args.n):
        culprit = "--n 0" if not args.n else f"--preview {args.preview}"
        raise InputError(
            f"{culprit} gives no picture; ask for one patient or more and a file that ends in .png"
        )
    try:
        written, seconds = _write(args)
    except OSError as error:
        raise OutputError(f"{args.out} can't be written ({error.strerror}); name another folder") from error
    rate = f" ({written} new, {written / seconds:.2f} a second)" if written else ""
    print(f"{args.n} phantoms in {args.out}{rate}. Synthetic, no real patients. {DISCLAIMER}")
    if args.preview:
        _preview(args)
    return 0


def _write(args: argparse.Namespace) -> tuple[int, float]:
    """How many patients were new, and how long they took."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tumorchain_agent.training.phantom.export import SPACING, unwritten, write_cohort
    from tumorchain_agent.training.workers import cores

    spacing = SPACING if args.resolution == "full" else None
    new = unwritten(args.out, args.n, args.seed, arrays=args.arrays)
    start = time.monotonic()
    columns = (TextColumn("phantoms"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("phantoms", total=args.n)
        for _ in write_cohort(
            args.out, args.n, args.seed, spacing=spacing, arrays=args.arrays, workers=cores()
        ):
            bar.advance(task)
    return new, time.monotonic() - start


def _preview(args: argparse.Namespace) -> None:
    from tumorchain_agent.errors import OutputError
    from tumorchain_agent.training.phantom.patient import generate
    from tumorchain_agent.training.phantom.preview import save_preview
    from tumorchain_agent.training.phantom.volume import generate_nano

    make = generate if args.resolution == "full" else generate_nano
    cases = [make(seed) for seed in range(args.seed, args.seed + min(args.n, PREVIEWED))]
    try:
        save_preview(cases, args.preview)
    except OSError as error:
        raise OutputError(f"{args.preview} can't be written ({error.strerror}); name another file") from error
    print(f"The first {len(cases)} are pictured in {args.preview}.")
