"""Results in a few lines, for the model that called the tool; programs read the structured content."""

from __future__ import annotations

from collections.abc import Iterable

from tumorchain_agent.mcp_server.results import (
    ClassificationSet,
    Comparison,
    Explanation,
    JobList,
    JobStatus,
    LesionSet,
    MeasurementSet,
    OrganList,
    PictureSet,
    Segmentation,
)
from tumorchain_agent.records import Answer, InputGate, Measurement, Notice, ScanInfo, TokenSet
from tumorchain_agent.tools.compare import OrganChange
from tumorchain_agent.tools.contact import Contact

MAX_MEASUREMENTS = 60


def tell_scan(scan: ScanInfo) -> str:
    shape = " × ".join(map(str, scan.shape))
    spacing = " × ".join(f"{mm:.3g}" for mm in scan.spacing_mm)
    return _lines(
        f"scan_id {scan.scan_id}: {scan.file_name}, {shape} voxels (x, y, z) of {spacing} mm, "
        f"{scan.hu_min:.0f} to {scan.hu_max:.0f} HU.",
        *(_gate(scan.gate) if scan.gate is not None else ()),
        notices=scan.notices,
    )


def _gate(gate: InputGate) -> list[str]:
    guesses = {name.replace("_", " "): item for name, item in gate}
    return [
        "Seems to be: "
        + "; ".join(f"{name} {item.value} ({item.confidence:.2f})" for name, item in guesses.items())
        + " (guess and confidence)."
    ]


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
    if found.needs_licence:
        ways.append(
            f"Not here, as they need a licence: {', '.join(each.task for each in found.needs_licence)}."
        )
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
        f"answer_id {answer.thread_id} (for explain).",
        answer.conclusion,
        f"TNM: {tnm.t} {tnm.n} {tnm.m}{stage}.",
        *(f"TNM contradiction in the text: {flag}" for flag in tnm.flags),
        f"Examined in {rounds}: {', '.join(answer.organs_examined) or 'no organ'}.",
    ]
    if answer.organs_absent:
        lines.append(f"Not in the scan, so not assessed: {', '.join(answer.organs_absent)}.")
    return _lines(*lines, notices=answer.notices)


def tell_lesions(found: LesionSet) -> str:
    lines = [
        f"lesion {each.number}: {each.measurement.volume_ml or 0:.2f} ml, "
        f"{each.measurement.largest_axial_diameter_mm or 0:.1f} × {each.short_axis_mm:.1f} mm (axial), "
        f"mean {each.measurement.mean_hu or 0:.1f} HU, "
        + (f"in {each.organ} ({100 * each.organ_share:.0f} %)" if each.organ else "in no organ that is known")
        for each in found.lesions[:MAX_MEASUREMENTS]
    ]
    lines.insert(0, f"{found.count} lesion{'s' if found.count > 1 else ''} in the mask.")
    if found.segmentation_id is None:
        lines.append("Which organ holds them is not known before segment_organs.")
    return _lines(*lines, notices=found.notices)


def tell_contact(found: Contact) -> str:
    lines = [
        f"{found.a} and {found.b}: {'touching' if found.touching else 'not touching'} (within "
        f"{found.near_mm:.1f} mm), nearest {found.min_distance_mm:.1f} mm, contact "
        f"{found.contact_area_mm2:.0f} mm², overlap {found.overlap_ml:.2f} ml, "
        f"{100 * found.share_of_b_surface:.0f} % of the surface of {found.b}."
    ]
    if found.max_encasement_deg is not None:
        lines.append(
            f"At most {found.max_encasement_deg:.0f}° of the outline of {found.b} in an axial slice "
            f"({found.encasement_slice})."
        )
    return _lines(*lines, notices=())


def tell_comparison(found: Comparison) -> str:
    return _lines(*map(_change, found.changes), notices=found.notices)


def _change(change: OrganChange) -> str:
    if change.volume_change_ml is None:
        return f"{change.organ}: can't be compared"
    share = "" if change.volume_change_percent is None else f" ({change.volume_change_percent:+.0f} %)"
    doubt = {
        True: "",
        False: ", within the error of segmentation",
        None: ", which may be the error of segmentation",
    }[change.beyond_method_error]
    return (
        f"{change.organ}: {change.earlier.volume_ml or 0:.1f} → {change.later.volume_ml or 0:.1f} ml, "
        f"{change.volume_change_ml:+.1f} ml{share}{doubt}; mean HU {change.mean_hu_change or 0:+.1f}"
    )


def tell_explanation(found: Explanation) -> str:
    lines = [f"Claim {found.number}: {found.claim.sentence}"]
    for evidence in found.evidence:
        parts = [f"{evidence.organ} ({evidence.kind})" if evidence.present else f"{evidence.organ}: absent"]
        if evidence.measurement is not None and evidence.measurement.present:
            parts.append(_measurement(evidence.measurement))
        if evidence.classification is not None:
            parts.append(f"classifier: {evidence.classification.label}")
        lines.append("; ".join(parts) + (f"; {', '.join(evidence.uris)}" if evidence.uris else ""))
    if found.organs_without_evidence:
        lines.append(f"Never examined, so without evidence: {', '.join(found.organs_without_evidence)}.")
    if not found.evidence:
        lines.append("No organ was examined for it: it rests on the first look at the whole scan.")
    return _lines(*lines, notices=found.notices)


def tell_job(job: JobStatus) -> str:
    if job.status != "running":
        return f"Job {job.job_id} ({job.tool}): {job.status}."
    return (
        f"Job {job.job_id} ({job.tool}) is under way: {job.progress.phase}, {100 * job.progress.fraction:.0f} %. "
        f'It goes on by itself. Call get_job with job_id "{job.job_id}" for its result. This is no finding yet.'
    )


def tell_jobs(found: JobList) -> str:
    lines = [
        f"{job.job_id} {job.tool}: {job.status}, {job.progress.phase}, {100 * job.progress.fraction:.0f} %"
        for job in found.jobs
    ]
    return _lines(*(lines or ["No jobs."]), notices=())


def _measurement(m: Measurement) -> str:
    parts = [f"{m.volume_ml:.2f} ml" if m.volume_ml is not None else ""]
    parts.append(f"mean {m.mean_hu:.1f} HU (sd {m.sd_hu:.1f})" if m.mean_hu is not None else "")
    parts.append(f"largest diameter {m.largest_diameter_mm:.1f} mm" if m.largest_diameter_mm else "")
    parts.append(f"cut by the scan's edge ({', '.join(m.cut_by_edge)})" if m.cut_by_edge else "")
    return f"{m.organ}: {', '.join(part for part in parts if part)}"


def _lines(*lines: str, notices: Iterable[Notice]) -> str:
    return "\n".join([*lines, *(f"Note ({notice.code}): {notice.message}" for notice in notices)])
