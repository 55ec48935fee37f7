"""Results in a few lines, for the model that called the tool; programs read the structured content."""

from __future__ import annotations

from collections.abc import Iterable

from tumorchain_agent.mcp_server.results import (
    ClassificationSet,
    MeasurementSet,
    OrganList,
    PictureSet,
    Segmentation,
)
from tumorchain_agent.records import Answer, Measurement, Notice, ScanInfo, TokenSet

MAX_MEASUREMENTS = 60


def tell_scan(scan: ScanInfo) -> str:
    shape = " × ".join(map(str, scan.shape))
    spacing = " × ".join(f"{mm:.3g}" for mm in scan.spacing_mm)
    return _lines(
        f"scan_id {scan.scan_id}: {scan.file_name}, {shape} voxels (x, y, z) of {spacing} mm, "
        f"{scan.hu_min:.0f} to {scan.hu_max:.0f} HU.",
        notices=scan.notices,
    )


def tell_organs(found: OrganList) -> str:
    if found.segmentation_id is None:
        known = "Which of them the scan holds is not known before segment_organs."
    else:
        present = ", ".join(organ.name for organ in found.organs if organ.present)
        known = f"In scan {found.scan_id} (segmentation {found.segmentation_id}): {present or 'none'}."
    ways = [
        f"{way.source}: {'used by default, ' if way.would_be_used else ''}"
        f"{'' if way.available else 'not available, '}{way.detail}"
        for way in found.segmentation_choices
    ]
    names = ", ".join(organ.name for organ in found.organs)
    return _lines(f"{len(found.organs)} organs: {names}.", known, *ways, notices=found.notices)


def tell_segmentation(found: Segmentation) -> str:
    info = found.info
    lines = [
        f"segmentation_id {found.segmentation_id} ({info.source} {info.task}"
        f"{', from cache' if info.from_cache else f', {info.seconds:.1f} s'}).",
        f"{len(info.organs_present)} organs present: {', '.join(info.organs_present) or 'none'}.",
    ]
    if found.organs_absent:
        lines.append(f"Asked for but not in the scan, so not assessed: {', '.join(found.organs_absent)}.")
    lines.append(f"Label map: {found.label_map_uri}; masks of the organs are in structured_content.")
    return _lines(*lines, notices=info.notices)


def tell_measurements(found: MeasurementSet) -> str:
    organs = [m for m in found.measurements if m.level == "organ"]
    present = [m for m in organs if m.present]
    lines = [_measurement(m) for m in present[:MAX_MEASUREMENTS]]
    absent = [m.organ for m in organs if not m.present]
    if absent:
        lines.append(f"Not in the scan, so not assessed: {', '.join(absent)}.")
    if len(found.measurements) > len(organs):
        lines.append("TotalSegmentator structures are in structured_content.")
    return _lines(*lines, notices=found.notices)


def tell_tokens(found: TokenSet) -> str:
    what = "global tokens of the scan" if found.organ is None else f"ROI tokens of {found.organ}"
    covered = f" from {found.cells} patches" if found.cells else ""
    lines = [
        f"{found.count} {what}{covered}, {found.hidden_size} wide, of checkpoint {found.checkpoint_id}: "
        f"{found.uri}"
    ]
    if found.zoom is not None:
        zoom = found.zoom
        lines.append(f"{zoom.count} more at higher resolution, {zoom.side_mm:.0f} mm across: {zoom.uri}")
    return _lines(*lines, notices=found.notices)


def tell_classifications(found: ClassificationSet) -> str:
    lines = [
        f"{c.organ}: {c.label}" + ("" if c.p_abnormal is None else f", p(abnormal) {c.p_abnormal:.2f}")
        for c in found.classifications
    ]
    return _lines(*lines, notices=found.notices)


def tell_pictures(found: PictureSet) -> str:
    lines = [
        f"{p.plane} slice {p.slice_index} ({p.position_mm:.0f} mm), {p.width}×{p.height} PNG: {p.uri}"
        for p in found.pictures
    ]
    if not lines:
        lines = [f"No picture of {found.organ}."]
    return _lines(*lines, notices=found.notices)


def tell_answer(answer: Answer) -> str:
    tnm = answer.tnm
    stage = f", stage {tnm.stage}" if tnm.stage else ""
    rounds = f"{len(answer.rounds)} round{'s' if len(answer.rounds) > 1 else ''}"
    lines = [
        answer.conclusion,
        f"TNM: {tnm.t} {tnm.n} {tnm.m}{stage}.",
        *(f"TNM contradiction in the text: {flag}" for flag in tnm.flags),
        f"Examined in {rounds}: {', '.join(answer.organs_examined) or 'no organ'}.",
    ]
    if answer.organs_absent:
        lines.append(f"Not in the scan, so not assessed: {', '.join(answer.organs_absent)}.")
    return _lines(*lines, notices=answer.notices)


def _measurement(m: Measurement) -> str:
    parts = [f"{m.volume_ml:.2f} ml" if m.volume_ml is not None else ""]
    parts.append(f"mean {m.mean_hu:.1f} HU (sd {m.sd_hu:.1f})" if m.mean_hu is not None else "")
    parts.append(f"largest diameter {m.largest_diameter_mm:.1f} mm" if m.largest_diameter_mm else "")
    parts.append(f"cut by the scan's edge ({', '.join(m.cut_by_edge)})" if m.cut_by_edge else "")
    return f"{m.organ}: {', '.join(part for part in parts if part)}"


def _lines(*lines: str, notices: Iterable[Notice]) -> str:
    return "\n".join([*lines, *(f"Note ({notice.code}): {notice.message}" for notice in notices)])
