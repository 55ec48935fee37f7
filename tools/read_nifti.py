"""NIfTI files → StoredVolume; what can be refused from the header is refused before allocating."""

from __future__ import annotations

import gzip
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import InputError, ScanError
from tumorchain_agent.records import Notice
from tumorchain_agent.tools.grid import Affine, StoredVolume, format_shape, spacing
from tumorchain_agent.tools.inflate import DAMAGED, unpacker

SUFFIXES = (".nii", ".nii.gz")
_HEADER_BYTES = 540
_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BROKEN: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, *DAMAGED)
_BROKEN_OR_UNREADABLE: tuple[type[Exception], ...] = (*_BROKEN, OSError)
_DEFLATE_MAX_RATIO = 1100
"""Deflate can't shrink by more than about 1032:1, so a smaller file can't hold what its header claims."""


def read_nifti(
    path: Path, *, volume: int | None, max_voxels: int, error: type[InputError] = ScanError
) -> StoredVolume:
    """The [i, j, k] voxels of a ``.nii`` or ``.nii.gz`` file, unscaled, in stored order.

    ``volume`` picks one volume of a 4-D file. Raises ``error`` for anything that isn't one 3-D scalar volume
    with a usable grid, and for more than ``max_voxels`` voxels.
    """
    header = _raw_header(path, error)
    shape = _volume_shape(path, header, volume, max_voxels, error)
    dtype = _scalar_dtype(path, header, error)
    _check_file_size(path, header, shape, dtype, error)
    _check_pixdim(path, header, error)
    _check_offset(path, header, error)
    return _load(path, header, shape, volume or 0, error)


def _first_bytes(path: Path, error: type[InputError]) -> bytes:
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        gzipped = magic == _GZIP_MAGIC
        if gzipped != path.name.lower().endswith(".gz"):
            right = f"{path.name}.gz" if gzipped else path.name[: -len(".gz")]
            state = "is" if gzipped else "isn't"
            raise error(f"{path.name} {state} gzip-compressed, unlike its name says; rename it to {right}")
        with gzip.open(path, "rb") if gzipped else path.open("rb") as stream:
            return stream.read(_HEADER_BYTES)
    except _BROKEN as cause:
        raise error(f"{path.name} is cut off or damaged; copy or export it again", "cut_off") from cause
    except OSError as cause:
        raise error(f"{path.name} can't be read ({cause.strerror}); check its permissions") from cause


def _raw_header(path: Path, error: type[InputError]) -> Any:
    """The header as written, before nibabel repairs it."""
    nibabel: Any = import_module("nibabel")
    start = _first_bytes(path, error)
    for header_class, size in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            magic = start[344:347] if size == 348 else start[4:7]
            if len(start) < size:
                raise error(f"{path.name} is cut off in its header; copy or export it again", "cut_off")
            if magic in (b"n+1", b"n+2"):
                return header_class(start[:size], check=False)
    raise error(f"{path.name} is not a NIfTI file; pass a CT as .nii, .nii.gz, DICOM folder or DICOM .zip")


def _volume_shape(
    path: Path, header: Any, volume: int | None, max_voxels: int, error: type[InputError]
) -> tuple[int, ...]:
    """The stored shape without trailing ones: 3 axes, or more when ``volume`` picks one of several."""
    if not 1 <= int(header["dim"][0]) <= 7:
        raise error(f"{path.name} has a damaged header (dim[0] = {int(header['dim'][0])}); export it again")
    shape = tuple(int(size) for size in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or min(shape) < 1 or (len(shape) == 3 and min(shape) < 2):
        raise error(f"{path.name} is not a volume ({format_shape(shape)}); pass a 3-D scan")
    if len(shape) > 4:
        raise error(f"{path.name} is {len(shape)}-D ({format_shape(shape)}); pass one 3-D volume")
    count = shape[3] if len(shape) == 4 else 1
    if volume is None and count > 1:
        raise error(
            f"{path.name} is 4-D ({format_shape(shape)}, {count} volumes); "
            "pass one volume, e.g. with --volume 0"
        )
    if volume is not None and not 0 <= volume < count:
        raise error(f"{path.name} has no volume {volume}; choose one of 0..{count - 1} with --volume")
    if min(shape[:3]) < 2:
        raise error(f"{path.name} is not a volume ({format_shape(shape[:3])}); pass a 3-D scan")
    if np.prod(shape[:3], dtype=object) > max_voxels:
        raise error(
            f"{path.name} claims {format_shape(shape[:3])} voxels, more than the limit of {max_voxels}; "
            "resample it, or raise TUMORCHAIN_MAX_SCAN_VOXELS"
        )
    return shape


def _scalar_dtype(path: Path, header: Any, error: type[InputError]) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except KeyError as cause:
        raise error(f"{path.name} has an unknown data type; export it again as int16") from cause
    if dtype.kind not in "iuf":
        kind = "RGB colours" if dtype.fields else f"{dtype} values"
        raise error(f"{path.name} holds {kind}, not one number per voxel; export the CT itself as int16")
    return dtype


def _check_file_size(
    path: Path, header: Any, shape: tuple[int, ...], dtype: np.dtype[Any], error: type[InputError]
) -> None:
    claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    held = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        held *= _DEFLATE_MAX_RATIO
    if held < claimed:
        raise error(
            f"{path.name} is cut off: too small to hold the {format_shape(shape)} voxels of its header; "
            "copy or export it again",
            "cut_off",
        )


def _check_pixdim(path: Path, header: Any, error: type[InputError]) -> None:
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        text = ", ".join(f"{size:g}" for size in sizes)
        raise error(f"{path.name} has a voxel spacing of {text} mm; export it again with its real spacing")


def _check_offset(path: Path, header: Any, error: type[InputError]) -> None:
    offset = float(header["vox_offset"])
    if not 0 <= offset < float("inf"):
        raise error(f"{path.name} has a damaged header (vox_offset = {offset:g}); export it again")


def _load(
    path: Path, header: Any, shape: tuple[int, ...], volume: int, error: type[InputError]
) -> StoredVolume:
    nibabel: Any = import_module("nibabel")
    try:
        image = _opened(path, error)
        affine = np.asarray(image.affine, np.float64)
        check_affine(path.name, affine, error)
        proxy = image.dataobj
        values = _read_values(path, int(proxy.offset), volume, shape[:3], proxy.dtype)
    except (nibabel.spatialimages.HeaderDataError, nibabel.filebasedimages.ImageFileError) as cause:
        raise error(f"{path.name} has a damaged header ({cause}); export it again") from cause
    except _BROKEN_OR_UNREADABLE as cause:
        raise error(f"{path.name} is cut off or damaged; copy or export it again", "cut_off") from cause
    notices = _grid_notices(path.name, header, affine)
    return StoredVolume(values, affine, float(proxy.slope), float(proxy.inter), notices)


def _opened(path: Path, error: type[InputError]) -> Any:
    nibabel: Any = import_module("nibabel")
    with _repairs_untold(nibabel.imageglobals.logger), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return nibabel.load(path)
        except ValueError as cause:  # of an extension with a length below 0
            raise error(f"{path.name} has a damaged header ({cause}); export it again") from cause


@contextmanager
def _repairs_untold(logger: logging.Logger) -> Iterator[None]:
    """nibabel tells of every repair on stderr; what matters of them is checked here."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    logger.addFilter(nothing)
    try:
        yield
    finally:
        logger.removeFilter(nothing)


def _read_values(
    path: Path, offset: int, volume: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """One volume as [i, j, k], read straight into place; a gzip is read to its end, which checks its CRC."""
    values = np.empty(shape, dtype, order="F")
    target = memoryview(values.reshape(-1, order="F").view(np.uint8).data)
    position = -offset - volume * len(target)
    for chunk in _chunks(path):
        begin = max(position, 0)
        part = memoryview(chunk)[max(-position, 0) :][: max(len(target) - begin, 0)]
        target[begin : begin + len(part)] = part
        position += len(chunk)
    if position < len(target):
        raise EOFError
    return values


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked if it is gzipped (all members), a bounded number at a time."""
    with path.open("rb") as file:
        if not path.name.lower().endswith(".gz"):
            yield from iter(lambda: file.read(_CHUNK), b"")
            return
        unpack, rest = unpacker(), b""
        while data := rest or file.read(_CHUNK):
            if unpack.eof:
                if not data.startswith(_GZIP_MAGIC):
                    return
                unpack = unpacker()
            yield unpack.decompress(data, 8 * _CHUNK)
            rest = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
        yield unpack.flush()
        if not unpack.eof:
            raise EOFError


def check_affine(name: str, affine: Affine, error: type[InputError] = ScanError) -> None:
    """Raise ``error`` for an affine that is not finite or that maps voxels onto a plane, line or point."""
    if not np.isfinite(affine).all():
        raise error(f"{name} has NaN or infinity in its affine; export it again with its real orientation")
    sizes = spacing(affine)
    if min(sizes) <= 0:
        text = ", ".join(f"{size:g}" for size in sizes)
        raise error(f"{name} has a voxel spacing of {text} mm; export it again with its real spacing")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * np.prod(sizes):
        raise error(f"{name} has a singular affine (its axes lie in one plane); export it again")


def _grid_notices(name: str, header: Any, affine: Affine) -> tuple[Notice, ...]:
    notices = []
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        text = f"{name} doesn't say how the patient lies (no qform, no sform); left and right may be swapped"
        notices.append(Notice(code="no_orientation", message=text))
    written = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    if not np.allclose(written, spacing(affine), rtol=0.01):
        text = f"{name} states two voxel spacings (pixdim and sform); the sform's is used"
        notices.append(Notice(code="spacing_disagrees", message=text))
    return tuple(notices)
