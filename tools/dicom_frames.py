"""Enhanced CT: the frames of one multi-frame file as slices, each with the geometry of its own header."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.dicom_headers import Slice, code_string, undecodable

UNREADABLE = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What pydicom raises, by type, for files that are cut off, lack attributes, or can't be decoded."""


def read_frames(path: Path) -> list[Slice]:
    """Every frame of an enhanced CT. Raises ScanError where one doesn't say where it lies."""
    dataset = _read(path, pixels=False)
    try:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        return [
            _frame(path, dataset, shared, own, index)
            for index, own in enumerate(dataset.PerFrameFunctionalGroupsSequence)
        ]
    except UNREADABLE as cause:
        raise ScanError(
            f"{path.name} is an enhanced CT whose frames don't say where they lie; export the series again"
        ) from cause


def frame_pixels(path: Path) -> NDArray[np.float32]:
    """HU [frame, row, column], each frame by its own rescaling."""
    dataset = _read(path, pixels=True)
    try:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        values = np.asarray(dataset.pixel_array, np.float32).reshape(-1, dataset.Rows, dataset.Columns)
        for index, own in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            rescale = _group(own, shared, "PixelValueTransformationSequence")
            values[index] = values[index] * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
    except UNREADABLE as cause:
        raise undecodable(path) from cause
    return values


def pydicom_or_remedy(what: str) -> Any:
    """The module; ScanError tells how to get it."""
    try:
        return import_module("pydicom")
    except ImportError as cause:
        raise ScanError(f"{what} needs pydicom; pip install 'tumorchain-agent[dicom]'") from cause


def _read(path: Path, *, pixels: bool) -> Any:
    pydicom = pydicom_or_remedy(f"{path.name} is an enhanced CT, which")
    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except (*UNREADABLE, pydicom.errors.InvalidDicomError) as cause:
        raise undecodable(path) from cause


def _group(own: Any, shared: Any, name: str) -> Any:
    """A functional group's only item, of the frame or of all frames."""
    return (getattr(own, name, None) or getattr(shared, name))[0]


def _frame(path: Path, dataset: Any, shared: Any, own: Any, index: int) -> Slice:
    measures = _group(own, shared, "PixelMeasuresSequence")
    row, column = np.array(
        _group(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, float
    ).reshape(2, 3)
    origin = np.array(_group(own, shared, "PlanePositionSequence").ImagePositionPatient, np.float64)
    content = (getattr(own, "FrameContentSequence", None) or [None])[0]
    kind = (
        getattr(own, "CTImageFrameTypeSequence", None)
        or getattr(shared, "CTImageFrameTypeSequence", None)
        or [None]
    )[0]
    return Slice(
        path=path,
        series=str(dataset.get("SeriesInstanceUID", "")),
        number=str(dataset.get("SeriesNumber", "") or ""),
        modality=code_string(str(dataset.get("Modality", "") or "")),
        localizer="LOCALIZER" in str(getattr(kind, "FrameType", "")).upper(),
        size=(int(dataset.Columns), int(dataset.Rows)),
        spacing=(float(measures.PixelSpacing[1]), float(measures.PixelSpacing[0])),
        direction=np.stack([row, column, np.cross(row, column)], axis=1),
        origin=origin,
        phase=tuple(
            str(getattr(content, name, "")) for name in ("FrameAcquisitionNumber", "TemporalPositionIndex")
        ),
        frame=index,
    )
