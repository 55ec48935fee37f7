"""The DICOM series that SEG and SR refer to: the scan's own, or one derived from it where it can't be referred to.

A scan from NIfTI has no series, and one with blank UIDs can't be named; both get a copy with UIDs that follow
from the scan's content, so that the same scan always gets the same ones.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent import __version__
from tumorchain_agent.errors import OutputError, ScanError
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.dicom_frames import UNREADABLE, pydicom_or_remedy
from tumorchain_agent.tools.dicom_zip import dicom_folder
from tumorchain_agent.tools.grid import Affine
from tumorchain_agent.tools.read_dicom import Stack, find_stack, stack_affine
from tumorchain_agent.tools.scan import CT

CT_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.2"
MANUFACTURER: Final = "tumorchain-agent (research software)"
_NAMES: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
)
_MAY_BE_EMPTY: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_TO_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SourceSeries:
    """What was scanned, as DICOM headers, and the grid that its slices make."""

    datasets: tuple[Any, ...]
    """One header a slice, by position, without pixels; or the one of a multi-frame file."""
    frames: tuple[int, ...] | None
    """Of a multi-frame file: the frame index of each slice."""
    affine: Affine
    """[column, row, slice] → RAS mm."""
    shape: tuple[int, int, int]
    """Columns, rows, slices."""
    derived: tuple[Any, ...] = ()
    """Whole objects that must be written beside, for the headers to refer to something."""


def open_source(path: Path, volume: int | None, ct: CT, *, max_bytes: int = 2**36) -> SourceSeries:
    """The series of the file, folder or zip that ``ct`` was opened from.

    Raises ScanError when it can't be read, OutputError when it can't be referred to.
    """
    if ct.info.source_format == "nifti":
        return _from_voxels(ct)
    pydicom_or_remedy("DICOM output")
    with dicom_folder(path, max_bytes) as folder:
        stack, _ = find_stack(folder, path.name, volume, max_bytes)
        affine = stack_affine(stack, path.name)
        headers = _headers(stack, grid.spacing(affine)[2])
        if stack.first.frame is not None:
            return _multi_frame(stack, headers, affine, path.name)
        if not _is_named(headers):
            copies = tuple(_named_copy(item.path, index, ct) for index, item in enumerate(stack.slices))
            return SourceSeries(_without_pixels(copies), None, affine, stack.shape, copies)
    return SourceSeries(headers, None, affine, stack.shape)


def derived_uid(*parts: str) -> str:
    """A UID (below 2.25) that follows from ``parts``."""
    digest = hashlib.sha256("\0".join(("tumorchain", *parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


@contextmanager
def no_names_in_logs() -> Iterator[None]:
    """pydicom and highdicom warn of odd values by quoting them, and a value may be a patient's name."""
    import warnings

    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    before = [logger.disabled for logger in loggers]
    children = [
        child
        for name, child in logging.root.manager.loggerDict.items()
        if isinstance(child, logging.Logger) and name.startswith(("highdicom.", "pydicom."))
    ]
    states = [child.disabled for child in children]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in (*loggers, *children):
            logger.disabled = True
        try:
            yield
        finally:
            for logger, state in zip((*loggers, *children), (*before, *states), strict=True):
                logger.disabled = state


def _headers(stack: Stack, thickness: float) -> tuple[Any, ...]:
    pydicom: Any = pydicom_or_remedy("DICOM output")
    paths = list(dict.fromkeys(item.path for item in stack.slices))
    with no_names_in_logs():
        try:
            headers = tuple(pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths)
        except UNREADABLE as cause:
            raise ScanError(f"{stack.first.path.name} can't be read again; copy the series anew") from cause
    for header in headers:
        _fill_empty(header, thickness)
    return headers


def _is_named(headers: tuple[Any, ...]) -> bool:
    """Whether every slice has the UIDs to be referred to, its own one among them."""
    if any(not str(header.get(name, "") or "") for header in headers for name in _NAMES):
        return False
    return len({str(header.SOPInstanceUID) for header in headers}) == len(headers)


def _multi_frame(stack: Stack, headers: tuple[Any, ...], affine: Affine, name: str) -> SourceSeries:
    if len(headers) > 1 or not _is_named(headers):
        raise OutputError(
            f"{name} is an enhanced CT in {len(headers)} files or without UIDs, which a SEG can't refer to; "
            "export it as single slices and pass those"
        )
    frames = tuple(item.frame for item in stack.slices if item.frame is not None)
    return SourceSeries(headers, frames, affine, stack.shape)


def _named_copy(path: Path, index: int, ct: CT) -> Any:
    """The slice as it is, pixels and all, under UIDs made from the scan's content."""
    pydicom: Any = pydicom_or_remedy("DICOM output")
    with no_names_in_logs():
        copy = pydicom.dcmread(path, force=True)
        copy.SOPClassUID = CT_STORAGE
        copy.SOPInstanceUID = derived_uid(ct.scan_id, "slice", str(index))
        copy.SeriesInstanceUID = derived_uid(ct.scan_id, "series")
        copy.StudyInstanceUID = derived_uid(ct.scan_id, "study")
        copy.FrameOfReferenceUID = derived_uid(ct.scan_id, "frame of reference")
        copy.file_meta.MediaStorageSOPClassUID = copy.SOPClassUID
        copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
        _fill_empty(copy, ct.spacing_mm[2])
        _fill_patient(copy, ct)
    return copy


def _fill_empty(dataset: Any, thickness: float) -> None:
    """What the standard wants of every image and allows to be empty, where a header lacks it altogether.

    A slice as thick as the slices are apart, where it doesn't say.
    """
    for name in _MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, "")
    if "SharedFunctionalGroupsSequence" not in dataset and dataset.get("SliceThickness") is None:
        dataset.SliceThickness = _decimal(thickness)


def _fill_patient(dataset: Any, ct: CT) -> None:
    """A pseudonym from the scan's content where there is no id, so that archives don't merge scans."""
    if not str(dataset.get("PatientID", "") or ""):
        dataset.PatientID = f"scan-{ct.scan_id[:12]}"
    if dataset.get("SeriesNumber") is None:
        dataset.SeriesNumber = 1


def _without_pixels(datasets: tuple[Any, ...]) -> tuple[Any, ...]:
    import copy

    headers = []
    for dataset in datasets:
        header = copy.copy(dataset)
        header._dict = {tag: value for tag, value in dataset._dict.items() if tag != 0x7FE00010}
        headers.append(header)
    return tuple(headers)


def _from_voxels(ct: CT) -> SourceSeries:
    """A CT series of the voxels [x, y, z], axial, as whole HU; it names no patient."""
    pydicom: Any = pydicom_or_remedy("DICOM output")
    values = ct.hu[::-1, ::-1]
    turn = np.eye(4)
    turn[:2, :2] = -np.eye(2)
    turn[:2, 3] = np.array(ct.shape[:2]) - 1
    affine = np.asarray(ct.affine @ turn, np.float64)
    lps = _TO_LPS @ affine
    sizes = grid.spacing(affine)
    row, column = lps[:3, 0] / sizes[0], lps[:3, 1] / sizes[1]
    if abs(float(row @ column)) > 1e-4:
        raise OutputError(
            f"{ct.info.file_name} has voxels that are no rectangles in-plane, which DICOM can't hold; "
            "resample it to a right-angled grid, or leave out --dicom"
        )
    template = _template(pydicom, ct, sizes, row, column)
    datasets = tuple(
        _derived_slice(pydicom, template, values[:, :, index], lps, index, ct) for index in range(ct.shape[2])
    )
    return SourceSeries(_without_pixels(datasets), None, affine, ct.shape, datasets)


def _template(
    pydicom: Any, ct: CT, sizes: tuple[float, float, float], row: NDArray[Any], column: NDArray[Any]
) -> Any:
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.SOPClassUID = CT_STORAGE
    dataset.Modality = "CT"
    dataset.Manufacturer = MANUFACTURER
    dataset.SoftwareVersions = f"tumorchain-agent {__version__}"
    dataset.SeriesDescription = "CT converted from NIfTI"
    dataset.DerivationDescription = f"Converted from NIfTI, which names no patient. {DISCLAIMER}"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "converted from NIfTI"
    dataset.StudyInstanceUID = derived_uid(ct.scan_id, "study")
    dataset.SeriesInstanceUID = derived_uid(ct.scan_id, "series")
    dataset.FrameOfReferenceUID = derived_uid(ct.scan_id, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.AcquisitionNumber = 1
    dataset.KVP = None
    dataset.PixelSpacing = [_decimal(sizes[1]), _decimal(sizes[0])]
    dataset.SliceThickness = _decimal(sizes[2])
    dataset.ImageOrientationPatient = [_decimal(value) for value in (*row, *column)]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Columns, dataset.Rows = ct.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    _fill_empty(dataset, sizes[2])
    _fill_patient(dataset, ct)
    return dataset


def _derived_slice(
    pydicom: Any, template: Any, plane: NDArray[np.float32], lps: Affine, index: int, ct: CT
) -> Any:
    import copy

    dataset = copy.deepcopy(template)
    dataset.SOPInstanceUID = derived_uid(ct.scan_id, "slice", str(index))
    dataset.InstanceNumber = index + 1
    dataset.ImagePositionPatient = [_decimal(value) for value in lps[:3, 3] + index * lps[:3, 2]]
    whole = np.clip(np.rint(plane.T), -32768, 32767)
    dataset.PixelData = whole.astype("<i2").tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _decimal(value: float) -> str:
    """A DICOM decimal string: 16 characters at most."""
    from pydicom.valuerep import format_number_as_ds

    return str(format_number_as_ds(float(value)))
