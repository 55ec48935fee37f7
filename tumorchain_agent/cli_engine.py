"""``tumorchain-agent engine``: make TumorCoT data from reports, look at the knowledge graph, have experts review."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.records import DISCLAIMER

if TYPE_CHECKING:
    from tumorchain_agent.training.engine.calls import Paid
    from tumorchain_agent.training.engine.runner import Watch

ORGANS = ("liver", "pancreas", "stomach", "colorectum", "esophagus")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        title="what to do", metavar="WHAT", dest="what", required=True, help="see each one's --help"
    )

    def command(name: str, about: str) -> argparse.ArgumentParser:
        text = f"{about[0].upper()}{about[1:]}. {DISCLAIMER}"
        return commands.add_parser(name, help=about, description=text, allow_abbrev=False)

    run_parser = command(
        "run", "make a TumorCoT file from cases with reports, by the experts of a configuration"
    )
    run_parser.add_argument(
        "config", metavar="CONFIG", type=Path, help="YAML file, e.g. examples/engine.yaml"
    )
    run_parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of this run; the same again goes on (default: runs/ and CONFIG's name)",
    )
    graph = command("graph", "check a knowledge graph and draw an organ of it")
    graph.add_argument(
        "--knowledge", metavar="DIR", type=Path, help="folder of the graph (default: the one in the package)"
    )
    graph.add_argument(
        "--organ", choices=ORGANS, default="pancreas", help="organ to draw (default: pancreas)"
    )
    graph.add_argument(
        "--picture", metavar="FILE.svg", type=Path, help="write a picture of the organ's graph"
    )
    sheet = command("sheet", "draw samples of a TumorCoT file for expert review")
    sheet.add_argument("file", metavar="FILE", type=Path, help="TumorCoT file, .jsonl or .jsonl.gz")
    sheet.add_argument("out", metavar="OUT.csv", type=Path, help="sheet to write")
    sheet.add_argument("--n", metavar="N", type=whole(1), default=120, help="samples (default: 120)")
    sheet.add_argument("--seed", metavar="S", type=whole(0), default=0, help="seed (default: 0)")
    tally = command("tally", "count what experts wrote into a sheet")
    tally.add_argument(
        "sheet", metavar="SHEET.csv", type=Path, help="a sheet with usable and quality filled in"
    )
    tally.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Tables and JSON go to stdout, progress to stderr."""
    steps = {"run": _run, "graph": _graph, "sheet": _sheet, "tally": _tally}
    return steps[args.what](args)


def _run(args: argparse.Namespace) -> int:
    import anyio

    from tumorchain_agent.training.engine.config import load_config
    from tumorchain_agent.training.engine.runner import run_engine

    config = load_config(args.config)
    out = args.out or Path("runs") / args.config.stem
    with _progress() as watch:
        done = anyio.run(run_engine, config, out, watch)
    print(done.statistics.markdown())
    paid = done.paid
    print(
        f"wrote {out}; this run made {paid.calls:,} calls ({paid.tokens:,} tokens, cost {paid.cost:.4f}), "
        f"{paid.cached:,} replies were there already",
        file=sys.stderr,
    )
    return 0


def _graph(args: argparse.Namespace) -> int:
    from collections import Counter

    from tumorchain_agent.training.atomic import whole_file
    from tumorchain_agent.training.engine.knowledge import CATEGORIES, load_knowledge
    from tumorchain_agent.training.engine.knowledge_picture import draw_knowledge

    graph = load_knowledge(args.knowledge)
    if args.picture:
        with whole_file(args.picture) as file:
            file.write(draw_knowledge(graph, args.organ).encode())
    names = [*CATEGORIES, "A", "B", "C"]
    print(f"| organ | {' | '.join(name.replace('_', ' ') for name in names)} | all |")
    print(f"| --- |{' --- |' * (len(names) + 1)}")
    for organ in ORGANS:
        triples = graph.of(organ)
        counts = Counter([each.category for each in triples] + [each.level for each in triples])
        print(f"| {organ} | {' | '.join(str(counts[name]) for name in names)} | {len(triples)} |")
    print(f"\n{len(graph.triples)} triples, graph {graph.id}. {DISCLAIMER}")
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from tumorchain_agent.training.engine.review import write_sheet

    count = write_sheet(args.file, args.out, args.n, args.seed)
    print(f"wrote {count} samples to {args.out}", file=sys.stderr)
    return 0


def _tally(args: argparse.Namespace) -> int:
    from tumorchain_agent.training.engine.review import tally_sheet

    found = tally_sheet(args.sheet)
    print(found.model_dump_json(indent=2) if args.json else found.markdown())
    return 0


@contextmanager
def _progress() -> Iterator[Watch]:
    """A bar over the cases, with what is paid for, on a terminal; else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("cases"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("cases", total=None, facts="")

        def watch(done: int, total: int, paid: Paid) -> None:
            facts = f"{paid.calls:,} calls, {paid.tokens:,} tokens, cost {paid.cost:.2f}"
            bar.update(task, completed=done, total=total, facts=facts)
            if bar.disable and done % 1000 == 0:
                print(f"{done:,} of {total:,} cases, {facts}", file=sys.stderr)

        yield watch
