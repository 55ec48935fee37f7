"""``tumorchain-agent batch``: a table of scans and questions → answers, on one machine or a Ray cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.cli_options import add_reasoning_options

if TYPE_CHECKING:
    from tumorchain_agent.batch_rows import BatchFolder, Outcome, Summary
    from tumorchain_agent.batch_table import Row
    from tumorchain_agent.batch_worker import Reasoning
    from tumorchain_agent.settings import Settings

Keyed = tuple["Row", str]
PAGE = "index.html"
UNFINISHED = "WorkerError"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table",
        metavar="TABLE.csv",
        type=Path,
        help="columns scan and question; id, masks and volume if you like; others are carried along",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder of the answers; an earlier run goes on in it",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=whole(1),
        help="processes that answer (default: one a GPU, or one for 4 cores)",
    )
    add_reasoning_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer the rows that have no answer yet; 0 when all have one, 1 when some ended in an error."""
    from tumorchain_agent.batch_rows import BatchFolder
    from tumorchain_agent.batch_run import outcomes
    from tumorchain_agent.batch_table import read_table
    from tumorchain_agent.records import DISCLAIMER

    began = time.monotonic()
    settings = _settings(args)
    rows = read_table(args.table)
    folder = BatchFolder(args.out)
    folder.check()
    settings, reasoning = _checked(args, settings)
    keyed = _keyed(rows, settings, reasoning)
    with folder.held():
        folder.check_table(rows)
        left = [(row, key) for row, key in keyed if not _is_answered(folder, row, key)]
        if left:
            folder.write_summary(_summary(folder, rows, args, 0.0, finished=False))
            with _bar(len(rows), len(rows) - len(left)) as advance:
                _answer(folder, left, outcomes(left, settings, reasoning, args.workers), advance)
        summary = _summary(folder, rows, args, time.monotonic() - began, finished=True)
        folder.write_parquet(rows)
        _write_page(folder, rows, summary)
        folder.write_summary(summary)
    reused = f" ({len(rows) - len(left)} from an earlier run)" if len(left) < len(rows) else ""
    print(f"{summary.answered} of {summary.rows} rows answered{reused}: {folder.path / PAGE}")
    for code, count in summary.errors.items():
        print(f"{count} without an answer: {code}")
    print(DISCLAIMER)
    return 1 if summary.failed else 0


def _settings(args: argparse.Namespace) -> Settings:
    """Raises CheckpointError when the checkpoint's folder is none."""
    from tumorchain_agent.cli_ask import load_settings
    from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
    from tumorchain_agent.model.checkpoint import read_info

    names = ("model", "device", "llm_url", "llm_model", "max_rounds")
    settings = load_settings(**{name: getattr(args, name) for name in names})
    read_info(ServedCheckpoint(settings).folder)
    return settings


def _checked(args: argparse.Namespace, settings: Settings) -> tuple[Settings, Reasoning]:
    """How rows are answered, and the settings with the name of the LLM that its server gives.

    Raises what would be wrong with every row: a checkpoint without that zoom, an LLM that isn't there.
    """
    from tumorchain_agent.batch_worker import Reasoning
    from tumorchain_agent.errors import InputError
    from tumorchain_agent.graph.llm import llm_name
    from tumorchain_agent.graph.prompts import check_zoom
    from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
    from tumorchain_agent.model.chat import chat_model_from

    check_zoom(args.evidence, args.zoom)
    if settings.llm_url is None and settings.llm_model is not None:
        raise InputError(
            f"--llm-model {settings.llm_model} needs the address of its server: pass --llm-url too"
        )
    if args.evidence == "tokens":
        ServedCheckpoint(settings).zoom(args.zoom)
    if settings.llm_url is not None or args.evidence == "images":
        llm = llm_name(chat_model_from(settings, evidence=args.evidence))
        settings = settings.model_copy(update={"llm_model": llm})
    return settings, Reasoning(
        evidence=args.evidence, history=args.history, zoom=args.zoom, max_rounds=settings.max_rounds
    )


def _keyed(rows: Sequence[Row], settings: Settings, reasoning: Reasoning) -> list[Keyed]:
    """Each row with what its answer depends on: files by name, size and time, models by their weights."""
    from tumorchain_agent.mcp_server.index import file_signature
    from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
    from tumorchain_agent.tools.cache import content_key

    checkpoint = ServedCheckpoint(settings).behind(reasoning.evidence)
    segments = None if all(row.masks for row in rows) else _segments(settings)
    fixed = [checkpoint, settings.llm_url, settings.llm_model, reasoning.model_dump_json()]

    def key(row: Row) -> str:
        files = [(path, file_signature(Path(path))) for path in (row.scan, row.masks) if path is not None]
        organs = segments if row.masks is None else None
        return content_key("batch row", str([*fixed, organs, row.question, row.volume, *files]))

    return [(row, key(row)) for row in rows]


def _segments(settings: Settings) -> str | None:
    """Id of the segmentation weights; ``None`` where there are none, as each row's own error then says."""
    from tumorchain_agent.errors import SegmentationError
    from tumorchain_agent.tools.segment_weights import find_weights

    try:
        return find_weights(settings).weights_id
    except SegmentationError:
        return None


def _is_answered(folder: BatchFolder, row: Row, key: str) -> bool:
    known = folder.outcome(row)
    if known is None or known.key != key or known.status != "answered":
        return False
    if known.row != row:
        folder.write(known.model_copy(update={"row": row}))
    return True


def _answer(
    folder: BatchFolder,
    left: Sequence[Keyed],
    found: Iterable[Outcome],
    advance: Callable[[Outcome], None],
) -> None:
    """Write each outcome as it comes; rows that none came of are written as failed."""
    waiting = {row.id: (row, key) for row, key in left}
    for outcome in found:
        folder.write(outcome)
        waiting.pop(outcome.row.id, None)
        advance(outcome)
    for row, key in waiting.values():
        folder.write(_without_outcome(row, key))


def _without_outcome(row: Row, key: str) -> Outcome:
    from tumorchain_agent.batch_rows import Outcome

    return Outcome(
        row=row,
        key=key,
        status="failed",
        error_code=UNFINISHED,
        error="the worker ended in an error that this software doesn't know; ask the row alone with "
        "tumorchain-agent ask to see it",
    )


def _summary(
    folder: BatchFolder, rows: Sequence[Row], args: argparse.Namespace, seconds: float, *, finished: bool
) -> Summary:
    from tumorchain_agent.batch_rows import Summary

    answered, errors = folder.count(rows)
    names = (
        "evidence",
        "history",
        "zoom",
        "max_rounds",
        "llm_url",
        "llm_model",
        "model",
        "device",
        "workers",
    )
    given = {name: getattr(args, name) for name in names}
    return Summary(
        rows=len(rows),
        answered=answered,
        failed=sum(errors.values()),
        errors=dict(errors.most_common()),
        options={name: str(value) for name, value in given.items() if value is not None},
        seconds=round(seconds, 1),
        finished=finished,
    )


def _write_page(folder: BatchFolder, rows: Sequence[Row], summary: Summary) -> None:
    """``index.html``, row by row, so that memory doesn't grow with the table."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from tumorchain_agent.report import ASSETS
    from tumorchain_agent.training.atomic import whole_file

    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined)
    outcomes: Iterable[Any] = folder.outcomes(rows)
    with whole_file(folder.path / PAGE) as file:
        for piece in environment.get_template("batch.html.j2").generate(summary=summary, outcomes=outcomes):
            file.write(piece.encode())


@contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[Outcome], None]]:
    """A progress bar on stderr; where that is no terminal, a line for each failed row."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rows", total=total, completed=done)

        def advance(outcome: Outcome) -> None:
            bar.advance(task)
            if outcome.error is not None:
                bar.console.print(
                    f"! {outcome.row.id}: {outcome.error_code}: {outcome.error}", soft_wrap=True
                )

        yield advance
