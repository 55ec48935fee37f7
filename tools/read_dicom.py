"""A DICOM series, from a folder or a zip → StoredVolume. Slices are ordered by position, not name or UID."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import ScanError
from tumorchain_agent.records import Notice
from tumorchain_agent.tools.grid import StoredVolume, format_shape

MAX_FILES = 20_000
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN = 0.1
"""A slice may lie this share of the slice distance away from an even stack."""
_IMAGE_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.([\d.]+)")
"""The storage class in a file's meta header; 2 is CT, 4 is MR."""


@dataclass(frozen=True)
class Slice:
    """One single-frame DICOM image, from its header."""

    path: Path
    series: str
    title: str
    modality: str
    localizer: bool
    size: tuple[int, int]
    """Columns, rows."""
    spacing: tuple[float, float]
    direction: NDArray[np.float64]
    """3 × 3, columns: along a row, along a column, normal; LPS."""
    origin: NDArray[np.float64]
    """Centre of the first pixel, LPS mm."""

    @property
    def position(self) -> float:
        """mm along the slice normal."""
        return float(self.direction[:, 2] @ self.origin)

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for slices that can belong to one stack; works with blank UIDs too."""
        orientation = np.round(self.direction[:, :2], 3) + 0.0
        return (self.series, self.size, np.round(self.spacing, 4).tobytes(), orientation.tobytes())


def read_dicom_folder(folder: Path, *, max_voxels: int, name: str = "") -> StoredVolume:
    """The one CT series below ``folder`` as [column, row, slice] float32 HU with its RAS affine.

    Other objects (SEG, RTSTRUCT, reports), localizers and single pictures are left out with a notice.
    Raises ScanError for no series, several series, missing or doubled slices.
    """
    name = name or folder.name
    slices, skipped = _scan(folder, name)
    stack, left_out = _one_stack(slices, name)
    ordered = sorted(stack, key=lambda item: item.position)
    affine = _stack_affine(ordered, name)
    shape = (*ordered[0].size, len(ordered))
    if np.prod(shape, dtype=object) > max_voxels:
        raise ScanError(
            f"{name} holds {format_shape(shape)} voxels, more than the limit of {max_voxels}; "
            "resample it, or raise TUMORCHAIN_MAX_SCAN_VOXELS"
        )
    return StoredVolume(_pixels(ordered, shape), affine, notices=_left_out_notice(skipped + left_out, name))


def read_dicom_zip(path: Path, *, max_voxels: int) -> StoredVolume:
    """The one CT series in a zip, unpacked into a temporary folder that is removed again."""
    with tempfile.TemporaryDirectory(prefix="tumorchain-") as folder:
        _unpack(path, Path(folder), 4 * max_voxels)
        return read_dicom_folder(Path(folder), max_voxels=max_voxels, name=path.name)


def _unpack(path: Path, folder: Path, max_bytes: int) -> None:
    """Every file of the zip under a flat new name, so that no entry's path can lead out of ``folder``."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_entries(path, entries, max_bytes, shutil.disk_usage(folder).free)
            for number, entry in enumerate(entries):
                base = re.sub(r"[^\w.-]", "_", PurePosixPath(entry.filename).name)[-80:]
                with archive.open(entry) as source, (folder / f"{number:06d}_{base}").open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as cause:
        raise ScanError(f"{path.name} is not a readable zip ({cause}); zip the DICOM folder again") from cause


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], max_bytes: int, free: int) -> None:
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES:
        raise ScanError(f"{path.name} holds {len(entries)} files; zip the folder of one series only")
    if total > max_bytes:
        raise ScanError(
            f"{path.name} would unpack to {total / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB; "
            "zip the folder of one series only"
        )
    if total > free:
        raise ScanError(
            f"{path.name} needs {total / 1e9:.1f} GB of temporary space, {free / 1e9:.1f} GB are free; "
            "unpack it elsewhere and pass the folder"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise ScanError(f"{path.name} is protected by a password; unpack it and pass the folder")


def _files(folder: Path, name: str) -> Iterator[Path]:
    count = 0
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            count += 1
            if count > MAX_FILES:
                raise ScanError(f"{name} holds more than {MAX_FILES} files; pass the folder of one series")
            if not file.startswith((".", "DICOMDIR")):
                yield Path(parent, file)


def _may_be_dicom(path: Path) -> bool:
    """By the preamble; without one, only files named like DICOM are tried."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as cause:
        raise ScanError(f"{path.name} can't be read ({cause.strerror}); check its permissions") from cause
    bare = path.suffix.lower() in (".dcm", ".ima", "") and len(start) == 132
    return start[128:] == b"DICM" or bare


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """ITK warns on stderr about every oddity of a header; what matters is checked here."""
    sitk: Any = import_module("SimpleITK")

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _scan(folder: Path, name: str) -> tuple[list[Slice], list[str]]:
    """Headers of all images below ``folder``, and the kinds of what else was found."""
    slices: list[Slice] = []
    skipped: list[str] = []
    with _quiet_itk():
        for path in _files(folder, name):
            if _may_be_dicom(path):
                entry = _read_header(path)
                if isinstance(entry, Slice):
                    slices.append(entry)
                elif entry:
                    skipped.append(entry)
    if not slices:
        what = f"only {_count_text(skipped)}" if skipped else "no DICOM image"
        raise ScanError(f"{name} holds {what}; pass the folder of one CT series, or a .nii.gz file")
    return slices, skipped


def _read_header(path: Path) -> Slice | str | None:
    """A slice, the kind of another DICOM object, or ``None`` for a file that isn't DICOM."""
    sitk: Any = import_module("SimpleITK")

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return _kind_without_pixels(path)

    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""

    modality = tag("0008|0060")
    size = reader.GetSize()
    if modality in ("SEG", "RTDOSE", "PR", "SR", "OT", "SC"):
        return modality
    if len(size) > 2 and size[2] > 1:
        raise ScanError(
            f"{path.name} is a multi-frame DICOM ({format_shape(size)}); "
            "convert it to NIfTI first, e.g. with dcm2niix"
        )
    if reader.GetNumberOfComponents() != 1 or not tag("0020|0032") or not tag("0020|0037"):
        return "picture"
    spacing = reader.GetSpacing()
    return Slice(
        path=path,
        series=tag("0020|000e"),
        title=f"series {tag('0020|0011') or '?'} {modality}".strip(),
        modality=modality,
        localizer="LOCALIZER" in tag("0008|0008").upper(),
        size=(int(size[0]), int(size[1])),
        spacing=(float(spacing[0]), float(spacing[1])),
        direction=np.array(reader.GetDirection(), np.float64).reshape(3, 3),
        origin=np.array(reader.GetOrigin(), np.float64),
    )


def _kind_without_pixels(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(1024)
    if start[128:132] != b"DICM":
        return None
    storage = _IMAGE_STORAGE.search(start)
    if storage and storage[1] in (b"2", b"4"):
        raise _undecodable(path)
    return "object without pixels"


def _undecodable(path: Path) -> ScanError:
    return ScanError(f"{path.name} has pixels that can't be decoded; copy or export the series again")


def _one_stack(slices: list[Slice], name: str) -> tuple[list[Slice], list[str]]:
    """The slices of the only series, and the kinds of the images left out."""
    kept = [item for item in slices if item.modality == "CT" and not item.localizer]
    kept = kept or [item for item in slices if not item.localizer] or slices
    groups: dict[tuple[object, ...], list[Slice]] = {}
    for item in kept:
        groups.setdefault(item.group, []).append(item)
    stacks = [group for group in groups.values() if len(group) > 1]
    if not stacks:
        raise ScanError(f"{name} holds single slices only; pass the folder of one CT series")
    if len(stacks) > 1:
        listed = "; ".join(_describe(group) for group in stacks[:6])
        more = f"; and {len(stacks) - 6} more" if len(stacks) > 6 else ""
        raise ScanError(f"{name} holds {len(stacks)} series ({listed}{more}); pass a folder with one of them")
    chosen = {id(item) for item in stacks[0]}
    left_out = [_kind(item) for item in slices if id(item) not in chosen]
    return stacks[0], left_out


def _kind(item: Slice) -> str:
    return "localizer" if item.localizer else f"single {item.modality or 'DICOM'} image"


def _describe(group: list[Slice]) -> str:
    first = group[0]
    thickness = np.ptp([item.position for item in group]) / (len(group) - 1)
    return (
        f"{first.title}: {len(group)} slices {format_shape(first.size)}, {thickness:.3g} mm apart, "
        f"{first.path.name} …"
    )


def _stack_affine(ordered: list[Slice], name: str) -> NDArray[np.float64]:
    """[column, row, slice] → RAS mm. The third axis follows the origins, so gantry tilt is kept as shear."""
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
    affine[:3, 0] = ordered[0].direction[:, 0] * ordered[0].spacing[0]
    affine[:3, 1] = ordered[0].direction[:, 1] * ordered[0].spacing[1]
    affine[:3, 2] = step
    affine[:3, 3] = origins[0]
    return _LPS_TO_RAS @ affine


def _pixels(ordered: list[Slice], shape: tuple[int, ...]) -> NDArray[Any]:
    sitk: Any = import_module("SimpleITK")

    values = np.empty(shape, np.float32, order="F")
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with _quiet_itk():
        for index, item in enumerate(ordered):
            reader.SetFileName(str(item.path))
            try:
                image = reader.Execute()
            except RuntimeError as cause:
                raise _undecodable(item.path) from cause
            rows = sitk.GetArrayViewFromImage(image).reshape(shape[1], shape[0])
            values[:, :, index] = rows.T
    return values


def _count_text(kinds: list[str]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(Counter(kinds).items()))


def _left_out_notice(kinds: list[str], name: str) -> tuple[Notice, ...]:
    if not kinds:
        return ()
    text = f"{name}: left out {_count_text(kinds)}, not part of the CT series"
    return (Notice(code="files_left_out", message=text, severity="info"),)
