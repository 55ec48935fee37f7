"""``tumorchain-agent``: one front door, one module for each subcommand.

A subcommand is a line in ``COMMANDS`` and a module with two functions::

    def add_arguments(parser: argparse.ArgumentParser) -> None: ...
    def run(args: argparse.Namespace) -> int: ...

The module is imported when its subcommand is called, so that ``--help`` stays fast.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from tumorchain_agent import __version__
from tumorchain_agent.errors import InputError, TumorChainError
from tumorchain_agent.records import DISCLAIMER

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141


@dataclass(frozen=True)
class Command:
    """A subcommand: the module that holds it, and its line in ``--help``."""

    module: str
    help: str
    passes_on: bool = False
    """What follows ``--`` belongs to another program, and is ``args.passed_on``."""


COMMANDS: dict[str, Command] = {
    "ask": Command("tumorchain_agent.cli_ask", "ask a question of a CT and write a traced report"),
    "batch": Command("tumorchain_agent.cli_batch", "ask of many scans, on one machine or a Ray cluster"),
    "serve": Command(
        "tumorchain_agent.cli_serve",
        "serve a checkpoint's LLM with vLLM; its options after --",
        passes_on=True,
    ),
    "view": Command("tumorchain_agent.cli_viewer", "see an answer beside its scan in the browser"),
    "mcp": Command("tumorchain_agent.cli_mcp", "serve the tools to MCP clients, over stdio or HTTP"),
    "phantom": Command("tumorchain_agent.cli_phantom", "make a phantom CT with its label map and its truth"),
    "data": Command("tumorchain_agent.cli_data", "check, split, convert and make training data"),
    "engine": Command("tumorchain_agent.cli_engine", "make training data from reports with language models"),
    "import-weights": Command(
        "tumorchain_agent.cli_import_weights", "start a checkpoint from published weights"
    ),
    "evaluate": Command("tumorchain_agent.cli_evaluate", "measure a checkpoint on phantoms of unseen seeds"),
    "train": Command("tumorchain_agent.cli_train", "train a model, or plan the memory that it takes"),
}


class Parser(argparse.ArgumentParser):
    """Knows no abbreviations, and tells a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(InputError.exit_code, f"error: {message}; see {self.prog} --help\n")


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser with the arguments of the ``chosen`` subcommand; the others show only their line of help."""
    parser = Parser(
        prog="tumorchain-agent",
        description=f"Traceable, organ-by-organ reasoning over 3D CT. {DISCLAIMER}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tumorchain-agent {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, command in COMMANDS.items():
        about = f"{command.help[0].upper()}{command.help[1:]}. {DISCLAIMER}"
        sub = commands.add_parser(name, help=command.help, description=about, allow_abbrev=False)
        if name == chosen:
            import_module(command.module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Errors are one line on stderr: the culprit, then the remedy."""
    words = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    passed_on: list[str] = []
    if chosen in COMMANDS and COMMANDS[chosen].passes_on and "--" in words:
        words, passed_on = words[: words.index("--")], words[words.index("--") + 1 :]
    try:
        args, unknown = build_parser(chosen).parse_known_args(words)
        args.passed_on = passed_on
        if unknown:
            raise InputError(f"unknown argument {unknown[0]}; see tumorchain-agent {args.command} --help")
        with _TerminateLikeInterrupt():
            return int(import_module(COMMANDS[args.command].module).run(args))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except TumorChainError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks and control characters."""
    text = "".join(char if char.isprintable() else " " for char in str(error))
    return " ".join(text.split())


class _TerminateLikeInterrupt:
    """While it lasts, SIGTERM unwinds the stack: workers are stopped and nothing stays half-written."""

    def __enter__(self) -> None:
        try:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        except ValueError:  # not in the main thread, where signals are somebody else's
            self._before = None

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
