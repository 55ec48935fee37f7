"""A label map of TotalSegmentator's task ``total`` v2 on a CT's grid."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.records import Notice, SegmentationInfo
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.organs import MERGE, ORGANS, STRUCTURES
from tumorchain_agent.tools.read_nifti import SUFFIXES, read_nifti
from tumorchain_agent.tools.read_seg import as_labels, is_seg, read_seg
from tumorchain_agent.tools.scan import CT, MAX_VOXELS

_NAMED_LABEL = re.compile(rb'<Label Key="(\d+)"[^>]*><!\[CDATA\[([^\]]*)\]\]>')
"""The label table that TotalSegmentator writes into the NIfTI header extension."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Which structure each voxel of a CT belongs to."""

    labels: NDArray[np.uint8]
    """[x, y, z] on the CT's RAS+ grid, ids 0..117."""
    info: SegmentationInfo


def load_label_map(path: Path | str, ct: CT) -> LabelMap:
    """A user's label map (``.nii``, ``.nii.gz``, DICOM SEG), permuted and flipped onto the CT's RAS+ grid.

    Nothing is resampled. Raises LabelMapError when it lies on another grid, telling the difference, or holds
    ids or names that are not of TotalSegmentator's task ``total`` v2.
    """
    path = Path(path)
    started = time.perf_counter()
    if path.is_file() and is_seg(path):
        return _from_seg(path, ct, started)
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        kind = "is a folder" if path.is_dir() else "is not .nii or .nii.gz"
        state = kind if path.exists() else "is missing"
        raise LabelMapError(
            f"label map {path} {state}; pass the one file that TotalSegmentator --ml writes",
            None if path.exists() else "missing",
        )
    stored = read_nifti(path, volume=None, max_voxels=MAX_VOXELS, error=LabelMapError)
    _check_names(path)
    values, affine = grid.reorient_like(stored.values, stored.affine, ct.affine)
    difference = grid.grid_difference(affine, values.shape, ct.affine, ct.shape, 0.1 * min(ct.spacing_mm))
    if difference:
        raise LabelMapError(
            f"{path.name} is not on the grid of {ct.info.file_name}: {difference}; "
            "pass the label map made from this scan"
        )
    labels = _to_ids(values, stored.slope, stored.intercept, path.name)
    seconds = time.perf_counter() - started
    return label_map(labels, ct, source="given", task="given", weights_id="", seconds=seconds)


def _from_seg(path: Path, ct: CT, started: float) -> LabelMap:
    """A DICOM SEG's structures; organs that it has no segment of were not looked for."""
    labels, shared = as_labels(read_seg(path, ct.affine, ct.shape), ct.shape, path.name)
    unknown = {int(MERGE[key]) for key in STRUCTURES} - {int(MERGE[key]) for key in np.unique(labels)}
    notices: tuple[Notice, ...] = ()
    if shared:
        text = f"{path.name}: several structures claim {shared} voxels; each went to the smallest of them"
        notices = (Notice(code="overlapping_segments", message=text),)
    return label_map(
        labels,
        ct,
        source="given",
        task="given",
        weights_id=hashlib.sha256(b"dicom seg" + labels.tobytes("F")).hexdigest()[:24],
        seconds=time.perf_counter() - started,
        organs_unknown=tuple(name for key, name in ORGANS.items() if key in unknown),
        notices=notices,
    )


def _check_names(path: Path) -> None:
    """Ids mean other structures in other tasks and in v1; the file may say which."""
    nibabel: Any = import_module("nibabel")

    header = nibabel.load(path).header
    for extension in header.extensions:
        for key, name in _NAMED_LABEL.findall(extension.get_content()):
            expected = STRUCTURES.get(int(key))
            found = name.decode("utf-8", "replace")
            if expected != found:
                raise LabelMapError(
                    f"{path.name} names label {int(key)} {found!r}, in task total v2 it is {expected!r}; "
                    "pass a label map of TotalSegmentator v2, task total"
                )


def _to_ids(values: NDArray[Any], slope: float, intercept: float, name: str) -> NDArray[np.uint8]:
    scaled = values if (slope, intercept) == (1.0, 0.0) else values * slope + intercept
    low, high = float(scaled.min()), float(scaled.max())
    if not (low >= 0 and high <= max(STRUCTURES)):
        wrong = low if low < 0 else high
        raise LabelMapError(
            f"{name} holds label {wrong:g}; TotalSegmentator's task total v2 has ids 0..{max(STRUCTURES)}: "
            "pass a label map of that task"
        )
    labels = scaled.astype(np.uint8, order="F")
    if scaled.dtype.kind == "f" and not np.array_equal(labels, scaled):
        raise LabelMapError(
            f"{name} holds labels that are not whole numbers; resample it with nearest neighbour"
        )
    return labels


def label_map(
    labels: NDArray[np.uint8],
    ct: CT,
    *,
    source: str,
    task: str,
    weights_id: str,
    seconds: float,
    organs_unknown: tuple[str, ...] = (),
    organs_deferred: tuple[str, ...] = (),
    notices: tuple[Notice, ...] = (),
) -> LabelMap:
    """Ids [x, y, z] on a CT's RAS+ grid → LabelMap with its record.

    An empty ``weights_id`` becomes the hash of the labels. Raises LabelMapError when the shapes differ.
    """
    if labels.shape != ct.shape:
        shapes = f"{grid.format_shape(labels.shape)} voxels, the scan {grid.format_shape(ct.shape)}"
        raise LabelMapError(f"the label map has {shapes}; pass the label map made from this scan")
    labels = np.asfortranarray(labels)
    counts = _counts(labels)
    if not counts[1:].any():
        text = "the label map holds no structure at all: no organ can be assessed"
        notices = (*notices, Notice(code="empty_label_map", message=text))
    present = {int(MERGE[key]) for key in np.flatnonzero(counts)}
    info = SegmentationInfo.model_validate(
        {
            "scan_id": ct.scan_id,
            "source": source,
            "task": task,
            "weights_id": weights_id or hashlib.sha256(labels.T.data).hexdigest()[:24],
            "organs_present": tuple(name for key, name in ORGANS.items() if key in present),
            "organs_unknown": organs_unknown,
            "organs_deferred": organs_deferred,
            "seconds": seconds,
            "notices": notices,
        }
    )
    return LabelMap(labels, info)


def _counts(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each id [256]."""
    counts = np.zeros(256, np.int64)
    for index in range(labels.shape[2]):
        counts += np.bincount(labels[:, :, index].ravel(order="K"), minlength=256)
    return counts
