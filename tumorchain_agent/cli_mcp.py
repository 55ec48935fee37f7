"""``tumorchain-agent mcp``: the tools for any MCP client, over stdin and stdout."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    """Serve until the client disconnects; 0."""
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.mcp_server.server import run_stdio

    names = ("model", "llm_url", "llm_model", "device")
    run_stdio(load_settings(**{name: getattr(args, name) for name in names}))
    return 0
