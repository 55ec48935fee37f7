"""``tumorchain-agent mcp``: the tools for any MCP client, over stdin and stdout or over HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.errors import InputError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from tumorchain_agent.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        action="append",
        help="folder below which callers may name files; may be repeated (default: the working directory)",
    )
    parser.add_argument(
        "--http", action="store_true", help="serve over streamable HTTP in place of stdin and stdout"
    )
    parser.add_argument("--host", metavar="ADDRESS", help="address for --http (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=whole(0), help="port for --http (default: 8000)")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="file with the bearer token of --http (default: the variable TUMORCHAIN_MCP_TOKEN)",
    )
    parser.add_argument(
        "--without-token",
        action="store_true",
        help="let anyone on this machine in over --http, loopback only",
    )
    parser.add_argument(
        "--allowed-host",
        metavar="NAME:PORT",
        action="append",
        help="name by which callers reach --http, needed off loopback; may be repeated",
    )
    parser.add_argument(
        "--allowed-origin",
        metavar="URL",
        action="append",
        help="web page that may call over --http; may be repeated",
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="TumorChain checkpoint (default: the nano model in the package)",
    )
    parser.add_argument(
        "--llm-url", metavar="URL", help="OpenAI-compatible endpoint of the LLM of the ask tool"
    )
    parser.add_argument("--llm-model", metavar="NAME", help="model name at --llm-url")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 … (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Serve until the client disconnects or a signal ends it; 0."""
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.report import render_report

    given = {name: getattr(args, name) for name in ("model", "llm_url", "llm_model", "device")}
    settings = load_settings(**given, roots=tuple(args.root) if args.root else None)
    if not args.http:
        from tumorchain_agent.mcp_server.server import run_stdio

        _check_stdio(args)
        run_stdio(settings, render_report)
        return 0
    from tumorchain_agent.mcp_server.http import HttpOptions, run_http

    options = HttpOptions(
        host=args.host or HttpOptions.host,
        port=HttpOptions.port if args.port is None else args.port,
        token=_token(args.token_file, settings),
        without_token=args.without_token,
        allowed_hosts=tuple(args.allowed_host or ()),
        allowed_origins=tuple(args.allowed_origin or ()),
    )
    run_http(settings, options, render_report)
    return 0


def _check_stdio(args: argparse.Namespace) -> None:
    """Options of HTTP without --http would be ignored, and someone believe in them."""
    names = ("host", "port", "token_file", "without_token", "allowed_host", "allowed_origin")
    for name in names:
        if getattr(args, name) not in (None, False):
            raise InputError(f"--{name.replace('_', '-')} is for HTTP; pass --http too, or leave it out")


def _token(file: Path | None, settings: Settings) -> SecretStr | None:
    from pydantic import SecretStr

    if file is None:
        return settings.mcp_token
    try:
        return SecretStr(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {file} can't be read ({error}); check it") from error
