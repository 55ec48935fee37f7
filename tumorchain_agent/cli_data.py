"""``tumorchain-agent data``: check, split, convert and make TumorCoT files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.cli_numbers import share, whole
from tumorchain_agent.records import DISCLAIMER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tumorchain_agent.training.data.files import Problem
    from tumorchain_agent.training.data.summary import Summary

FORMATS = ("m3d-vqa", "m3d-cap", "deeptumorvqa", "3d-rad")
_FILE = "TumorCoT file, .jsonl or .jsonl.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(
        title="what to do", metavar="WHAT", dest="what", required=True, help="see each one's --help"
    )

    def command(name: str, about: str) -> argparse.ArgumentParser:
        text = f"{about[0].upper()}{about[1:]}. {DISCLAIMER}"
        return commands.add_parser(name, help=about, description=text, allow_abbrev=False)

    _validate_arguments(command("validate", "check a TumorCoT file and name its first bad lines"))
    _split_arguments(command("split", "split a TumorCoT file by patient into train and test"))
    _convert_arguments(command("convert", "convert the questions of M3D or DeepTumorVQA to a TumorCoT file"))
    _phantom_arguments(command("from-phantoms", "make a TumorCoT file of a phantom cohort"))


def _validate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=_FILE)
    parser.add_argument("--scans", action="store_true", help="open every scan and label map, too")
    _first_argument(parser, "lines")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")


def _split_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help=_FILE)
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write; FILE itself is allowed")
    parser.add_argument(
        "--test", metavar="SHARE", type=share, default=0.1, help="share of patients for test (default: 0.1)"
    )
    _seed_argument(parser)


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=FORMATS, help="what FILE is")
    parser.add_argument("file", metavar="FILE", type=Path, help="question file: CSV, JSON or JSON Lines")
    parser.add_argument("out", metavar="OUT", type=Path, help="TumorCoT file to write")
    parser.add_argument(
        "--scans",
        metavar="DIR",
        type=Path,
        help="folder that image paths start from (default: that of FILE; of DeepTumorVQA its ct)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "test"),
        help="side of all rows (default: as the rows or FILE's name say; validation is test)",
    )
    parser.add_argument("--open", action="store_true", help="take free answers in place of the choices")
    parser.add_argument("--skip-bad", action="store_true", help="write the good rows even if others are bad")
    _first_argument(parser, "rows")


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cohort", metavar="COHORT", type=Path, help="folder of tumorchain-agent phantom")
    parser.add_argument("out", metavar="OUT", type=Path, help="TumorCoT file to write")
    parser.add_argument(
        "--questions", metavar="N", type=whole(1), default=12, help="questions a patient (default: 12)"
    )
    _seed_argument(parser)


def _first_argument(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--first", metavar="N", type=whole(1), default=20, help=f"bad {what} to name (default: 20)"
    )


def _seed_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", metavar="S", type=whole(0), default=0, help="seed (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Tables and JSON go to stdout, bad lines and progress to stderr."""
    steps = {"validate": _validate, "split": _split, "convert": _convert, "from-phantoms": _from_phantoms}
    return steps[args.what](args)


def _validate(args: argparse.Namespace) -> int:
    from tumorchain_agent.errors import DataError
    from tumorchain_agent.training.data.validate import validate_file

    with _progress(args.file) as advance:
        found = validate_file(args.file, scans=args.scans, first=args.first, on_progress=advance)
    if args.json:
        print(found.model_dump_json(indent=2))
    _name(found.problems, "line", args.file)
    if not found.lines:
        raise DataError(f"{args.file} is empty; write one sample a line")
    if found.bad_lines:
        reasons = ", ".join(f"{count:,} × {reason.words}" for reason, count in found.reasons.items())
        raise DataError(
            f"{found.bad_lines:,} of {found.lines:,} lines of {args.file.name} are bad ({reasons}); "
            "mend or remove them"
        )
    if not args.json:
        print(found.summary.table())
    return 0


def _split(args: argparse.Namespace) -> int:
    from tumorchain_agent.training.data.split import split_file

    with _progress(args.file) as advance:
        summary = split_file(args.file, args.out, test=args.test, seed=args.seed, on_progress=advance)
    _show(summary)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from tumorchain_agent.training.data.convert import BadRowsError, convert
    from tumorchain_agent.training.data.rows import Source

    source = Source(args.file, args.out, args.scans, args.split, args.open)
    try:
        with _progress(args.file) as advance:
            done = convert(args.format, source, skip_bad=args.skip_bad, first=args.first, on_progress=advance)
    except BadRowsError as error:
        _name(error.problems, "row", args.file)
        raise
    _name(done.problems, "row", args.file)
    if done.bad:
        print(f"{done.bad:,} of {done.rows:,} rows are left out", file=sys.stderr)
    _show(done.summary)
    return 0


def _from_phantoms(args: argparse.Namespace) -> int:
    from tumorchain_agent.training.data.files import write_samples
    from tumorchain_agent.training.data.phantoms import cohort_folders, cohort_samples
    from tumorchain_agent.training.data.summary import Tally

    folders, tally = cohort_folders(args.cohort), Tally()
    with _bar("patients", len(folders)) as advance:
        samples = cohort_samples(
            folders, args.out, questions=args.questions, seed=args.seed, on_patient=lambda: advance(1)
        )
        write_samples(args.out, tally.passing(samples))
    _show(tally.summary())
    print(f"\nSynthetic, no real patients. {DISCLAIMER}")
    return 0


def _show(summary: Summary) -> None:
    print(summary.table())
    if summary.patients.both and not summary.patients.test:
        print(
            f"no patient of {summary.patients.both:,} is on the test side; take more patients or another seed",
            file=sys.stderr,
        )


def _name(problems: Iterable[Problem], unit: str, file: Path) -> None:
    """Bad lines, one a line."""
    from tumorchain_agent.cli import one_line
    from tumorchain_agent.errors import DataError

    for problem in problems:
        print(one_line(DataError(f"{file.name} {problem.text(unit)}")), file=sys.stderr)


@contextmanager
def _progress(file: Path) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes of a file; what it yields is told how many are read."""
    size = file.stat().st_size if file.is_file() else 0
    with _bar("reading", size) as advance:
        read = 0

        def told(now: int) -> None:
            nonlocal read
            advance(now - read)
            read = now

        yield told


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(name), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        yield lambda step: bar.advance(task, step)
