"""One anatomy on many grids, as a DICOM series with everything that a SEG must copy, and its label map."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conftest import WriteDicom, torso
from tumorchain_agent.records import SegmentationInfo
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.scan import CT, open_ct
from tumorchain_agent.tools.write_seg import Provenance

UIDS = {
    "0020|000d": "1.2.826.0.1.3680043.8.99.1",
    "0020|0052": "1.2.826.0.1.3680043.8.99.2",
    "0010|0010": "Grün^Jörg",
    "0010|0020": "MRN-4711",
    "0010|0030": "19610203",
    "0010|0040": "M",
    "0008|0020": "20240102",
    "0008|0030": "101112",
    "0008|0050": "ACC-0815",
    "0020|0010": "STUDY-9",
    "0008|0005": "ISO_IR 192",
}
PRIVATE = ("Grün", "Jörg", "MRN-4711", "19610203", "ACC-0815", "STUDY-9")


def turned(axis: str, degrees: float) -> NDArray[np.float64]:
    """A rotation about a patient axis, 3 × 3."""
    angle = np.radians(degrees)
    first, second = [index for index in range(3) if index != "xyz".index(axis)]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def _affine(directions: NDArray[np.float64], sizes: tuple[float, float, float]) -> NDArray[np.float64]:
    """A grid whose middle is the middle of the torso."""
    affine = np.eye(4)
    affine[:3, :3] = directions * sizes
    return affine


_AXIAL = np.diag([-1.0, -1.0, 1.0])
_SIZES = (14.0, 11.0, 20.0)
_TILT = np.column_stack([_AXIAL[:, 0], turned("x", 15) @ _AXIAL[:, 1], _AXIAL[:, 2]])
GRIDS: dict[str, NDArray[np.float64]] = {
    "axial": _affine(_AXIAL, _SIZES),
    "slices from head to foot": _affine(_AXIAL * [1, 1, -1], _SIZES),
    "rows to the right": _affine(_AXIAL * [-1, 1, 1], _SIZES),
    "coronal": _affine(np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]).T, _SIZES),
    "sagittal": _affine(np.array([[0, -1.0, 0], [0, 0, -1], [1, 0, 0]]).T, _SIZES),
    "oblique": _affine(turned("z", 20) @ turned("x", -25) @ _AXIAL, (13.0, 13.0, 9.0)),
    "gantry tilt": _affine(_TILT, _SIZES),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A series on disk, opened, and its labels in both orders."""

    folder: Path
    ct: CT
    labels: NDArray[np.uint8]
    """[x, y, z] on the CT's RAS+ grid."""
    stored: NDArray[np.uint8]
    """[column, row, slice] as acquired."""
    affine: NDArray[np.float64]
    """[column, row, slice] → RAS mm."""


def make_case(write_dicom: WriteDicom, affine: NDArray[np.float64], **tags: str) -> Case:
    """The torso on the grid of ``affine``, 32 × 26 × 18 voxels, as DICOM.

    A frame has a multiple of 8 pixels: of others, SimpleITK leaves the last bits of a SEG uninitialised.
    """
    shape = (32, 26, 18)
    centred = affine.copy()
    centred[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    hu, labels = torso(centred, shape)
    folder = write_dicom(np.round(hu), centred, tags=UIDS | tags)
    ct = open_ct(folder)
    on_ct, _, _ = grid.reorient_to_ras(labels, centred)
    return Case(folder, ct, np.asfortranarray(on_ct), labels, centred)


def provenance(ct: CT, source: str = "given") -> Provenance:
    info: Any = {
        "scan_id": ct.scan_id,
        "source": source,
        "task": "given",
        "weights_id": "c0ffee",
        "organs_present": ("liver",),
        "seconds": 0.1,
    }
    return Provenance("nano-12", SegmentationInfo(**info), "2.18.0", datetime(2026, 1, 2, 3, 4, 5))
