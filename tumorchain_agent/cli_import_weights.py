"""``tumorchain-agent import-weights``: published weights into a checkpoint folder to train from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tumorchain_agent.cli_numbers import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--llm", metavar="DIR", type=Path, required=True, help="folder of Qwen2.5-VL: safetensors and config"
    )
    parser.add_argument(
        "--vision",
        metavar="FILE",
        type=Path,
        required=True,
        help="M3D's pretrained_ViT.bin, or the weights of M3D-CLIP or M3D-LaMed (.bin, .safetensors)",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="new folder for the checkpoint"
    )
    parser.add_argument(
        "--seed", metavar="S", type=whole(0), default=0, help="of the new projector and Cls (default: 0)"
    )
    parser.add_argument(
        "--size", choices=("3b", "7b", "custom"), help="what the LLM must be (default: 3b or 7b)"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="when keys don't fit, list all of them and not the first ten"
    )


def run(args: argparse.Namespace) -> int:
    """Import with a progress bar on stderr; 0. Nothing is written when it fails or is interrupted."""
    from tumorchain_agent.errors import Cancelled, WeightsError

    try:
        print(_import(args))
    except WeightsError as error:
        if args.verbose:
            print("\n".join(error.details), file=sys.stderr)
        raise
    except KeyboardInterrupt as stop:
        raise Cancelled("import interrupted, nothing was written: run the same command again") from stop
    return 0


def _import(args: argparse.Namespace) -> str:
    """What was made, in a few lines."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from tumorchain_agent.model.import_weights import NOTE, import_weights
    from tumorchain_agent.records import DISCLAIMER

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("checking", total=None)

        def on_progress(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        made = import_weights(
            args.llm, args.vision, args.out, seed=args.seed, size=args.size, on_progress=on_progress
        )
    llm, vision = made.llm, made.vision
    return "\n".join(
        [
            f"checkpoint {made.info.checkpoint_id} in {args.out}",
            f"  LLM: Qwen2.5-VL {llm.size}, {len(llm.names)} tensors, {llm.dtype}; "
            f"{llm.visual} of its vision encoder left out",
            f"  encoder: M3D's ViT, {vision.tensors} tensors, {vision.dtype}; {vision.skipped} others left out",
            f"  {NOTE}",
            DISCLAIMER,
        ]
    )
