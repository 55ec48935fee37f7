"""What the tools return as structured content, where one of the shared records isn't enough.

Each holds shared records unchanged, so that a client may parse a part by itself, e.g.
``Measurement.model_validate(result.structured_content["measurements"][0])``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tumorchain_agent.records import (
    Claim,
    Classification,
    Measurement,
    Notice,
    OrganEvidence,
    Picture,
    Record,
    SegmentationInfo,
)
from tumorchain_agent.tools.compare import OrganChange
from tumorchain_agent.tools.lesions import Lesion


class OrganInfo(Record):
    """One of the 56 organs of Table 10."""

    organ_id: int
    """1..56, the id in the merged label map."""
    name: str
    """What the other tools take as ``organ``."""
    display_name: str
    synonyms: tuple[str, ...] = ()
    structures: tuple[str, ...]
    """TotalSegmentator classes that it merges."""
    present: bool | None = None
    """``None``: this scan hasn't been segmented (or no scan was named)."""
    segmentable: bool
    """Whether the weights that would be used here can find it."""
    unavailable_because: str | None = None


class SegmentationChoice(Record):
    """One way to get a label map on this machine."""

    source: Literal["official", "nano", "given"]
    available: bool
    would_be_used: bool = False
    """What ``segment_organs`` takes when no ``masks`` are passed."""
    detail: str
    """What it is when available; why not, and what to do, when it isn't."""


class LicensedTask(Record):
    """A task of TotalSegmentator that this server doesn't run."""

    task: str
    why: str


class OrganList(Record):
    """Result of ``list_organs``."""

    organs: tuple[OrganInfo, ...]
    segmentation_choices: tuple[SegmentationChoice, ...]
    needs_licence: tuple[LicensedTask, ...] = ()
    """What TotalSegmentator segments besides, with a licence number of its authors only."""
    scan_id: str | None = None
    segmentation_id: str | None = None
    """The label map that ``present`` was read from."""
    notices: tuple[Notice, ...] = ()


class MaskLink(Record):
    """A binary mask as a resource: ``.nii.gz``, uint8, on the CT's RAS+ grid."""

    organ: str
    uri: str


class Segmentation(Record):
    """Result of ``segment_organs``."""

    segmentation_id: str
    """Names this label map in the other tools; derived from the weights, or from the given file."""
    info: SegmentationInfo
    label_map_uri: str
    """The whole label map, TotalSegmentator ids 1..117."""
    masks: tuple[MaskLink, ...]
    organs_absent: tuple[str, ...] = ()
    """Asked for but not in the scan: not assessed, which is not normal."""


class MeasurementSet(Record):
    """Result of ``measure_organs``."""

    scan_id: str
    segmentation_id: str
    measurements: tuple[Measurement, ...]
    uris: dict[str, str] = Field(default_factory=dict)
    """Organ → ``measurement://…``, the same record as a JSON resource."""
    from_cache: bool = False
    notices: tuple[Notice, ...] = ()


class ClassificationSet(Record):
    """Result of ``classify_abnormality``."""

    scan_id: str
    segmentation_id: str
    checkpoint_id: str
    classifications: tuple[Classification, ...]
    uris: dict[str, str] = Field(default_factory=dict)
    """Organ → ``classification://…``, the same record as a JSON resource."""
    from_cache: bool = False
    notices: tuple[Notice, ...] = ()


class PictureSet(Record):
    """Result of ``view_organ``."""

    scan_id: str
    segmentation_id: str
    organ: str
    present: bool
    pictures: tuple[Picture, ...]
    from_cache: bool = False
    notices: tuple[Notice, ...] = ()


class LesionSet(Record):
    """Result of ``measure_lesions``."""

    scan_id: str
    segmentation_id: str | None
    """The label map that ``organ`` was read from; ``None``: the scan hasn't been segmented."""
    count: int
    """Connected parts of the mask; the largest are listed."""
    lesions: tuple[Lesion, ...]
    notices: tuple[Notice, ...] = ()


class Comparison(Record):
    """Result of ``compare_scans``."""

    earlier_scan_id: str
    later_scan_id: str
    changes: tuple[OrganChange, ...]
    notices: tuple[Notice, ...] = ()


class Explanation(Record):
    """Result of ``explain``: one sentence of an answer with all that it rests on."""

    answer_id: str
    question: str
    number: int
    claim: Claim
    evidence: tuple[OrganEvidence, ...]
    """What the language model was shown of the organs that the sentence names."""
    rounds: tuple[int, ...]
    """The rounds that were shown it."""
    organs_without_evidence: tuple[str, ...]
    """Named by the sentence, never examined: nothing stands behind what it says of them."""
    notices: tuple[Notice, ...] = ()


class JobProgress(Record):
    """How far a job is."""

    phase: str
    fraction: float = Field(ge=0, le=1)


class JobStatus(Record):
    """What a call gets that didn't wait for the end, and result of ``get_job`` and ``cancel_job``."""

    job_id: str
    tool: str
    status: Literal["running", "done", "failed", "cancelled"]
    progress: JobProgress
    started_at: float
    """Seconds since 1970."""
    result: dict[str, Any] | None = None
    """In ``get_job`` once it is done: the structured content of the tool, by the tool's own schema."""


class JobList(Record):
    """Result of ``list_jobs``."""

    jobs: tuple[JobStatus, ...]
    """Those under way first, then the newest."""
