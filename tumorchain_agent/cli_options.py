"""Options that several subcommands take: which model reasons, and how."""

from __future__ import annotations

import argparse
from pathlib import Path

from tumorchain_agent.cli_numbers import whole


def add_reasoning_options(parser: argparse.ArgumentParser) -> None:
    """Of ``ask`` and ``batch``."""
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="TumorChain checkpoint (default: the nano model in the package)",
    )
    parser.add_argument("--llm-url", metavar="URL", help="OpenAI-compatible endpoint of the LLM")
    parser.add_argument("--llm-model", metavar="NAME", help="model name at --llm-url")
    parser.add_argument(
        "--evidence",
        choices=("tokens", "images", "text"),
        default="tokens",
        help="what the LLM reads: tokens (TumorChain), images (a vision LLM), text (any); default: tokens",
    )
    parser.add_argument(
        "--history",
        choices=("append", "latest"),
        help="keep all rounds, or only the latest (default: as the checkpoint was trained)",
    )
    parser.add_argument(
        "--zoom",
        action=argparse.BooleanOptionalAction,
        help="also show each organ's crop at higher resolution (default: as the checkpoint was trained)",
    )
    parser.add_argument("--max-rounds", metavar="N", type=whole(1), help="limit of rounds (default: 8)")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 … (default: auto)")
