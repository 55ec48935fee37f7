"""``tumorchain-agent evaluate --suite NAME PATH``: benchmarks in files, and reasoning chains scored by a judge."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.errors import InputError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from rich.progress import Progress, TaskID

    from tumorchain_agent.training.evaluation.semantic import Judge

SUITES: Final = ("deeptumorvqa", "m3d-vqa", "3d-rad", "tumorcot", "chains")
OWN: Final = (
    "format", "limit", "scans", "masks_dir", "evidence", "who", "llm_url", "llm_model", "judge_url", "judge_model",
)  # fmt: skip
"""Options that belong to these suites alone."""
OF_PHANTOMS: Final = ("seed", "patients", "masks", "no_iir", "no_cot", "ablate", "table_only")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with --suite NAME PATH")
    group.add_argument(
        "--format", choices=("mc", "freeform"), help="multiple choice or free answers (default: mc)"
    )
    group.add_argument("--limit", metavar="N", type=whole(1), help="only the first N questions")
    group.add_argument(
        "--scans", metavar="DIR", type=Path, help="folder that the file's image paths start from"
    )
    group.add_argument(
        "--masks-dir",
        metavar="DIR",
        type=Path,
        help="label maps as ID.nii.gz, lesions as ID_lesions.nii.gz (default: TUMORCHAIN_MASKS_DIR, else segmented)",
    )
    group.add_argument(
        "--evidence",
        choices=("tokens", "images", "text"),
        help="what the agent's LLM reads (default: tokens)",
    )
    group.add_argument(
        "--who",
        choices=("agent", "direct", "both"),
        help="the agent, a vision LLM on slices as a baseline, or both (default: agent)",
    )
    group.add_argument("--llm-url", metavar="URL", help="OpenAI-compatible endpoint of the LLM")
    group.add_argument("--llm-model", metavar="NAME", help="model name at --llm-url")
    group.add_argument(
        "--judge-url",
        metavar="URL",
        help="LLM that compares open answers or scores chains (default: by facts, offline)",
    )
    group.add_argument("--judge-model", metavar="NAME", help="model name at --judge-url")


def refuse(args: argparse.Namespace) -> None:
    """InputError for an option of these suites without one."""
    for name in OWN:
        if getattr(args, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} belongs to --suite {', '.join(SUITES)}: add one, or leave it out")


def run(args: argparse.Namespace) -> int:
    """Ask or judge with a progress bar on stderr; the table or JSON goes to stdout."""
    import anyio

    name, *paths = args.suite
    if len(paths) != 1:
        raise InputError(f"--suite {name} takes one path: the benchmark's folder or file")
    for option in OF_PHANTOMS:
        if getattr(args, option):
            raise InputError(f"--{option.replace('_', '-')} belongs to --suite phantom: leave it out")
    if len(args.model or ()) > 1 and name == "chains":
        raise InputError("--model is given more than once: chains are of nobody's model; leave it out")
    path = Path(paths[0])
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path")
    text: str = anyio.run(_chains if name == "chains" else _questions, args, name, path)
    print(text, end="" if text.endswith("\n") else "\n")
    return 0


async def _questions(args: argparse.Namespace, name: str, path: Path) -> str:
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.training.evaluation.bench import Request, evaluate

    settings = load_settings(llm_url=args.llm_url, llm_model=args.llm_model)
    told = os.environ.get("TUMORCHAIN_MASKS_DIR")
    masks = args.masks_dir or (Path(told) if told else None)
    request = Request(
        suite=name,
        path=path,
        who=args.who or "agent",
        evidence=args.evidence or "tokens",
        scans=args.scans,
        masks=masks,
        open_ended=args.format == "freeform",
        limit=args.limit,
        out=args.out,
        models=tuple(args.model or ()),
    )
    with _bars() as bars:
        model = _judge_model(args)
        finished = await evaluate(settings, request, _advance(bars), _judge(args, model), model)
    return finished.scores.model_dump_json(indent=2) if args.json else finished.markdown


async def _chains(args: argparse.Namespace, name: str, path: Path) -> str:
    from tumorchain_agent.training.atomic import whole_file
    from tumorchain_agent.training.evaluation.chain_judge import (
        OFFLINE,
        as_jsonl,
        as_markdown,
        judge_pairs,
        read_pairs,
    )

    pairs = list(read_pairs(path))[: args.limit]
    if not pairs:
        raise InputError(f"{path} holds no chain; write one object a line with id, reference, prediction")
    judge = _judge_model(args)
    told = OFFLINE if judge is None else args.judge_model or "LLM"
    with _bars() as bars:
        report = await judge_pairs(pairs, judge, told, partial(_advance(bars), name))
    if args.out is not None:
        for file_name, content in (
            ("chains.jsonl", as_jsonl(report)),
            ("table.md", as_markdown(report).encode()),
        ):
            with whole_file(args.out / file_name) as file:
                file.write(content)
    return report.model_dump_json(indent=2) if args.json else as_markdown(report)


def _judge(args: argparse.Namespace, model: BaseChatModel | None) -> Judge:
    from tumorchain_agent.training.evaluation.semantic import LLMJudge, OfflineJudge

    return OfflineJudge() if model is None else LLMJudge(model, args.judge_model or "LLM")


def _judge_model(args: argparse.Namespace) -> BaseChatModel | None:
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.model.chat import chat_model_from

    if args.judge_url is None:
        if args.judge_model is not None:
            raise InputError(
                f"--judge-model {args.judge_model} needs the address of its server: pass --judge-url too"
            )
        return None
    return chat_model_from(load_settings(llm_url=args.judge_url, llm_model=args.judge_model), evidence="text")


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(file=sys.stderr))


def _advance(bars: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def advance(what: str, done: int, of: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=of)
        bars.update(tasks[what], completed=done)

    return advance
