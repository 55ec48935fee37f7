"""What an answer's folder holds beside the answer: measurements, masks and slices, fetched over MCP."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.graph.client import CTTools
from tumorchain_agent.graph.trace import trace_records
from tumorchain_agent.output import ANSWER, MASKS, PICTURES, REPORT, TRACE
from tumorchain_agent.records import Answer, Measurement, Picture
from tumorchain_agent.report import render_report
from tumorchain_agent.tools.segment_parts import organs_looked_for

if TYPE_CHECKING:
    from mcp import Client


@dataclass(frozen=True)
class Material:
    """Read through the same tools as the answer's own evidence, so that it comes from the same label map."""

    measurements: tuple[Measurement, ...]
    """Every organ and structure, absent ones too."""
    pictures: dict[str, tuple[tuple[Picture, bytes], ...]]
    """Organ → slices and their PNG."""
    masks: dict[str, bytes]
    """File stem → ``.nii.gz``: the whole label map and each examined organ."""


async def collect(
    client: Client, answer: Answer, scan: str, volume: int | None, masks: str | None
) -> Material:
    """The material of an answer about the file ``scan``; raises what the tools raise."""
    tools = CTTools(client)
    opened = await tools.open_scan(scan, volume)
    organs = organs_looked_for(answer.segmentation) if answer.segmentation is not None else None
    segmented = await tools.segment_organs(opened.scan_id, masks, organs=organs)
    names = (opened.scan_id, segmented.segmentation_id)
    measured = await tools.measure_organs(*names)
    pictures: dict[str, tuple[tuple[Picture, bytes], ...]] = {}
    for organ in answer.organs_examined:
        found = (await tools.view_organ(*names, organ)).pictures
        pictures[organ] = tuple([(each, await _read(client, each.uri)) for each in found])
    links = {
        organ: segmented.mask_uris[organ] for organ in answer.organs_examined if organ in segmented.mask_uris
    }
    if segmented.label_map_uri is not None:
        links = {"label_map": segmented.label_map_uri, **links}
    fetched = {name: await _read(client, uri) for name, uri in links.items()}
    return Material(measured.measurements, pictures, fetched)


async def _read(client: Client, uri: str) -> bytes:
    result = await client.read_resource(uri, cache_mode="bypass")
    for content in result.contents:
        if (blob := getattr(content, "blob", None)) is not None:
            return base64.b64decode(blob)
    raise TumorChainError(f"resource {uri} holds no binary content; use tumorchain-agent's own server")


def write_files(folder: Path, answer: Answer, material: Material) -> None:
    """Fill an empty folder: answer.json, trace.jsonl, report.html, masks, pictures."""
    for name, nifti in material.masks.items():
        _write(folder / MASKS / f"{name}.nii.gz", nifti)
    for organ, pictures in material.pictures.items():
        for picture, png in pictures:
            _write(folder / PICTURES / f"{organ}_{picture.plane}.png", png)
    lines = [
        json.dumps(record, ensure_ascii=False) for record in trace_records(answer, material.measurements)
    ]
    _write(folder / TRACE, _text([*lines, ""]))
    page = render_report(answer, material.pictures, material.measurements, datetime.now(UTC))
    _write(folder / REPORT, page.encode())
    _write(folder / ANSWER, _text([answer.model_dump_json(indent=2), ""]))


def _text(lines: Sequence[str]) -> bytes:
    return "\n".join(lines).encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
