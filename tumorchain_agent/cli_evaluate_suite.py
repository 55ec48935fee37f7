"""``tumorchain-agent evaluate --suite phantom``: the benchmark of the paper's 12 subtasks on held-out phantoms."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tumorchain_agent.training.suite.passes import Advance
    from tumorchain_agent.training.suite.plan import Plan

OWN = ("no_iir", "no_cot", "ablate", "table_only", "out")
"""Options that belong to --suite alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --suite")
    group.add_argument("--no-iir", action="store_true", help="answer from the whole scan alone, in one round")
    group.add_argument("--no-cot", action="store_true", help="answer without findings, impression, pathology")
    group.add_argument(
        "--ablate", action="store_true", help="ask in all four modes: with and without IIR and CoT"
    )
    group.add_argument(
        "--table-only",
        action="store_true",
        help="leave out counterfactual pairs, the ROI swap and the probe",
    )
    group.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="keep answers here, go on from them, and write result.json, table.md and table.html",
    )


def refuse(args: argparse.Namespace) -> None:
    """InputError for an option of --suite without it."""
    for name in OWN:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} belongs to --suite: add that, or leave it out")


def run(args: argparse.Namespace) -> int:
    """Evaluate with progress bars on stderr; the tables or JSON go to stdout."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.training.suite.suite import Suite
    from tumorchain_agent.training.suite.table import as_markdown

    suite = Suite(load_settings(), _plan(args), args.out)
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(file=sys.stderr)) as bars:
        result = suite.run(lambda title: _advance(bars, title))
    print(result.model_dump_json(indent=2) if args.json else as_markdown(result))
    return 0


def _plan(args: argparse.Namespace) -> Plan:
    """What the arguments ask for. Raises InputError where they contradict each other."""
    from tumorchain_agent.training.modes import MODES, Mode
    from tumorchain_agent.training.seeds import HELD_OUT_SEED
    from tumorchain_agent.training.suite.plan import PATIENTS, PROBE_PATIENTS, Cohort, Plan

    if args.ablate and (args.no_iir or args.no_cot):
        raise InputError("--ablate asks in all modes: leave out --no-iir and --no-cot")
    if args.seed is not None and args.seed < HELD_OUT_SEED:
        raise InputError(
            f"--seed {args.seed}: phantoms before {HELD_OUT_SEED} are trained or chosen with; begin at that or later"
        )
    modes = tuple(MODES.values()) if args.ablate else (Mode(iir=not args.no_iir, cot=not args.no_cot),)
    cohort = Cohort(
        patients=args.patients or PATIENTS,
        first_seed=args.seed or HELD_OUT_SEED,
        masks=args.masks or "truth",
        probe_patients=0 if args.table_only else PROBE_PATIENTS,
        grounding=not args.table_only,
    )
    return Plan(tuple(args.model or (None,)), modes, cohort)


def _advance(bars: Progress, title: str) -> Advance:
    """A bar for each of a model's passes, shown when it begins."""
    tasks: dict[str, TaskID] = {}

    def advance(what: str, finished: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(f"{title}: {what}", total=of)
        bars.update(tasks[what], completed=finished)

    return advance
