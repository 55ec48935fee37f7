"""``tumorchain-agent evaluate``: measure a checkpoint on phantoms of unseen seeds, or on a benchmark of files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent import cli_evaluate_bench, cli_evaluate_suite
from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.errors import InputError

if TYPE_CHECKING:
    from tumorchain_agent.training.quick_evaluation import MasksFrom, QuickResult, Verdict

PATIENTS = 100
"""Of --quick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--quick",
        action="store_true",
        help="tumor presence and organ, by tumor size, through the whole agent",
    )
    what.add_argument(
        "--suite",
        nargs="+",
        metavar=("NAME", "PATH"),
        help="phantom: the paper's 12 subtasks, ablations, baselines, and whether answers rest on the image; "
        "or deeptumorvqa DIR, m3d-vqa FILE, 3d-rad FILE, tumorcot FILE: a benchmark of yours; or chains FILE: "
        "TumorChain-Eval of reasoning",
    )
    what.add_argument(
        "--segmentation",
        nargs=2,
        metavar=("SCAN", "LABELMAP"),
        help="Dice of the installed segmentation weights on a scan, against a label map of yours",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=whole(1),
        help="seed of the first phantom (default: 5000000; --suite: 9000000)",
    )
    parser.add_argument(
        "--patients", metavar="N", type=whole(1), help="phantoms (default: 100; --suite: 260)"
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        action="append",
        help="TumorChain checkpoint (default: nano); --suite compares several",
    )
    parser.add_argument(
        "--masks",
        choices=("segmentation", "truth"),
        help="segment each phantom, or give its true label map (default: segmentation; --suite: truth)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    cli_evaluate_suite.add_arguments(parser)
    cli_evaluate_bench.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate with a progress bar on stderr; the table or JSON goes to stdout."""
    import anyio

    if args.suite and args.suite[0] in cli_evaluate_bench.SUITES:
        return cli_evaluate_bench.run(args)
    cli_evaluate_bench.refuse(args)
    if args.suite:
        if args.suite != ["phantom"]:
            known = ", ".join(("phantom", *cli_evaluate_bench.SUITES))
            raise InputError(f"--suite {' '.join(args.suite)}: there is no such suite; name one of {known}")
        return cli_evaluate_suite.run(args)
    cli_evaluate_suite.refuse(args)
    if len(args.model or ()) > 1:
        raise InputError("--model is given more than once: only --suite compares several")
    if args.segmentation:
        return _segmentation(args)
    from tumorchain_agent.training.quick_evaluation import as_markdown

    result: QuickResult = anyio.run(_evaluate, args)
    print(result.model_dump_json(indent=2) if args.json else as_markdown(result))
    return 0


def _segmentation(args: argparse.Namespace) -> int:
    from rich.console import Console

    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.training.segmentation_evaluation import as_markdown, evaluate_segmentation

    scan, reference = args.segmentation
    with Console(file=sys.stderr).status("segmenting") as status:
        score = evaluate_segmentation(
            load_settings(), scan, reference, progress=lambda phase, _: status.update(phase)
        )
    print(score.model_dump_json(indent=2) if args.json else as_markdown(score))
    return 0


async def _evaluate(args: argparse.Namespace) -> QuickResult:
    from rich.console import Console
    from rich.progress import Progress

    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.training.quick_evaluation import evaluate_quick
    from tumorchain_agent.training.seeds import QUICK_SEED

    settings = load_settings(model=args.model[0] if args.model else None)
    patients = args.patients or PATIENTS
    with Progress(console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("phantoms", total=patients)

        def advance(_index: int, _verdict: Verdict) -> None:
            bar.advance(task)

        masks: MasksFrom = args.masks or "segmentation"
        return await evaluate_quick(settings, patients, args.seed or QUICK_SEED, masks, advance)
