"""The records that pass between rooms. Units are in the names; coordinates are RAS+ millimetres or voxel indices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DISCLAIMER = "Research software, not a medical device."
FORMAT_VERSION = 1

EvidenceKind = Literal["tokens", "images", "text"]
Severity = Literal["info", "warning"]


class Record(BaseModel):
    """Immutable, strict about unknown fields, so that a trace written today reads the same tomorrow."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Notice(Record):
    """Something the reader must know before trusting a number or a sentence."""

    code: str
    """Stable name, e.g. ``"out_of_distribution"``, ``"organ_absent"``, ``"cut_by_edge"``, ``"looks_like_mr"``."""
    message: str
    severity: Severity = "warning"
    organ: str | None = None


class GateItem(Record):
    """A guess about a scan."""

    value: str
    confidence: float = Field(ge=0, le=1)
    why: str
    """What it rests on."""


class InputGate(Record):
    """What a scan seems to be: to be looked at before anything is read from it."""

    modality: GateItem
    contrast_phase: GateItem
    field_of_view: GateItem
    orientation: GateItem
    slice_thickness: GateItem


class ScanInfo(Record):
    """What is known of a CT after opening it."""

    scan_id: str
    """Hash of the RAS+ voxels and affine: the same scan has the same id whatever file format held it."""
    file_name: str
    source_format: Literal["nifti", "dicom"]
    shape: tuple[int, int, int]
    """Voxels along x, y, z after reorientation to RAS+."""
    spacing_mm: tuple[float, float, float]
    affine: tuple[tuple[float, float, float, float], ...]
    """4 × 4, RAS+ voxel index → mm."""
    source_axcodes: str
    """Orientation as stored, e.g. ``"LPS"``."""
    hu_min: float
    hu_max: float
    padding_hu: float | None = None
    """Value outside the scanner's field of view that was replaced by air (−1024 HU), e.g. −3024."""
    gate: InputGate | None = None
    """Guesses of the ``open_scan`` tool."""
    notices: tuple[Notice, ...] = ()


class SegmentationInfo(Record):
    """Where a label map came from."""

    scan_id: str
    source: Literal["official", "nano", "given"]
    task: str
    """TotalSegmentator task, e.g. ``"total"``, ``"total_fast"``; ``"given"`` for a label map of the user's."""
    weights_id: str
    """Hash of the weights, or of the given label map."""
    organs_present: tuple[str, ...]
    """Table 10 names with at least one voxel."""
    organs_unknown: tuple[str, ...] = ()
    """Table 10 names that the weights were never trained to find: that they aren't there says nothing."""
    organs_deferred: tuple[str, ...] = ()
    """Table 10 names that networks find which have not run: ``segment_organs`` with one of them runs those."""
    seconds: float
    from_cache: bool = False
    notices: tuple[Notice, ...] = ()


class Measurement(Record):
    """One organ (Table 10) or one TotalSegmentator structure, measured on the CT's own grid."""

    organ: str
    level: Literal["organ", "structure"] = "organ"
    structures: tuple[str, ...] = ()
    """TotalSegmentator classes that make it up."""
    present: bool
    voxels: int = 0
    volume_ml: float | None = None
    mean_hu: float | None = None
    sd_hu: float | None = None
    """Population standard deviation."""
    min_hu: float | None = None
    max_hu: float | None = None
    percentiles_hu: dict[str, float] | None = None
    """Keys ``p05 p25 p50 p75 p95``."""
    largest_diameter_mm: float | None = None
    """Largest distance between two voxel centres, in 3-D."""
    largest_axial_diameter_mm: float | None = None
    """The same within one axial slice."""
    bbox_ijk: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    """Inclusive minimum and maximum voxel index."""
    centroid_ijk: tuple[float, float, float] | None = None
    centroid_mm: tuple[float, float, float] | None = None
    cut_by_edge: tuple[str, ...] = ()
    """Faces of the scan that the mask touches: ``left right anterior posterior superior inferior``."""


class Classification(Record):
    """Cls on an organ's mean-pooled ROI tokens (paper 3.1)."""

    organ: str
    present: bool
    p_abnormal: float | None = Field(default=None, ge=0, le=1)
    label: Literal["normal", "abnormal", "not assessed"]
    checkpoint_id: str
    notices: tuple[Notice, ...] = ()


class ZoomTokens(Record):
    """An organ's tokens from its own crop of the CT, at higher resolution than those of the whole scan."""

    uri: str
    """``tokens://…/zoom``, as in ``TokenSet``."""
    count: int
    cells: int
    """Patches of the crop's (8, 16, 16) grid that the organ covers, before pooling."""
    side_mm: float
    """The crop's field of view in-plane."""


class TokenSet(Record):
    """Tokens in LLM space, kept as a resource and never inline."""

    uri: str
    """``tokens://…``; the resource is a safetensors file with one tensor ``tokens`` [n, hidden]."""
    scan_id: str
    organ: str | None
    """``None``: global tokens τ_g of the whole scan."""
    count: int
    hidden_size: int
    checkpoint_id: str
    cells: int = 0
    """Patches of the (8, 16, 16) grid that the organ covers, before pooling."""
    zoom: ZoomTokens | None = None
    """Further tokens of the organ from its crop; ``None`` where the checkpoint doesn't zoom into it."""
    from_cache: bool = False
    notices: tuple[Notice, ...] = ()


class Picture(Record):
    """A windowed slice through an organ with its outline."""

    uri: str
    """``picture://…``; the resource is a PNG."""
    organ: str
    plane: Literal["axial", "coronal", "sagittal"]
    slice_index: int
    """Voxel index along the plane's normal, RAS+ grid."""
    position_mm: float
    width: int
    height: int


class OrganEvidence(Record):
    """What a round was shown for one organ."""

    organ: str
    asked_as: str
    """The words that named it, e.g. ``"pancreatic tail"``."""
    present: bool
    kind: EvidenceKind
    tokens: TokenSet | None = None
    pictures: tuple[Picture, ...] = ()
    measurement: Measurement | None = None
    classification: Classification | None = None
    uris: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()


class Usage(Record):
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Round(Record):
    """R_cot^i: one LLM call with its evidence (eq. 4, 6, 7)."""

    index: int
    """1 is the first look at the whole scan."""
    prompt: str
    """The text of the new user message, evidence shown as ``[τ_g]`` and ``[τ_l liver]``."""
    text: str
    evidence: tuple[OrganEvidence, ...] = ()
    organs_mentioned: tuple[str, ...] = ()
    new_organs: tuple[str, ...] = ()
    usage: Usage = Usage()
    seconds: float = 0.0


class TNM(Record):
    """Clinical TNM read from the text and checked against AJCC 8; parts that can't be assessed are TX/NX/MX."""

    primary_organ: str | None = None
    t: str = "TX"
    n: str = "NX"
    m: str = "MX"
    stage: str | None = None
    reasons: tuple[str, ...] = ()
    """Why a part is X, or how the stage follows."""
    flags: tuple[str, ...] = ()
    """Impossible or contradictory statements found in the text; never corrected silently."""


class Claim(Record):
    """One sentence of the answer with what it rests on."""

    sentence: str
    organs: tuple[str, ...] = ()
    evidence_uris: tuple[str, ...] = ()


class Versions(Record):
    tumorchain_agent: str
    checkpoint_id: str | None
    llm: str
    segmentation: str
    python: str
    torch: str
    totalsegmentator: str


class Answer(Record):
    """``answer.json``."""

    format_version: int = FORMAT_VERSION
    disclaimer: str = DISCLAIMER
    question: str
    scan: ScanInfo
    segmentation: SegmentationInfo | None
    evidence_kind: EvidenceKind
    conclusion: str
    tnm: TNM
    claims: tuple[Claim, ...]
    rounds: tuple[Round, ...]
    organs_examined: tuple[str, ...]
    organs_absent: tuple[str, ...]
    """Organs that were asked for or reached, and any of the five digestive organs, that are not in the scan:
    not assessed, which is not normal."""
    stopped_because: Literal["no new organ", "max_rounds"]
    notices: tuple[Notice, ...]
    usage: Usage
    seconds: float
    timings_s: dict[str, float]
    versions: Versions
    thread_id: str
