"""A DICOM SEG → masks on a CT's grid, frame by frame from the SEG's own geometry; overlaps are kept."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.dicom_frames import UNREADABLE, pydicom_or_remedy
from tumorchain_agent.tools.dicom_source import no_names_in_logs
from tumorchain_agent.tools.grid import Affine
from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.snomed import CODE_VALUES, SCHEME, structure_of

SEG_STORAGE: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation, and Label Map Segmentation."""
_OFF_GRID: Final = 0.1
"""A frame may lie this share of a voxel away from the CT's slices."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a SEG on a CT's grid."""

    number: int
    label: str
    structure: int | None
    """TotalSegmentator id by its codes, or ``None`` for what isn't one of the 117."""
    shape: tuple[int, int, int]
    voxels: NDArray[np.int64]
    """Flat indices [n] into [x, y, z], x fastest; each once."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[x, y, z], made anew at each call: a whole body's segments as masks would fill any memory."""
        mask = np.zeros(self.shape, bool, order="F")
        mask.ravel(order="K")[self.voxels] = True
        return mask


def is_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG, by its meta header."""
    with path.open("rb") as file:
        start = file.read(1024)
    return start[128:132] == b"DICM" and any(uid.encode() in start for uid in SEG_STORAGE)


def read_seg(path: Path, affine: Affine, shape: tuple[int, int, int]) -> list[Segment]:
    """The segments on the RAS+ grid of a CT; nothing is resampled.

    Raises LabelMapError for a file that is no SEG, a fractional one, or a frame that lies beside the grid.
    """
    return segments_of(_load(path), affine, shape, path.name)


def segments_of(dataset: Any, affine: Affine, shape: tuple[int, int, int], name: str) -> list[Segment]:
    """The same of a dataset in memory."""
    try:
        if dataset.SegmentationType == "FRACTIONAL" and not _all_or_nothing(dataset):
            raise LabelMapError(f"{name} is a fractional SEG; pass one of whole voxels (BINARY or LABELMAP)")
        described = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
        found = _voxels(dataset, affine, shape, name)
        return [
            Segment(number, str(item.get("SegmentLabel", "")), _structure(item), shape, found[number])
            for number, item in described.items()
            if number in found
        ]
    except UNREADABLE as cause:
        raise LabelMapError(
            f"{name} is a DICOM SEG that can't be read ({type(cause).__name__}); export it again"
        ) from cause


def _load(path: Path) -> Any:
    pydicom = pydicom_or_remedy(f"{path.name} is a DICOM SEG, which")
    with no_names_in_logs():
        try:
            dataset = pydicom.dcmread(path)
        except (*UNREADABLE, pydicom.errors.InvalidDicomError) as cause:
            raise LabelMapError(f"{path.name} is no readable DICOM; pass a SEG or a .nii.gz") from cause
    if dataset.get("SOPClassUID") not in SEG_STORAGE:
        raise LabelMapError(f"{path.name} is DICOM but no SEG; pass a SEG or a .nii.gz label map")
    return dataset


def _all_or_nothing(dataset: Any) -> bool:
    values = np.unique(dataset.pixel_array)
    return bool(np.isin(values, (0, int(dataset.MaximumFractionalValue))).all())


def _voxels(
    dataset: Any, affine: Affine, shape: tuple[int, int, int], name: str
) -> dict[int, NDArray[np.int64]]:
    """Segment number → its voxels, a frame at a time."""
    iter_pixels: Any = import_module("pydicom.pixels").iter_pixels
    label_map = dataset.SegmentationType == "LABELMAP"
    numbers = [int(item.SegmentNumber) for item in dataset.SegmentSequence]
    parts: dict[int, list[NDArray[np.int64]]] = {number: [] for number in numbers if number or not label_map}
    shared = dataset.SharedFunctionalGroupsSequence[0]
    with no_names_in_logs():
        for plane, own in zip(iter_pixels(dataset), dataset.PerFrameFunctionalGroupsSequence, strict=True):
            view = _FrameGrid(own, shared, affine, shape, plane.shape, name)
            if label_map:
                for number in np.unique(plane):
                    if int(number) in parts:
                        parts[int(number)].append(view.place(plane == number))
            else:
                number = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
                parts[number].append(view.place(plane > 0))
    empty = np.zeros(0, np.int64)
    return {number: np.unique(np.concatenate([empty, *found])) for number, found in parts.items()}


class _FrameGrid:
    """Where the pixels [row, column] of one frame lie in a grid [x, y, z]: whole steps along its axes."""

    def __init__(
        self,
        own: Any,
        shared: Any,
        affine: Affine,
        shape: tuple[int, int, int],
        size: tuple[int, int],
        name: str,
    ) -> None:
        def group(key: str) -> Any:
            return (own.get(key) or shared.get(key))[0]

        to_ras = np.array([-1.0, -1.0, 1.0])
        cosines = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, np.float64).reshape(
            2, 3
        )
        spacing = group("PixelMeasuresSequence").PixelSpacing
        origin = np.array(group("PlanePositionSequence").ImagePositionPatient, np.float64) * to_ras
        inverse = np.asarray(np.linalg.inv(affine), np.float64)
        start = grid.apply_affine(inverse, origin)
        down = inverse[:3, :3] @ (cosines[1] * to_ras * float(spacing[0]))
        along = inverse[:3, :3] @ (cosines[0] * to_ras * float(spacing[1]))
        last = start + down * (size[0] - 1) + along * (size[1] - 1)
        end = np.rint(start) + np.rint(down) * (size[0] - 1) + np.rint(along) * (size[1] - 1)
        apart = max(np.abs(start - np.rint(start)).max(), np.abs(last - end).max())
        strides = np.array([1, shape[0], shape[0] * shape[1]])
        self._start, self._down, self._along = (int(np.rint(axis) @ strides) for axis in (start, down, along))
        inside = all(((point > -0.5) & (point < np.array(shape) - 0.5)).all() for point in (start, last))
        if apart > _OFF_GRID or not inside:
            where = "outside it" if apart <= _OFF_GRID else f"{apart:.2f} voxels off"
            raise LabelMapError(
                f"{name} is not on the grid of the scan (a frame lies {where}); pass the SEG made from this scan"
            )

    def place(self, plane: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Flat indices of the pixels that are set, x fastest."""
        rows, columns = np.nonzero(plane)
        return np.asarray(self._start + rows * self._down + columns * self._along, np.int64)


def _structure(item: Any) -> int | None:
    """The id of the structure that a segment's codes name."""
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    region = (item.get("AnatomicRegionSequence") or [None])[0]
    sides = kind.get("SegmentedPropertyTypeModifierCodeSequence")
    if not sides and region is not None:
        sides = region.get("AnatomicRegionModifierSequence")
    return structure_of(
        _sct(kind), _sct(region) if region is not None else None, _sct(sides[0]) if sides else None
    )


def _sct(code: Any) -> str:
    """The SNOMED CT value of a code; older objects have SNOMED RT codes."""
    from pydicom.sr.coding import Code

    value, scheme = str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
    if scheme == SCHEME:
        return value
    old = Code(value, scheme, "")
    return next((known for known in CODE_VALUES if Code(known, SCHEME, "") == old), "")


def as_labels(
    segments: list[Segment], shape: tuple[int, int, int], name: str
) -> tuple[NDArray[np.uint8], int]:
    """TotalSegmentator ids [x, y, z], and how many voxels several structures claimed: the smallest got them.

    Segments that are none of the 117 structures are left out; LabelMapError when all are.
    """
    known = [segment for segment in segments if segment.structure is not None]
    if not known:
        listed = ", ".join(segment.label[:30] for segment in segments[:6]) or "none"
        raise LabelMapError(
            f"{name} holds no segment with the SNOMED CT code of one of the {len(STRUCTURES)} structures of "
            f"TotalSegmentator (it has: {listed}); pass a SEG of organs or a .nii.gz label map"
        )
    labels = np.zeros(shape, np.uint8, order="F")
    claimed = np.zeros(shape, np.uint8, order="F")
    for segment in sorted(known, key=lambda each: -each.voxels.size):
        labels.ravel(order="K")[segment.voxels] = segment.structure or 0
        claimed.ravel(order="K")[segment.voxels] += 1
    return labels, int(np.count_nonzero(claimed > 1))
