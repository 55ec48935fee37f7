"""Headers of the DICOM images below a folder: where each slice lies, and what else was found."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.dicom_elements import elements_fit
from tumorchain_agent.tools.dicom_inflate import InflateBudget
from tumorchain_agent.tools.dicom_zip import MAX_FILES, NO_IMAGES
from tumorchain_agent.tools.grid import format_shape

_IMAGE_STORAGE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.([\d.]+)")
"""The storage class in a file's meta header."""
_SLICES: Final = (b"2", b"2.1", b"2.2", b"4")
"""Of them CT, enhanced CT, CT converted to it, and MR."""
_ANY_CLASS = re.compile(rb"\x02\0\x02\0UI..[\d.]+[\0\x02 ]", re.DOTALL)
"""The same element of any class, whole."""
_NAMED: Final = ("dcm", "ima")
_START: Final = 4096
_OTHER: Final = ("SEG", "RTDOSE", "PR", "SR", "OT", "SC")
ENHANCED_CT: Final = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT, and classic CT converted to it: many frames in one file."""


@dataclass(frozen=True)
class Slice:
    """One DICOM image, or one frame of a multi-frame file, from its header."""

    path: Path
    series: str
    number: str
    """SeriesNumber, as the scanner's console shows it."""
    modality: str
    localizer: bool
    size: tuple[int, int]
    """Columns, rows."""
    spacing: tuple[float, float]
    direction: NDArray[np.float64]
    """3 × 3, columns: along a row, along a column, normal; LPS."""
    origin: NDArray[np.float64]
    """Centre of the first pixel, LPS mm."""
    phase: tuple[str, ...] = ()
    """What may tell two images of one place apart: acquisition number, temporal position."""
    frame: int | None = None
    """Index in a multi-frame file; ``None`` for a file of one image."""

    @property
    def position(self) -> float:
        """mm along the slice normal."""
        return float(self.direction[:, 2] @ self.origin)

    @property
    def group(self) -> tuple[object, ...]:
        """Equal for slices that can belong to one stack; works with blank UIDs too."""
        orientation = np.round(self.direction[:, :2], 3) + 0.0
        return (self.series, self.size, np.round(self.spacing, 4).tobytes(), orientation.tobytes())


def read_headers(folder: Path, name: str, max_bytes: int) -> tuple[list[Slice], list[str]]:
    """All images below ``folder``, and the kinds of what else was found; deflated files inflate to ``max_bytes``.

    Raises ScanError for no image, and for a file that an interrupted copy left where a slice should be.
    """
    slices: list[Slice] = []
    skipped: list[str] = []
    hollow: list[Path] = []
    budget = InflateBudget(max_bytes)
    with quiet_itk():
        for path in _files(folder, name):
            start = _start(path)
            if _is_hollow(path, start):
                hollow.append(path)
            elif _may_be_dicom(path, start):
                entry = _read_header(path, budget)
                if isinstance(entry, list):
                    slices += entry
                elif entry:
                    skipped.append(entry)
    skipped += _no_slices(hollow, slices)
    if not slices:
        what = f"only {count_text(skipped)}" if skipped else "no DICOM image"
        raise ScanError(f"{name} holds {what}; pass the folder of one CT series, or a .nii.gz file")
    return slices, skipped


def count_text(kinds: list[str]) -> str:
    """``"2 × SEG, 1 × localizer"``."""
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in sorted(set(kinds)))


def undecodable(path: Path) -> ScanError:
    return ScanError(f"{path.name} has pixels that can't be decoded; copy or export the series again")


def interrupted(path: Path) -> ScanError:
    return ScanError(
        f"{path.name} is empty, cut off or no DICOM, as after an interrupted copy; "
        "copy the series again, or remove the file if it is no slice"
    )


def code_string(text: str) -> str:
    """A modality as a header may hold it: capitals, digits, 16 of them; what else stands there is a ``?``."""
    return re.sub(r"[^A-Z0-9_ ]", "?", text.strip(" \0").upper())[:16]


@contextmanager
def quiet_itk() -> Iterator[None]:
    """ITK warns on stderr about every oddity of a header; what matters is checked here."""
    sitk: Any = import_module("SimpleITK")

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _files(folder: Path, name: str) -> Iterator[Path]:
    count = 0
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            count += 1
            if count > MAX_FILES:
                raise ScanError(f"{name} holds more than {MAX_FILES} files; pass the folder of one series")
            if not file.startswith(NO_IMAGES):
                yield Path(parent, file)


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as cause:
        raise ScanError(f"{path.name} can't be read ({cause.strerror}); check its permissions") from cause


def _may_be_dicom(path: Path, start: bytes) -> bool:
    """By the preamble; without one, only files named like DICOM are tried."""
    bare = path.suffix.lower() in (".dcm", ".ima", "") and len(start) >= 132
    return start[128:132] == b"DICM" or bare


def _is_hollow(path: Path, start: bytes) -> bool:
    """Nothing, zeros, or less than a DICOM preamble and no text: what an interrupted copy leaves."""
    short = len(start) < 132 and (b"\0" in start or _ending(path) in _NAMED)
    return short or not start.strip(b"\0")


def _ending(path: Path) -> str:
    """The suffix's letters: none for a file named by its UID, the same for ``.I001`` and ``.I002``."""
    return re.sub(r"[^a-z]", "", path.suffix.lower())


def _no_slices(hollow: list[Path], slices: list[Slice]) -> list[str]:
    """The kinds of hollow files that were no slices. Raises ScanError for one named as slices are, here or anywhere."""
    images = {(item.path.parent, _ending(item.path)) for item in slices}
    for path in hollow:
        if _ending(path) in _NAMED or (path.parent, _ending(path)) in images:
            raise interrupted(path)
    return ["empty file" for path in hollow if not _ending(path)]


def _read_header(path: Path, budget: InflateBudget) -> list[Slice] | str | None:
    """Slices, the kind of another DICOM object, or ``None`` for a file that isn't DICOM."""
    sitk: Any = import_module("SimpleITK")

    if not elements_fit(path, budget):
        return _kind_without_pixels(path, whole=False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return _kind_without_pixels(path, whole=True)

    def tag(key: str) -> str:
        return reader.GetMetaData(key).strip(" \0") if reader.HasMetaDataKey(key) else ""

    modality = code_string(tag("0008|0060"))
    size = reader.GetSize()
    if modality in _OTHER:
        return modality
    if tag("0008|0016") in ENHANCED_CT:
        return _frames(path)
    if len(size) > 2 and size[2] > 1:
        if modality not in ("CT", ""):
            return f"multi-frame {modality} image"
        raise ScanError(
            f"{path.name} is a multi-frame DICOM ({format_shape(size)}) but no enhanced CT; "
            "convert it to NIfTI first, e.g. with dcm2niix"
        )
    if reader.GetNumberOfComponents() != 1 or not tag("0020|0032") or not tag("0020|0037"):
        return f"{modality} picture".lstrip()
    spacing = reader.GetSpacing()
    found = Slice(
        path=path,
        series=tag("0020|000e"),
        number=tag("0020|0011"),
        modality=modality,
        localizer="LOCALIZER" in tag("0008|0008").upper(),
        size=(int(size[0]), int(size[1])),
        spacing=(float(spacing[0]), float(spacing[1])),
        direction=np.array(reader.GetDirection(), np.float64).reshape(3, 3),
        origin=np.array(reader.GetOrigin(), np.float64),
        phase=(tag("0020|0012"), tag("0020|0100")),
    )
    return [found]


def _frames(path: Path) -> list[Slice]:
    from tumorchain_agent.tools.dicom_frames import read_frames

    return read_frames(path)


def _kind_without_pixels(path: Path, *, whole: bool) -> str | None:
    """Raises ScanError for a slice, for what is cut off before it says what it is, and for a ``.dcm`` that is none."""
    start = _start(path)[:1024]
    storage = _IMAGE_STORAGE.search(start) if b"\0" in start else None
    if storage and storage[1] in _SLICES:
        raise undecodable(path)
    has_preamble = start[128:132] == b"DICM"
    if has_preamble and not whole and not _ANY_CLASS.search(start):
        raise interrupted(path)
    if has_preamble or storage or start[:2] == b"\x08\0":
        return "object without pixels"
    if _ending(path) in _NAMED:
        raise interrupted(path)
    return None
