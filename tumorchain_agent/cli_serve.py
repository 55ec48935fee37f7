"""``tumorchain-agent serve``: a checkpoint's LLM behind vLLM's OpenAI-compatible server, in the foreground."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.errors import InputError
from tumorchain_agent.records import DISCLAIMER

if TYPE_CHECKING:
    from tumorchain_agent.model.vllm_server import Report, Served
    from tumorchain_agent.settings import Settings

OURS = {
    "--host": "give --host before --",
    "--port": "give --port before --",
    "--uds": "give --host and --port before --",
    "--model": "give the checkpoint's folder before --",
    "--served-model-name": "the name carries the checkpoint's id, by which clients know it",
    "--api-key": "set TUMORCHAIN_LLM_API_KEY, which no list of processes shows",
}
"""Options of vLLM's whose values are waited for, or told to the user."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        nargs="?",
        type=Path,
        help="TumorChain checkpoint (default: the nano model in the package)",
    )
    parser.add_argument(
        "--port", metavar="N", type=whole(0), default=8000, help="0 takes a free one (default: 8000)"
    )
    parser.add_argument(
        "--host", metavar="HOST", default="127.0.0.1", help="address (default: this machine only)"
    )
    parser.add_argument(
        "--log", metavar="FILE", type=Path, help="vLLM's output (default: in the cache folder)"
    )
    parser.add_argument(
        "--start-timeout",
        metavar="S",
        type=whole(1),
        default=900,
        help="seconds to be ready in (default: 900)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted or terminated; vLLM and all its processes end first. Raises when it ends by itself."""
    from tumorchain_agent.cli import INTERRUPTED
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.model.vllm_server import VLLMServer

    settings = load_settings(model=args.checkpoint)
    served = _check(args, settings)
    started = time.monotonic()
    try:
        with VLLMServer(served) as server, _told(served) as report:
            server.wait_ready(report, args.start_timeout)
            report("")
            _say(f"{served.name} is served at {served.url}, ready after {time.monotonic() - started:.0f} s")
            print(_ask_command(args, served), flush=True)
            server.wait()
    except KeyboardInterrupt:
        _say("vLLM has ended")
    return INTERRUPTED


def _check(args: argparse.Namespace, settings: Settings) -> Served:
    """All that can be told without starting anything."""
    from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
    from tumorchain_agent.model.vllm_server import Served, find_build, free_port

    _check_passed_on(args.passed_on)
    checkpoint = ServedCheckpoint(settings)
    info = checkpoint.info
    build = find_build()
    port = free_port(args.host, args.port)
    log = args.log or settings.cache_dir / "logs" / f"vllm-{port}.log"
    if args.host not in LOOPBACK and settings.llm_api_key is None:
        _say(
            f"warning: whoever reaches {args.host} can use this model; set TUMORCHAIN_LLM_API_KEY to demand a key"
        )
    return Served(
        checkpoint.folder, info, build, log, args.host, port, tuple(args.passed_on), settings.llm_api_key
    )


def _check_passed_on(words: Sequence[str]) -> None:
    """Raises InputError for what would serve something else, or elsewhere, than is waited for."""
    for word in words:
        option = word.split("=", 1)[0].replace("_", "-")
        if option in OURS:
            raise InputError(f"{option} can't be passed on to vLLM: {OURS[option]}")


@contextmanager
def _told(served: Served) -> Iterator[Report]:
    """How the start goes: a line that changes on a terminal, else one line for each phase."""
    _say(
        f"starting vLLM ({served.build.upper()} build) for {served.folder}; its log is {served.log}. {DISCLAIMER}"
    )
    terminal, started, last = sys.stderr.isatty(), time.monotonic(), ""

    def report(phase: str) -> None:
        nonlocal last
        if terminal:
            line = f"  {phase}, {time.monotonic() - started:.0f} s" if phase else ""
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif phase and phase != last:
            _say(f"  {phase}")
        last = phase

    try:
        yield report
    finally:
        if last:
            report("")


def _ask_command(args: argparse.Namespace, served: Served) -> str:
    model = [] if args.checkpoint is None else ["--model", str(args.checkpoint)]
    words = ["tumorchain-agent", "ask", "SCAN", "QUESTION", *model, "--llm-url", served.url]
    return shlex.join(words)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
