"""A label map as DICOM SEG: one segment for each structure that was found, on the source series' own slices."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent import __version__
from tumorchain_agent.errors import OutputError
from tumorchain_agent.records import DISCLAIMER, SegmentationInfo
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.dicom_frames import pydicom_or_remedy
from tumorchain_agent.tools.dicom_source import MANUFACTURER, SourceSeries, no_names_in_logs
from tumorchain_agent.tools.grid import Affine
from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.snomed import CODES, SCHEME, Code

MODEL_NAME: Final = "tumorchain-agent"
_SEG_SERIES: Final = 900


@dataclass(frozen=True)
class Provenance:
    """What made an object, as its header tells."""

    checkpoint_id: str | None
    segmentation: SegmentationInfo
    totalsegmentator: str
    """Version."""
    created: datetime

    @property
    def software(self) -> tuple[str, ...]:
        """SoftwareVersions."""
        checkpoint = f"checkpoint {self.checkpoint_id}" if self.checkpoint_id else "no checkpoint"
        return (
            f"tumorchain-agent {__version__}",
            checkpoint[:64],
            f"TotalSegmentator {self.totalsegmentator}"[:64],
        )


def on_source_grid(labels: NDArray[np.uint8], affine: Affine, source: SourceSeries) -> NDArray[np.uint8]:
    """Labels [x, y, z] on a RAS+ grid → [slice, row, column] of the source, permuted and flipped only.

    Raises OutputError when the source lies on another grid.
    """
    turned, own = grid.reorient_like(labels, affine, source.affine)
    difference = grid.grid_difference(own, turned.shape, source.affine, source.shape, 0.01)
    if difference:
        raise OutputError(
            f"the label map does not lie on the slices of the DICOM series: {difference}; ask again with --fresh"
        )
    return np.ascontiguousarray(turned.T)


def make_seg(source: SourceSeries, labels: NDArray[np.uint8], affine: Affine, provenance: Provenance) -> Any:
    """The SEG (a pydicom dataset) of labels [x, y, z], TotalSegmentator ids, on the RAS+ grid of ``affine``.

    Raises OutputError when nothing was segmented or the source lacks what a SEG needs.
    """
    pydicom_or_remedy("DICOM SEG")
    highdicom: Any = import_module("highdicom")
    stack = on_source_grid(labels, affine, source)
    present = [int(key) for key in np.unique(stack) if key]
    if not present:
        raise OutputError("nothing was segmented, so there is no DICOM SEG to write; leave out --dicom")
    numbers = np.zeros(256, np.uint8)
    numbers[present] = np.arange(1, len(present) + 1)
    algorithm = _algorithm(highdicom, provenance)
    described = [
        _segment(highdicom, number, STRUCTURES[key], algorithm) for number, key in enumerate(present, start=1)
    ]
    with no_names_in_logs():
        try:
            return highdicom.seg.Segmentation(
                source_images=list(source.datasets),
                pixel_array=_in_frame_order(numbers[stack], source),
                segmentation_type="BINARY",
                segment_descriptions=described,
                series_instance_uid=highdicom.UID(),
                series_number=_SEG_SERIES,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                manufacturer_model_name=MODEL_NAME,
                software_versions=provenance.software,
                device_serial_number=provenance.segmentation.weights_id[:64] or "unknown",
                content_description=DISCLAIMER,
                content_label="ORGANS",
                content_date=provenance.created.date(),
                content_time=provenance.created.time(),
                series_description=f"Organs. {DISCLAIMER}",
                specific_character_set="ISO_IR 192",
            )
        except (AttributeError, TypeError, ValueError) as cause:
            raise unfit_source(cause) from None


def unfit_source(cause: Exception) -> OutputError:
    """An attribute's name may be told, its value never."""
    named = f" (attribute {cause.name})" if isinstance(cause, AttributeError) and cause.name else ""
    return OutputError(
        f"the DICOM series lacks or garbles what a DICOM SEG or SR must copy from it{named}; "
        "export it again, or leave out --dicom"
    )


def _in_frame_order(stack: NDArray[np.uint8], source: SourceSeries) -> NDArray[np.uint8]:
    """A multi-frame source wants a plane for each of its frames, in its order."""
    if source.frames is None:
        return stack
    count = int(source.datasets[0].NumberOfFrames)
    ordered = np.zeros((count, *stack.shape[1:]), np.uint8)
    ordered[list(source.frames)] = stack
    return ordered


def _algorithm(highdicom: Any, provenance: Provenance) -> Any:
    info = provenance.segmentation
    given = info.source == "given"
    return highdicom.AlgorithmIdentificationSequence(
        name="label map given by the user" if given else f"TotalSegmentator {info.task}"[:64],
        family=import_module("pydicom.sr.codedict").codes.DCM.ArtificialIntelligence,
        version=provenance.totalsegmentator or "unknown",
        parameters={"source": info.source, "weights": info.weights_id},
    )


def _segment(highdicom: Any, number: int, structure: str, algorithm: Any) -> Any:
    codes = CODES[structure]
    kind = concept(highdicom, codes.type)
    sites = None
    if codes.site is not None:
        sites = [concept(highdicom, codes.site)]
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure,
        segmented_property_category=concept(highdicom, codes.category),
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=structure,
        anatomic_regions=sites,
        display_color=highdicom.color.CIELabColor.from_rgb(*codes.rgb),
    )
    if codes.side is not None:
        side = [concept(highdicom, codes.side)]
        if sites is None:
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
        else:
            segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
    return segment


def concept(highdicom: Any, code: Code) -> Any:
    """A SNOMED CT code for a DICOM object."""
    return highdicom.sr.CodedConcept(code.value, SCHEME, code.meaning)
