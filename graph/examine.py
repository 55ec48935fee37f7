"""The evidence of one organ, by what the LLM can read."""

from __future__ import annotations

from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.graph.client import Classified, CTTools, Measured, Pictured
from tumorchain_agent.graph.state import ExamineInput, segmentation_of
from tumorchain_agent.records import (
    EvidenceKind,
    Measurement,
    Notice,
    OrganEvidence,
    SegmentationInfo,
    TokenSet,
)
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.tools.segment_parts import organs_looked_for


async def examine_organ(
    tools: CTTools, kind: EvidenceKind, state: ExamineInput, zoom: bool | None = None
) -> OrganEvidence:
    """Measure the organ; when the scan holds it, add τ_l and Cls, slices, or Cls alone, by ``kind``.

    An organ that isn't in the scan comes back ``present=False`` with a notice, nothing made up in its place.
    """
    scan_id, segmentation_id = state["scan"]["scan_id"], state["segmentation"]["segmentation_id"]
    organ = state["organ"]
    segmentation = segmentation_of(state)
    looked_for = organs_looked_for(segmentation)
    await tools.restore(
        state["scan_path"], state["volume"], scan_id, segmentation_id, state["masks"], looked_for
    )
    measured = await tools.measure_organs(scan_id, segmentation_id, [organ])
    measurement = _measurement_of(organ, measured)
    tokens: TokenSet | None = None
    pictured, classified = Pictured((), ()), Classified((), {}, ())
    if measurement.present and kind == "tokens":
        tokens = await tools.extract_roi_tokens(scan_id, segmentation_id, organ, zoom)
    if measurement.present and kind == "images":
        pictured = await tools.view_organ(scan_id, segmentation_id, organ)
    elif measurement.present:
        classified = await tools.classify_abnormality(scan_id, segmentation_id, [organ])
    return OrganEvidence(
        organ=organ,
        asked_as=state["asked_as"],
        present=measurement.present,
        kind=kind,
        tokens=tokens if tokens is not None and tokens.count else None,
        pictures=pictured.pictures,
        measurement=measurement,
        classification=next((item for item in classified.classifications if item.organ == organ), None),
        uris=_uris(organ, tokens, measured, pictured, classified),
        notices=tuple(
            dict.fromkeys(_notices(measurement, segmentation, tokens, measured, pictured, classified))
        ),
    )


def absent_notice(organ: str, segmentation: SegmentationInfo) -> Notice:
    """Missing is not normal; what the weights were never trained to find may well be there."""
    if organ in segmentation.organs_unknown:
        return Notice(
            code="organ_unknown",
            message=f"{display_name(organ)} can't be found by the segmentation weights in use: not assessed.",
            organ=organ,
        )
    if organ in segmentation.organs_deferred:
        return Notice(
            code="organ_deferred",
            message=f"{display_name(organ)} was not looked for in this segmentation: not assessed.",
            organ=organ,
        )
    return Notice(
        code="organ_absent",
        message=f"{display_name(organ)} is not in the scan: not assessed, which is not normal.",
        organ=organ,
    )


def _measurement_of(organ: str, measured: Measured) -> Measurement:
    for measurement in measured.measurements:
        if measurement.organ == organ and measurement.level == "organ":
            return measurement
    raise TumorChainError(
        f"measure_organs returned no {organ}; client and server must be of the same version"
    )


def _uris(
    organ: str, tokens: TokenSet | None, measured: Measured, pictured: Pictured, classified: Classified
) -> tuple[str, ...]:
    uris = [tokens.uri] if tokens is not None and tokens.count else []
    uris += [tokens.zoom.uri] if tokens is not None and tokens.zoom is not None else []
    uris += [picture.uri for picture in pictured.pictures]
    uris += [source.uris[organ] for source in (measured, classified) if organ in source.uris]
    return tuple(uris)


def _notices(
    measurement: Measurement,
    segmentation: SegmentationInfo,
    tokens: TokenSet | None,
    measured: Measured,
    pictured: Pictured,
    classified: Classified,
) -> list[Notice]:
    organ, name = measurement.organ, display_name(measurement.organ)
    if not measurement.present:
        return [absent_notice(organ, segmentation)]
    found = [*measured.notices, *pictured.notices, *classified.notices]
    found += [notice for item in classified.classifications for notice in item.notices]
    found += tokens.notices if tokens is not None else ()
    if tokens is not None and not tokens.count and not _noted(found, "organ_without_tokens", organ):
        message = (
            f"{name} lies outside the model's view of the scan: its tokens are missing, it is not assessed."
        )
        found.append(Notice(code="organ_without_tokens", message=message, organ=organ))
    if measurement.cut_by_edge and not _noted(found, "cut_by_edge", organ):
        faces = ", ".join(measurement.cut_by_edge)
        message = f"{name} is cut by the scan's edge ({faces}): its volume and size are lower bounds."
        found.append(Notice(code="cut_by_edge", message=message, organ=organ))
    return found


def _noted(notices: list[Notice], code: str, organ: str) -> bool:
    return any(notice.code == code and notice.organ == organ for notice in notices)
