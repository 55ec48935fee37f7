"""What the LLM is told: the turns of eq. 4, 6 and 7, laid out without fetching a tensor or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tumorchain_agent.errors import InputError, QuestionError
from tumorchain_agent.graph.state import IIRConfig
from tumorchain_agent.model.wording import absent_text, attention_text, tokenless_text, zoom_text
from tumorchain_agent.records import (
    Classification,
    EvidenceKind,
    Measurement,
    OrganEvidence,
    Round,
    ScanInfo,
    TokenSet,
)
from tumorchain_agent.tools.organs import display_name

MAX_QUESTION_CHARACTERS: Final = 8_000

_COMMON: Final = (
    "You assist a physician in reading one CT scan. You get evidence organ by organ: in your reply name each "
    "organ that the question needs to be examined, and its {evidence} will follow. When you have seen all "
    "that matters, answer the question under the headings Findings, Impression and Pathology (with TNM where "
    "it applies). State only what the evidence shows; never invent a finding, a number or a slice. An organ "
    "that is not in the scan is not assessed, which is not normal. Write TX, NX or MX for what cannot be "
    "assessed."
)

SYSTEM: Final[dict[EvidenceKind, str | None]] = {
    "tokens": None,
    "images": _COMMON.format(
        evidence="outlined slices (patient right is on the left of axial and coronal ones) and measurements"
    ),
    "text": _COMMON.format(evidence="measurements and the output of an abnormality classifier (no pictures)"),
}
"""A TumorChain checkpoint is trained without a system message; other LLMs are told the task here."""


@dataclass(frozen=True)
class TextPart:
    text: str


@dataclass(frozen=True)
class TokensPart:
    """Evidence tokens [n, hidden], named by their resource."""

    uri: str
    label: str
    count: int


@dataclass(frozen=True)
class PicturePart:
    """A PNG, named by its resource."""

    uri: str
    label: str


Part = TextPart | TokensPart | PicturePart


@dataclass(frozen=True)
class Turn:
    """One message of the conversation."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]


def check_question(question: str) -> str:
    """The question without surrounding space; QuestionError when it is empty or over 8,000 characters."""
    asked = question.strip()
    if not asked:
        raise QuestionError('the question is empty; ask something, e.g. "Is there a lesion in the liver?"')
    if len(asked) > MAX_QUESTION_CHARACTERS:
        raise QuestionError(
            f"the question has {len(asked):,} characters; shorten it to {MAX_QUESTION_CHARACTERS:,} at most"
        )
    return asked


def check_zoom(kind: EvidenceKind, zoom: bool | None) -> None:
    """InputError when zoom is asked for with evidence that has no tokens."""
    if zoom and kind != "tokens":
        raise InputError(f"zoom is of token evidence, not of {kind}: leave it out, or take --evidence tokens")


def conversation(
    config: IIRConfig,
    question: str,
    scan: ScanInfo,
    global_tokens: TokenSet | None,
    rounds: Sequence[Round],
    evidence: Sequence[OrganEvidence],
) -> list[Turn]:
    """The turns of the next LLM call.

    Round 1 is [τ_g, T_task] (eq. 4). Later rounds append R^i and [T^i, τ_l^i] for the organs of
    ``evidence`` to all that was said and shown before (eq. 3, 6), or with ``history="latest"`` to
    [τ_g, T_task] alone (eq. 7).
    """
    system = SYSTEM[config.evidence]
    turns = [Turn("system", (TextPart(system),))] if system else []
    turns.append(first_turn(config.evidence, question, scan, global_tokens))
    shown = [record.evidence for record in rounds[1:]] + [tuple(evidence)]
    exchanges = list(zip(rounds, shown, strict=False))
    for record, organs in exchanges[-1:] if config.history == "latest" else exchanges:
        turns += [Turn("assistant", (TextPart(record.text),)), organs_turn(organs)]
    return turns


def first_turn(kind: EvidenceKind, question: str, scan: ScanInfo, global_tokens: TokenSet | None) -> Turn:
    """[τ_g, T_task]; for LLMs that read no tokens a line about the scan stands in for τ_g."""
    if kind == "tokens" and global_tokens is not None:
        return Turn("user", (TokensPart(global_tokens.uri, "τ_g", global_tokens.count), TextPart(question)))
    return Turn("user", (TextPart(f"{describe_scan(scan)}\n{question}"),))


def organs_turn(evidence: Sequence[OrganEvidence]) -> Turn:
    """[T^i, τ_l^i] of each organ in order of mention; an absent organ is told in words."""
    return Turn("user", tuple(part for organ in evidence for part in organ_parts(organ)))


def organ_parts(evidence: OrganEvidence) -> list[Part]:
    """The text of eq. 5 and the organ's evidence, or the statement that there is none.

    Chat templates may join parts with nothing between, so texts that follow each other end their lines; those
    of token evidence are as a TumorChain LLM is trained with them.
    """
    organ, name = evidence.organ, display_name(evidence.organ)
    if evidence.kind == "tokens":
        return _token_parts(evidence)
    if not evidence.present:
        return [TextPart(absent_text(organ))]
    lines = [attention_text(organ)]
    if evidence.measurement is not None:
        lines.append(describe_measurement(evidence.measurement))
    if evidence.classification is not None:
        lines.append(describe_classification(evidence.classification))
    pictures = [PicturePart(p.uri, f"{p.plane} slice of {name}") for p in evidence.pictures]
    return [*(TextPart(f"{line}\n") for line in lines), *pictures]


def _token_parts(evidence: OrganEvidence) -> list[Part]:
    organ = evidence.organ
    if not evidence.present:
        return [TextPart(absent_text(organ))]
    if evidence.tokens is None:
        return [TextPart(tokenless_text(organ))]
    tokens = evidence.tokens
    parts: list[Part] = [
        TextPart(attention_text(organ)),
        TokensPart(tokens.uri, f"τ_l {organ}", tokens.count),
    ]
    if (zoom := tokens.zoom) is not None:
        parts.append(TextPart(zoom_text(organ, zoom.side_mm)))
        parts.append(TokensPart(zoom.uri, f"τ_l {organ}, zoomed", zoom.count))
    return parts


def describe_scan(scan: ScanInfo) -> str:
    """The scan in one line: voxels and spacing along x, y, z."""
    shape = " × ".join(str(size) for size in scan.shape)
    spacing = " × ".join(f"{mm:.2f}" for mm in scan.spacing_mm)
    return f"CT scan of {shape} voxels of {spacing} mm (right–left × back–front × feet–head)."


def describe_measurement(measurement: Measurement) -> str:
    """Volume, HU and size in words; says so when the scan's edge cuts the organ."""
    name = display_name(measurement.organ)
    facts = [f"volume {measurement.volume_ml:.1f} ml"] if measurement.volume_ml is not None else []
    if measurement.mean_hu is not None and measurement.sd_hu is not None:
        facts.append(f"mean {measurement.mean_hu:.0f} HU (standard deviation {measurement.sd_hu:.0f})")
    if measurement.largest_diameter_mm is not None:
        facts.append(f"largest diameter {measurement.largest_diameter_mm:.0f} mm")
    if measurement.largest_axial_diameter_mm is not None:
        facts.append(f"largest axial diameter {measurement.largest_axial_diameter_mm:.0f} mm")
    if measurement.cut_by_edge:
        faces = ", ".join(measurement.cut_by_edge)
        facts.append(f"cut by the scan's edge ({faces}), so volume and size are lower bounds")
    return f"Measured in the segmentation, {name}: {'; '.join(facts)}."


def describe_classification(classification: Classification) -> str:
    """The classifier's output with whatever limits its worth."""
    name = display_name(classification.organ)
    if classification.p_abnormal is None:
        return f"Abnormality classifier, {name}: not assessed."
    limits = "".join(f" ({notice.message})" for notice in classification.notices)
    p = classification.p_abnormal
    return f"Abnormality classifier, {name}: {classification.label}, p(abnormal) = {p:.2f}{limits}."


def show(turn: Turn) -> str:
    """A turn as readable text: evidence stands as ``[τ_g]``, ``[τ_l liver]``, ``[axial slice of liver]``."""
    return " ".join(p.text.strip() if isinstance(p, TextPart) else f"[{p.label}]" for p in turn.parts)
