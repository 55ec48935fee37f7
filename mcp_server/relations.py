"""Lesions of a caller's mask, how two structures of a scan lie to each other, and two scans side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import InputError, LabelMapError
from tumorchain_agent.mcp_server import notices
from tumorchain_agent.mcp_server.guard import Guard
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.measuring import Measuring
from tumorchain_agent.mcp_server.results import Comparison, LesionSet
from tumorchain_agent.mcp_server.scans import Scans
from tumorchain_agent.mcp_server.segmentations import Segmentations
from tumorchain_agent.records import SegmentationInfo
from tumorchain_agent.tools.organs import ORGANS, STRUCTURES, organ_ids, resolve_organ

if TYPE_CHECKING:
    from tumorchain_agent.tools.contact import Contact

LESION = "lesion"


class Relations:
    """Computed anew at each call: seconds, and a mask's file may change."""

    def __init__(
        self, scans: Scans, segmentations: Segmentations, measuring: Measuring, guard: Guard
    ) -> None:
        self._scans = scans
        self._segmentations = segmentations
        self._measuring = measuring
        self._guard = guard

    def lesions(self, scan_id: str, mask: str, segmentation_id: str | None, job: Job) -> LesionSet:
        """Raises LabelMapError for a mask that isn't one of this scan."""
        from tumorchain_agent.tools.lesions import measure_lesions

        inside = self._mask(scan_id, mask, job)
        ct = self._scans.ct(scan_id, job)
        labels = None
        if segmentation_id is not None:
            labels = self._segmentations.label_map(scan_id, segmentation_id, job)
        job.progress("measuring lesions", 0.5)
        found, count = measure_lesions(ct, inside, labels)
        return LesionSet(scan_id=scan_id, segmentation_id=segmentation_id, count=count, lesions=found)

    def contact(
        self, scan_id: str, a: str, b: str, mask: str | None, segmentation_id: str, job: Job
    ) -> Contact:
        """``"lesion"`` is the caller's mask. Raises UnknownOrganError, LabelMapError."""
        from tumorchain_agent.tools.contact import measure_contact

        if (mask is None) == (LESION in (a, b)):
            raise InputError(
                f'one of a and b is "{LESION}" exactly when a mask is passed; name two structures, or '
                f'pass mask and "{LESION}"'
            )
        given = self._mask(scan_id, mask, job) if mask is not None else None
        labels = self._segmentations.label_map(scan_id, segmentation_id, job).labels
        first, second = (
            given if name == LESION and given is not None else _inside(labels, name) for name in (a, b)
        )
        affine = np.array(self._scans.info(scan_id).affine)
        job.progress("measuring contact", 0.5)
        return measure_contact(first, second, affine, name_a=a, name_b=b)

    def compare(
        self, segmented: tuple[SegmentationInfo, SegmentationInfo], wanted: Sequence[str] | None, job: Job
    ) -> Comparison:
        """Earlier and later scan, organ by organ; without ``wanted`` organs those that either scan holds."""
        from tumorchain_agent.tools.compare import (
            compare_organs,
            doubts,
            otherwise_segmented,
            segmented_alike,
        )

        earlier, later = (
            self._measuring.measurements(
                each.scan_id, each.weights_id, job.part(0.5 * part, 0.5 * part + 0.5)
            )[0]
            for part, each in enumerate(segmented)
        )
        names = wanted or [
            organ for organ in ORGANS.values() if earlier[organ].present or later[organ].present
        ]
        changes = compare_organs(earlier, later, names, alike=segmented_alike(*segmented))
        first, second = (self._scans.info(each.scan_id) for each in segmented)
        limits = [each.notices for each in segmented]
        return Comparison(
            earlier_scan_id=segmented[0].scan_id,
            later_scan_id=segmented[1].scan_id,
            changes=changes,
            notices=notices.unique(*limits, otherwise_segmented(*segmented), doubts(first, second, changes)),
        )

    def _mask(self, scan_id: str, mask: str, job: Job) -> NDArray[np.bool_]:
        from tumorchain_agent.tools.lesions import load_mask

        path = self._guard.read(mask, LabelMapError)
        return load_mask(path, self._scans.ct(scan_id, job))


def _inside(labels: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    """A TotalSegmentator structure by its name, else an organ."""
    ids = [key for key, structure in STRUCTURES.items() if structure == name] or list(
        organ_ids(resolve_organ(name))
    )
    chosen = np.zeros(256, bool)
    chosen[ids] = True
    return chosen[labels]
