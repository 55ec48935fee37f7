"""``ask --dicom``: SEG and SR of an answer, each read back and compared before it is put in place."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.dicom_report import make_sr
from tumorchain_agent.errors import LabelMapError, OutputError
from tumorchain_agent.records import Answer, Measurement, Notice
from tumorchain_agent.tools.dicom_frames import pydicom_or_remedy
from tumorchain_agent.tools.dicom_source import SourceSeries, no_names_in_logs, open_source
from tumorchain_agent.tools.read_seg import as_labels, read_seg
from tumorchain_agent.tools.scan import CT, open_ct
from tumorchain_agent.tools.write_seg import Provenance, make_seg

SEG_FILE: Final = "segmentation.dcm"
SR_FILE: Final = "report.dcm"
SERIES: Final = "series"


def check_dicom() -> None:
    """Whether DICOM can be written here; OutputError tells what to install."""
    for name in ("pydicom", "highdicom"):
        try:
            import_module(name)
        except ImportError as cause:
            raise OutputError(f"--dicom needs {name}; pip install 'tumorchain-agent[dicom]'") from cause


def write_dicom(
    folder: Path,
    scan: Path,
    volume: int | None,
    answer: Answer,
    measurements: Sequence[Measurement],
    label_map: bytes,
    created: datetime,
) -> tuple[Notice, ...]:
    """Write ``segmentation.dcm`` and ``report.dcm`` into a new folder, and ``series/`` where one had to be made.

    ``label_map`` is the ``.nii.gz`` on the RAS+ grid of the scan. Raises OutputError when the scan is another
    one by now, when the source can't be referred to, or when what was written does not read back.
    """
    pydicom_or_remedy("--dicom")
    if answer.segmentation is None:
        raise OutputError("nothing was segmented, so there is no DICOM SEG to write; leave out --dicom")
    ct = open_ct(scan, volume=volume)
    if ct.scan_id != answer.scan.scan_id:
        raise OutputError(f"{ct.info.file_name} has changed since it was examined; ask again")
    labels = _labels(label_map, ct)
    source = open_source(scan, volume, ct)
    versions = answer.versions
    provenance = Provenance(versions.checkpoint_id, answer.segmentation, versions.totalsegmentator, created)
    seg = make_seg(source, labels, ct.affine, provenance)
    sr = make_sr(source, seg, answer, measurements, provenance)
    folder.mkdir()
    _save(seg, folder / SEG_FILE)
    _save(sr, folder / SR_FILE)
    check_seg(folder / SEG_FILE, labels, ct)
    _check_sr(folder / SR_FILE, sr, len(seg.SegmentSequence))
    return _write_series(folder, source, ct)


def check_seg(path: Path, labels: NDArray[np.uint8], ct: CT) -> None:
    """Read a SEG back by its own geometry; OutputError unless it is ``labels`` [x, y, z], voxel for voxel."""
    try:
        seen, shared = as_labels(read_seg(path, ct.affine, ct.shape), ct.shape, path.name)
    except LabelMapError as cause:
        raise OutputError(f"the DICOM SEG does not read back ({cause}); nothing was written") from cause
    wrong = int(np.count_nonzero(seen != labels)) + shared
    if wrong:
        raise OutputError(
            f"the DICOM SEG reads back with {wrong} voxels in other places; nothing was written, "
            "ask again without --dicom and report this"
        )


def _labels(nifti: bytes, ct: CT) -> NDArray[np.uint8]:
    nibabel: Any = import_module("nibabel")
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti))
    labels = np.asarray(image.dataobj, np.uint8)
    if labels.shape != ct.shape:
        raise OutputError(f"the label map does not fit {ct.info.file_name}; ask again with --fresh")
    return labels


def _save(dataset: Any, path: Path) -> None:
    with no_names_in_logs():
        try:
            dataset.save_as(path, enforce_file_format=True)
        except (AttributeError, TypeError, ValueError) as cause:
            raise OutputError(
                f"{path.name} can't be encoded ({type(cause).__name__}): the series holds values that DICOM "
                "doesn't allow; export it again, or leave out --dicom"
            ) from None


def _check_sr(path: Path, written: Any, segments: int) -> None:
    """The document's own reader finds a group for each segment, and the numbers that were meant."""
    highdicom: Any = import_module("highdicom")
    with no_names_in_logs():
        read = highdicom.sr.srread(path)
    groups = read.content.get_volumetric_roi_measurement_groups()
    found, meant = list(_numbers(read)), list(_numbers(written))
    if len(groups) != segments or len(found) != len(meant) or not np.allclose(found, meant, 1e-9, 1e-9):
        raise OutputError("the DICOM SR does not read back as written; nothing was written, report this")


def _numbers(item: Any) -> Iterator[float]:
    """Every numeric value of a content tree, in its order."""
    for value in item.get("MeasuredValueSequence") or ():
        yield float(value.NumericValue)
    for child in item.get("ContentSequence") or ():
        yield from _numbers(child)


def _write_series(folder: Path, source: SourceSeries, ct: CT) -> tuple[Notice, ...]:
    if not source.derived:
        return ()
    (folder / SERIES).mkdir()
    for index, dataset in enumerate(source.derived, start=1):
        _save(dataset, folder / SERIES / f"{index:05d}.dcm")
    back = open_ct(folder / SERIES)
    if (
        np.abs(back.hu - ct.hu).max() > 0.5
        or back.shape != ct.shape
        or np.abs(back.affine - ct.affine).max() > 1e-3
    ):
        raise OutputError("the derived DICOM series does not read back as the scan; nothing was written")
    why = "is no DICOM" if ct.info.source_format == "nifti" else "has no UIDs to refer to"
    text = (
        f"{ct.info.file_name} {why}: SEG and SR refer to a copy of it in dicom/{SERIES}; "
        "load all three together"
    )
    return (Notice(code="derived_series", message=text),)
