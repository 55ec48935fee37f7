"""What the report shows, worked out from an answer: sections, anchors, links and rows, all plain text.

Nothing here is HTML: the template escapes every string, so text written by a language model stays text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tumorchain_agent.records import (
    Answer,
    Claim,
    Classification,
    Measurement,
    Notice,
    OrganEvidence,
    Picture,
    Round,
)
from tumorchain_agent.report_text import (
    Piece,
    Section,
    format_number,
    linked,
    plain,
    sentence_case,
    split_sections,
)
from tumorchain_agent.tools.organs import display_name


@dataclass(frozen=True)
class PictureView:
    caption: str
    alt: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class EvidenceView:
    """One organ in one round, with what the round was shown of it."""

    anchor: str
    name: str
    asked_as: str
    evidence: OrganEvidence
    pictures: tuple[PictureView, ...]
    for_reader: bool
    """The model did not see these slices."""
    notices: tuple[Notice, ...]
    tokens: str | None


@dataclass(frozen=True)
class RoundView:
    anchor: str
    title: str
    round: Round
    sections: tuple[Section, ...]
    evidence: tuple[EvidenceView, ...]
    new_organs: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """Where a claim's evidence is shown, "Round 2, liver", and what it is, "axial slice 71"."""

    place: str
    anchor: str | None
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class ClaimView:
    pieces: tuple[Piece, ...]
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Row:
    """A line of the measurement table."""

    name: str
    measurement: Measurement
    classification: Classification | None = None
    anchor: str | None = None


@dataclass(frozen=True)
class View:
    """Everything that the template reads besides the answer itself."""

    warnings: tuple[Notice, ...]
    remarks: tuple[Notice, ...]
    sections: tuple[Section, ...]
    rounds: tuple[RoundView, ...]
    claims: tuple[ClaimView, ...]
    examined: tuple[Row, ...]
    other_organs: tuple[Row, ...]
    structures: tuple[Row, ...]
    absent: tuple[str, ...]
    stopped: str


@dataclass
class _Anchors:
    """Where in the page an organ or a URI is shown."""

    organs: dict[str, str] = field(default_factory=dict)
    uris: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """URI → place, anchor, kind."""


def build_view(
    answer: Answer,
    measurements: Sequence[Measurement] = (),
    pictures: Mapping[str, Sequence[Picture]] | None = None,
) -> View:
    """The view of an answer.

    ``measurements`` adds the organs and structures that no round examined, ``pictures`` (by organ) slices for
    the reader where the model read tokens or text.
    """
    anchors = _collect_anchors(answer.rounds)
    notices = tuple(dict.fromkeys((*answer.notices, *answer.scan.notices)))
    examined, others, structures = _rows(answer, measurements, anchors)
    return View(
        warnings=tuple(n for n in notices if n.severity == "warning" and not _shown_elsewhere(n, anchors)),
        remarks=tuple(n for n in notices if n.severity != "warning"),
        sections=split_sections(answer.conclusion, anchors.organs),
        rounds=tuple(_round_view(each, anchors, pictures or {}) for each in answer.rounds),
        claims=tuple(_claim_view(claim, anchors) for claim in answer.claims),
        examined=examined,
        other_organs=others,
        structures=structures,
        absent=tuple(display_name(organ) for organ in answer.organs_absent),
        stopped=_why_stopped(answer),
    )


def _shown_elsewhere(notice: Notice, anchors: _Anchors) -> bool:
    """Absent organs and contradictions have cards of their own; cut organs are told where they are shown."""
    cut = notice.code == "cut_by_edge" and notice.organ in anchors.organs
    return cut or notice.code in ("organ_absent", "tnm_flag")


def _anchor(index: int, organ: str | None = None) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", organ.lower()).strip("-") if organ else ""
    return f"round-{index}-{slug}" if slug else f"round-{index}"


def _collect_anchors(rounds: Sequence[Round]) -> _Anchors:
    anchors = _Anchors()
    for each in rounds:
        for evidence in each.evidence:
            anchor = _anchor(each.index, evidence.organ)
            anchors.organs.setdefault(evidence.organ, anchor)
            place = f"Round {each.index}, {display_name(evidence.organ)}"
            for uri, kind in _uris(evidence):
                anchors.uris.setdefault(uri, (place, anchor, kind))
    return anchors


_SCHEMES = {
    "tokens": "ROI tokens",
    "picture": "slice",
    "measurement": "measurement",
    "classification": "classifier",
    "mask": "mask",
}


def _kind(uri: str) -> str:
    return _SCHEMES.get(uri.partition("://")[0], "evidence")


def _uris(evidence: OrganEvidence) -> list[tuple[str, str]]:
    """URI and what it is, the more telling descriptions first."""
    found = [(p.uri, f"{p.plane} slice {p.slice_index}") for p in evidence.pictures]
    if evidence.tokens is not None:
        found.append((evidence.tokens.uri, f"{evidence.tokens.count} ROI tokens"))
        if (zoom := evidence.tokens.zoom) is not None:
            found.append((zoom.uri, f"{zoom.count} zoomed ROI tokens"))
    return found + [(uri, _kind(uri)) for uri in evidence.uris]


def _round_view(each: Round, anchors: _Anchors, pictures: Mapping[str, Sequence[Picture]]) -> RoundView:
    names = [display_name(e.organ) for e in each.evidence]
    title = (
        ", ".join(names) if names else ("first look at the whole scan" if each.index == 1 else "no new organ")
    )
    return RoundView(
        anchor=_anchor(each.index),
        title=sentence_case(title),
        round=each,
        sections=split_sections(each.text, anchors.organs),
        evidence=tuple(_evidence_view(each.index, e, pictures.get(e.organ, ())) for e in each.evidence),
        new_organs=tuple(display_name(organ) for organ in each.new_organs),
    )


def _evidence_view(index: int, evidence: OrganEvidence, for_reader: Sequence[Picture]) -> EvidenceView:
    name = display_name(evidence.organ)
    tokens = None
    if evidence.tokens is not None:
        tokens = f"{evidence.tokens.count} ROI tokens from {evidence.tokens.cells} patches"
        if (zoom := evidence.tokens.zoom) is not None:
            tokens += f", {zoom.count} from {zoom.cells} patches of its crop ({zoom.side_mm:.0f} mm across)"
    asked_as = evidence.asked_as
    return EvidenceView(
        anchor=_anchor(index, evidence.organ),
        name=sentence_case(name),
        asked_as="" if asked_as.lower() in (name.lower(), evidence.organ.lower()) else asked_as,
        evidence=evidence,
        pictures=tuple(_picture_view(p) for p in evidence.pictures or for_reader),
        for_reader=not evidence.pictures,
        notices=tuple(n for n in evidence.notices if n.organ is not None and n.code != "organ_absent"),
        tokens=tokens,
    )


_AXIS = {"axial": "z", "coronal": "y", "sagittal": "x"}


def _picture_view(picture: Picture) -> PictureView:
    where = f"{_AXIS[picture.plane]} = {format_number(picture.position_mm)} mm"
    name = display_name(picture.organ)
    return PictureView(
        caption=f"{picture.plane.capitalize()}, slice {picture.slice_index}, {where}",
        alt=f"{picture.plane.capitalize()} CT slice through the {name} at {where}, the {name} outlined",
        uri=picture.uri,
        width=picture.width,
        height=picture.height,
    )


def _claim_view(claim: Claim, anchors: _Anchors) -> ClaimView:
    groups: dict[tuple[str, str | None], list[str]] = {}
    for uri in claim.evidence_uris:
        place, anchor, kind = anchors.uris.get(uri, ("Elsewhere in the trace", None, _kind(uri)))
        groups.setdefault((place, anchor), []).append(kind)
    return ClaimView(
        pieces=linked(plain(claim.sentence), anchors.organs),
        links=tuple(Link(place, anchor, tuple(kinds)) for (place, anchor), kinds in groups.items()),
    )


def _rows(
    answer: Answer, measurements: Sequence[Measurement], anchors: _Anchors
) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[Row, ...]]:
    shown: dict[str, Row] = {}
    for evidence in (e for each in answer.rounds for e in each.evidence):
        measured = evidence.measurement or next(
            (m for m in measurements if m.organ == evidence.organ and m.level == "organ"), None
        )
        if measured is not None and measured.present:
            anchor = anchors.organs[evidence.organ]
            name = display_name(evidence.organ)
            shown.setdefault(
                evidence.organ, Row(sentence_case(name), measured, evidence.classification, anchor)
            )
    rest = [m for m in measurements if m.present and not (m.level == "organ" and m.organ in shown)]
    organs = tuple(Row(sentence_case(display_name(m.organ)), m) for m in rest if m.level == "organ")
    structures = tuple(
        Row(sentence_case(m.organ.replace("_", " ")), m) for m in rest if m.level == "structure"
    )
    return tuple(shown.values()), organs, structures


def _why_stopped(answer: Answer) -> str:
    count = len(answer.rounds)
    rounds = "1 round" if count == 1 else f"{count} rounds"
    if answer.stopped_because == "no new organ":
        return f"Stopped after {rounds}: the last one named no organ that had not been examined."
    return f"Stopped after {rounds}: the limit of rounds was reached, so organs named last were not examined."
