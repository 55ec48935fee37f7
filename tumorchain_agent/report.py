"""The report that a physician reads: one HTML page without any external request."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.records import Answer, Measurement, Picture
from tumorchain_agent.report_text import format_number, sentence_case
from tumorchain_agent.report_view import build_view
from tumorchain_agent.tools.organs import display_name

if TYPE_CHECKING:
    from jinja2 import Template

ASSETS = Path(__file__).parent / "assets"


def render_report(
    answer: Answer,
    pictures: Mapping[str, Sequence[tuple[Picture, bytes]]],
    measurements: Sequence[Measurement] = (),
    written: datetime | None = None,
) -> str:
    """``report.html`` as text.

    ``pictures`` maps an organ to its slices and their PNG bytes; ``measurements`` are all that the scan's
    label map gave, examined or not. Every text is escaped; pictures and style are inline, and the page's own
    policy forbids scripts and requests.
    """
    return _template().render(
        answer=answer,
        view=build_view(
            answer, measurements, {organ: [p for p, _ in found] for organ, found in pictures.items()}
        ),
        images={picture.uri: _data_uri(png) for found in pictures.values() for picture, png in found},
        tnm_organ=display_name(answer.tnm.primary_organ) if answer.tnm.primary_organ else "",
        tnm_parts=(
            ("T", answer.tnm.t, "Primary tumor"),
            ("N", answer.tnm.n, "Lymph nodes"),
            ("M", answer.tnm.m, "Metastases"),
        ),
        provenance=_provenance(answer),
        written=written.strftime("%Y-%m-%d %H:%M %Z").strip() if written else None,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = format_number
    environment.filters["sentence"] = sentence_case
    environment.globals["css"] = Markup((ASSETS / "report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _provenance(answer: Answer) -> list[tuple[str, str]]:
    versions, segmentation = answer.versions, answer.segmentation
    rows = [
        ("tumorchain-agent", versions.tumorchain_agent),
        ("LLM", versions.llm),
        ("Checkpoint", versions.checkpoint_id or "none"),
        ("Segmentation", versions.segmentation),
    ]
    if segmentation is not None:
        rows.append(
            ("Label map", f"{segmentation.source}, task {segmentation.task}, {segmentation.weights_id}")
        )
    rows += [
        ("TotalSegmentator", versions.totalsegmentator),
        ("torch", versions.torch),
        ("Python", versions.python),
        ("Scan id", answer.scan.scan_id),
        ("Stored as", f"{answer.scan.source_format}, {answer.scan.source_axcodes}"),
        ("HU range", f"{format_number(answer.scan.hu_min, 0)} to {format_number(answer.scan.hu_max, 0)}"),
        ("Thread", answer.thread_id),
        ("Tokens", f"{answer.usage.prompt_tokens} prompt, {answer.usage.completion_tokens} generated"),
    ]
    return rows
