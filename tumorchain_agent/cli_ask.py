"""``tumorchain-agent ask``: from a CT file and a question to a traced answer."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorchain_agent.cli_numbers import whole
from tumorchain_agent.cli_options import add_reasoning_options
from tumorchain_agent.errors import InputError

if TYPE_CHECKING:
    from tumorchain_agent.cli_view import View
    from tumorchain_agent.graph.client import CTTools
    from tumorchain_agent.graph.state import History
    from tumorchain_agent.material import Material
    from tumorchain_agent.output import OutputFolder
    from tumorchain_agent.records import Answer
    from tumorchain_agent.settings import Settings

DEFAULT_FOLDER = Path("out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scan", metavar="SCAN", help="a CT: .nii, .nii.gz, a DICOM folder or a DICOM .zip")
    parser.add_argument("question", metavar="QUESTION", help='e.g. "Is there a tumor, and what TNM stage?"')
    parser.add_argument(
        "--masks",
        metavar="LABELMAP",
        type=Path,
        help="TotalSegmentator v2 label map on the scan's grid, in place of a segmentation run",
    )
    add_reasoning_options(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for the report (default: a new one below out/)"
    )
    parser.add_argument("--json", action="store_true", help="print answer.json, and nothing else, on stdout")
    parser.add_argument(
        "--dicom",
        action="store_true",
        help="also write DICOM SEG and SR that refer to the scan's series (needs the extra dicom)",
    )
    parser.add_argument("--volume", metavar="N", type=whole(0), help="which volume of a 4-D NIfTI, from 0")
    parser.add_argument(
        "--series", metavar="N|UID", help="which series of a DICOM folder or zip, by its number or UID"
    )
    parser.add_argument("--fresh", action="store_true", help="reason anew, even if this was asked before")


@dataclass(frozen=True)
class _Job:
    """A checked command line."""

    args: argparse.Namespace
    settings: Settings
    question: str
    out: OutputFolder | None

    @property
    def scan(self) -> str:
        return str(self.args.scan)

    @property
    def masks(self) -> str | None:
        return None if self.args.masks is None else str(self.args.masks)


def run(args: argparse.Namespace) -> int:
    """Ask, show, write; 0. Raises TumorChainError before anything is written."""
    import anyio

    from tumorchain_agent.cli_view import View

    job = _check(args)
    with View(sys.stderr if args.json else sys.stdout) as view:
        answer, material = anyio.run(_ask, job, view)
        answer, report = _write(job, answer, material)
        if not args.json:
            view.answer(answer)
        view.end(report)
    if args.json:
        print(answer.model_dump_json(indent=2))
    return 0


def _check(args: argparse.Namespace) -> _Job:
    """All that can be told without opening a scan or loading a model."""
    from tumorchain_agent.graph.prompts import check_question, check_zoom
    from tumorchain_agent.output import OutputFolder

    question = check_question(args.question)
    check_zoom(args.evidence, args.zoom)
    out = None
    if args.out is not None or not args.json:
        out = OutputFolder.check(args.out or DEFAULT_FOLDER / _stem(Path(args.scan)))
    names = ("model", "device", "llm_url", "llm_model", "max_rounds")
    settings = load_settings(**{name: getattr(args, name) for name in names})
    if args.dicom:
        _check_dicom(out)
    if args.series is not None:
        args.volume = _series_index(args, settings)
    if settings.llm_url is None and settings.llm_model is not None:
        raise InputError(
            f"--llm-model {settings.llm_model} needs the address of its server: pass --llm-url too"
        )
    return _Job(args, settings, question, out)


def _check_dicom(out: OutputFolder | None) -> None:
    from tumorchain_agent.dicom_out import check_dicom

    if out is None:
        raise InputError("--dicom writes files: with --json, name a folder with --out")
    check_dicom()


def _series_index(args: argparse.Namespace, settings: Settings) -> int:
    """``--series`` as the index that every tool takes as ``volume``."""
    from tumorchain_agent.tools.read_dicom import pick_series
    from tumorchain_agent.tools.scan import is_dicom

    scan = Path(args.scan)
    if args.volume is not None or not is_dicom(scan):
        raise InputError("--series is for a DICOM folder or zip, --volume for a 4-D NIfTI; pass one of them")
    return pick_series(scan, args.series, max_voxels=settings.max_scan_voxels)


def load_settings(**given: Any) -> Settings:
    """Settings from the environment; arguments win unless ``None``. InputError names a wrong variable."""
    from pydantic import ValidationError

    from tumorchain_agent.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise InputError(
            f"TUMORCHAIN_{name}={first['input']!r}: {first['msg']}; correct or unset it"
        ) from error


def _stem(scan: Path) -> str:
    name = re.sub(r"(\.nii(\.gz)?|\.zip)$", "", scan.absolute().name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "scan"


async def _ask(job: _Job, view: View) -> tuple[Answer, Material | None]:
    """The answer and, where a report is wanted, its material, through our own MCP server in this process."""
    from tumorchain_agent.graph.client import CTTools
    from tumorchain_agent.material import collect
    from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
    from tumorchain_agent.mcp_server.workbench import Workbench

    with closing(Workbench(job.settings)) as bench:
        async with connect_in_memory(build_server(bench)) as client:
            tools = CTTools(client)
            if job.args.zoom:
                bench.served.zoom(wanted=True)
            checkpoint_id = bench.served.behind(job.args.evidence)
            await _open(job, view, tools)
            trained: History = bench.served.info.history if job.args.evidence == "tokens" else "append"
            answer = await _reason(job, view, tools, job.args.history or trained, checkpoint_id)
            if job.out is None:
                return answer, None
            view.writing()
            return answer, await collect(client, answer, job.scan, job.args.volume, job.masks)


async def _open(job: _Job, view: View, tools: CTTools) -> None:
    """The scan and the label map, before any model is loaded."""
    from tumorchain_agent.graph import events

    def opening(fraction: float | None, message: str) -> None:
        view.on_event(events.Progress(phase="open", fraction=fraction, message=message))

    scan = await tools.open_scan(job.scan, job.args.volume, opening)
    if job.masks is not None:
        await tools.segment_organs(scan.scan_id, job.masks)
    view.scan(scan)


async def _reason(
    job: _Job, view: View, tools: CTTools, history: History, checkpoint_id: str | None
) -> Answer:
    from anyio import to_thread

    from tumorchain_agent.graph.run import ask
    from tumorchain_agent.mcp_server.asking import THREADS
    from tumorchain_agent.model.chat import chat_model_from

    evidence = job.args.evidence
    return await ask(
        tools,
        await to_thread.run_sync(partial(chat_model_from, job.settings, evidence=evidence)),
        job.scan,
        job.question,
        masks=job.masks,
        evidence=evidence,
        history=history,
        max_rounds=job.settings.max_rounds,
        checkpoint_db=job.settings.cache_dir / THREADS,
        fresh=job.args.fresh,
        on_event=view.on_event,
        volume=job.args.volume,
        zoom=job.args.zoom,
        checkpoint_id=checkpoint_id,
    )


def _write(job: _Job, answer: Answer, material: Material | None) -> tuple[Answer, str | None]:
    """Write the folder in one step; the answer as written, and where its report lies."""
    from tumorchain_agent.material import write_files
    from tumorchain_agent.output import REPORT, OutputFolder

    if job.out is None or material is None:
        return answer, None
    out = job.out
    if job.args.out is None:
        out = OutputFolder.check(out.path.with_name(f"{out.path.name}-{answer.thread_id[:8]}"))
    with out.writing() as folder:
        if job.args.dicom:
            answer = _write_dicom(job, answer, material, folder)
        write_files(folder, answer, material)
    report = out.path / REPORT
    here = Path.cwd()
    return answer, str(report.relative_to(here) if report.is_relative_to(here) else report)


def _write_dicom(job: _Job, answer: Answer, material: Material, folder: Path) -> Answer:
    from datetime import datetime

    from tumorchain_agent.dicom_out import write_dicom
    from tumorchain_agent.output import DICOM

    label_map = material.masks.get("label_map")
    if label_map is None:
        raise InputError("there is no label map to write as DICOM SEG; leave out --dicom")
    volume, now = job.args.volume, datetime.now()
    scan, measured = Path(job.scan).expanduser(), material.measurements
    notices = write_dicom(folder / DICOM, scan, volume, answer, measured, label_map, now)
    return answer.model_copy(update={"notices": (*answer.notices, *notices)})
