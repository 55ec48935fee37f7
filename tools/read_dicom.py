"""A DICOM series, from a folder or a zip → StoredVolume. Slices are ordered by position, not name or UID."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import ScanError
from tumorchain_agent.records import Notice
from tumorchain_agent.tools.dicom_headers import Slice, count_text, quiet_itk, read_headers, undecodable
from tumorchain_agent.tools.dicom_zip import MAX_FILES as MAX_FILES
from tumorchain_agent.tools.dicom_zip import dicom_folder
from tumorchain_agent.tools.grid import Affine, StoredVolume, format_shape

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN = 0.1
"""A slice may lie this share of the slice distance away from an even stack."""
_TILT_DEGREES = 0.5
"""Stacks that lean more than this are named."""
_LISTED = 6


@dataclass(frozen=True)
class Stack:
    """The slices of one series, or of one phase of a series, by position along their normal."""

    slices: tuple[Slice, ...]
    name: str
    """For ``--series``: SeriesNumber, with a letter where several have the same, e.g. ``"3b"``."""

    @property
    def first(self) -> Slice:
        return self.slices[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return (*self.first.size, len(self.slices))

    def describe(self) -> str:
        apart = np.ptp([item.position for item in self.slices]) / (len(self.slices) - 1)
        return (
            f"series {self.name} {self.first.modality}: {len(self.slices)} slices "
            f"{format_shape(self.first.size)}, {apart:.3g} mm apart"
        )


def read_dicom(path: Path, *, volume: int | None, max_voxels: int) -> StoredVolume:
    """The CT series below a folder or in a zip as [column, row, slice] float32 HU with its RAS affine.

    ``volume`` picks one of several series, from 0 in the order of ``list_series``. Other objects (SEG,
    RTSTRUCT, reports), images of other modalities, localizers and single pictures are left out with a notice.
    Raises ScanError for no CT series, several series, missing, damaged or doubled slices.
    """
    with dicom_folder(path, 4 * max_voxels) as folder:
        stack, notices = find_stack(folder, path.name, volume, 4 * max_voxels)
        affine = stack_affine(stack, path.name)
        if np.prod(stack.shape, dtype=object) > max_voxels:
            raise ScanError(
                f"{path.name} holds {format_shape(stack.shape)} voxels, more than the limit of {max_voxels}; "
                "resample it, or raise TUMORCHAIN_MAX_SCAN_VOXELS"
            )
        tilt = _tilt_notice(affine, path.name)
        unknown = _modality_notice(stack, path.name)
        return StoredVolume(_pixels(stack), affine, notices=(*notices, *unknown, *tilt))


def list_series(path: Path, *, max_voxels: int) -> list[Stack]:
    """The stacks that ``volume`` counts, in a folder or zip. Raises ScanError for none."""
    with dicom_folder(path, 4 * max_voxels) as folder:
        return _stacks(read_headers(folder, path.name, 4 * max_voxels)[0], path.name)


def pick_series(path: Path, wanted: str, *, max_voxels: int) -> int:
    """``--series``: a stack's name or its SeriesInstanceUID → its index in ``list_series``.

    Raises ScanError, listing what there is, for none or several.
    """
    stacks = list_series(path, max_voxels=max_voxels)
    found = [index for index, stack in enumerate(stacks) if wanted in (stack.name, stack.first.series)]
    if len(found) != 1:
        problem = f"has {len(found)} stacks of" if found else "has no"
        raise ScanError(f"{path.name} {problem} series {wanted[:64]} {_choice(stacks)}")
    return found[0]


def find_stack(
    folder: Path, name: str, volume: int | None, max_bytes: int
) -> tuple[Stack, tuple[Notice, ...]]:
    """The only stack below ``folder``, or the one of that index, with a notice of what was left out.

    Deflated files may unpack to ``max_bytes`` in all.
    """
    slices, skipped = read_headers(folder, name, max_bytes)
    stacks = _stacks(slices, name)
    if volume is not None and volume >= len(stacks):
        raise ScanError(f"{name} is DICOM and has no volume {volume} {_choice(stacks)}")
    if volume is None and len(stacks) > 1:
        raise ScanError(f"{name} holds {len(stacks)} series {_choice(stacks)}")
    stack = stacks[volume or 0]
    return stack, _left_out_notice(skipped, slices, stacks, stack, name)


def _stacks(slices: list[Slice], name: str) -> list[Stack]:
    groups: dict[tuple[object, ...], list[Slice]] = {}
    for item in _ct_images(slices, name):
        groups.setdefault(item.group, []).append(item)
    found = [part for group in groups.values() if len(group) > 1 for part in _phases(group)]
    if not found:
        raise ScanError(f"{name} holds single slices only; pass the folder of one CT series")
    return _named(found)


def _ct_images(slices: list[Slice], name: str) -> list[Slice]:
    """Those of CT, else those that don't say what they are of; localizers where there is nothing else."""
    images = [item for item in slices if not item.localizer] or slices
    for modality in ("CT", ""):
        if found := [item for item in images if item.modality == modality]:
            return found
    kinds = count_text([f"{item.modality} image" for item in images])
    raise ScanError(
        f"{name} holds no CT, but {kinds}, by the Modality of their headers; pass the folder of one CT series"
    )


def _modality_notice(stack: Stack, name: str) -> tuple[Notice, ...]:
    if stack.first.modality:
        return ()
    text = f"{name} doesn't say its modality; it is read as CT, and HU and findings hold only if it is one"
    return (Notice(code="modality_unknown", message=text),)


def _phases(group: list[Slice]) -> list[list[Slice]]:
    """One stack, or one for each phase where places repeat and a phase holds each place once."""
    if not _repeats(group):
        return [group]
    for index in range(len(group[0].phase)):
        parts: dict[str, list[Slice]] = {}
        for item in group:
            parts.setdefault(item.phase[index], []).append(item)
        if len(parts) > 1 and not any(len(part) < 2 or _repeats(part) for part in parts.values()):
            return [parts[key] for key in sorted(parts, key=_numeric)]
    return [group]


def _repeats(group: Iterable[Slice]) -> bool:
    return bool(np.diff(sorted(item.position for item in group)).min() < 0.01)


def _numeric(text: str) -> tuple[float, str]:
    return (float(text) if text.isdigit() else float("inf"), text)


def _named(groups: list[list[Slice]]) -> list[Stack]:
    groups = sorted(groups, key=lambda group: _numeric(group[0].number))
    numbers = [group[0].number for group in groups]
    stacks = []
    for index, group in enumerate(groups):
        number = numbers[index]
        letter = _letter(numbers[:index].count(number)) if numbers.count(number) > 1 or not number else ""
        ordered = tuple(sorted(group, key=lambda item: item.position))
        stacks.append(Stack(ordered, f"{number}{letter}"))
    return stacks


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"-{index + 1}"


def _choice(stacks: list[Stack]) -> str:
    """What there is and how to choose."""
    listed = "; ".join(stack.describe() for stack in stacks[:_LISTED])
    more = f"; and {len(stacks) - _LISTED} more" if len(stacks) > _LISTED else ""
    return f"({listed}{more}); choose one: --series {stacks[0].name}, in a tool call volume=0, and so on"


def _left_out_notice(
    skipped: list[str], slices: list[Slice], stacks: list[Stack], chosen: Stack, name: str
) -> tuple[Notice, ...]:
    in_stacks = {id(item) for stack in stacks for item in stack.slices}
    kinds = skipped + [_kind(item) for item in slices if id(item) not in in_stacks]
    kinds += [f"other series ({stack.name})" for stack in stacks if stack is not chosen]
    if not kinds:
        return ()
    text = f"{name}: left out {count_text(kinds)}, not part of the CT series"
    return (Notice(code="files_left_out", message=text, severity="info"),)


def _kind(item: Slice) -> str:
    return "localizer" if item.localizer else f"single {item.modality or 'DICOM'} image"


def stack_affine(stack: Stack, name: str) -> Affine:
    """[column, row, slice] → RAS mm. The third axis follows the origins, so gantry tilt is kept as shear."""
    ordered = stack.slices
    gaps = np.diff([item.position for item in ordered])
    if gaps.min() < 0.01:
        first, second = ordered[int(gaps.argmin())], ordered[int(gaps.argmin()) + 1]
        raise ScanError(
            f"{name} has two slices at one position ({first.path.name}, {second.path.name}), "
            "e.g. of two phases; pass a folder with one of them"
        )
    origins = np.stack([item.origin for item in ordered])
    step = (origins[-1] - origins[0]) / (len(ordered) - 1)
    even = origins[0] + np.arange(len(ordered))[:, None] * step
    if np.linalg.norm(origins - even, axis=1).max() > max(0.01, _UNEVEN * float(np.linalg.norm(step))):
        widest = int(np.abs(gaps - np.median(gaps)).argmax())
        raise ScanError(
            f"{name} lacks slices or is unevenly spaced ({gaps[widest]:.2f} mm between "
            f"{ordered[widest].path.name} and {ordered[widest + 1].path.name}, {np.median(gaps):.2f} mm "
            "elsewhere); export the whole series"
        )
    affine = np.eye(4)
    affine[:3, 0] = stack.first.direction[:, 0] * stack.first.spacing[0]
    affine[:3, 1] = stack.first.direction[:, 1] * stack.first.spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = origins[0]
    return np.asarray(_LPS_TO_RAS @ affine, np.float64)


def _tilt_notice(affine: Affine, name: str) -> tuple[Notice, ...]:
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = affine[:3, 2]
    cosine = abs(float(normal @ step)) / float(np.linalg.norm(normal) * np.linalg.norm(step))
    degrees = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if degrees < _TILT_DEGREES:
        return ()
    text = (
        f"{name} was scanned with a gantry tilt of {degrees:.1f}°: its slices lean, and are kept so, with nothing "
        "resampled; volumes and places are exact, but segmentation never learned from tilted scans"
    )
    return (Notice(code="gantry_tilt", message=text),)


def _pixels(stack: Stack) -> NDArray[Any]:
    if stack.first.frame is not None:
        return _frames(stack)
    sitk: Any = import_module("SimpleITK")

    columns, rows, _ = stack.shape
    values = np.empty(stack.shape, np.float32, order="F")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with quiet_itk():
        for index, item in enumerate(stack.slices):
            reader.SetFileName(str(item.path))
            try:
                image = reader.Execute()
            except RuntimeError as cause:
                raise undecodable(item.path) from cause
            values[:, :, index] = sitk.GetArrayViewFromImage(image).reshape(rows, columns).T
    return values


def _frames(stack: Stack) -> NDArray[Any]:
    from tumorchain_agent.tools.dicom_frames import frame_pixels

    values = np.empty(stack.shape, np.float32, order="F")
    for path in {item.path for item in stack.slices}:
        frames = frame_pixels(path)
        for index, item in enumerate(stack.slices):
            if item.path == path and item.frame is not None:
                values[:, :, index] = frames[item.frame].T
    return values
