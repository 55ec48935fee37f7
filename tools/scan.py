"""Open a CT: NIfTI, DICOM folder or DICOM zip → HU on a RAS+ grid, with an id that is of content only."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from tumorchain_agent.errors import ScanError
from tumorchain_agent.records import Notice, ScanInfo
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.grid import Affine, StoredVolume, format_mm, format_shape
from tumorchain_agent.tools.read_dicom import read_dicom
from tumorchain_agent.tools.read_nifti import SUFFIXES, check_affine, read_nifti

AIR_HU = -1024.0
MAX_VOXELS = 1_500_000_000

_PADDING_BELOW_HU = -1500.0
_PADDING_SHARE = 0.005
_TISSUE_ABOVE_HU = -300.0
_FAT_BELOW_HU = -50.0
_MR_SHARE = 0.001
_SLAB = 16
"""Slices worked on at a time, so that no step needs a second copy of the volume."""


@dataclass(frozen=True, eq=False)
class CT:
    """A scan, ready to measure."""

    hu: NDArray[np.float32]
    """[x, y, z] in RAS+, Hounsfield units, x fastest in memory."""
    affine: Affine
    """4 × 4, voxel index → mm RAS."""
    info: ScanInfo

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        return self.info.shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z: the affine's column norms."""
        return self.info.spacing_mm

    @property
    def voxel_ml(self) -> float:
        return grid.voxel_ml(self.affine)

    @property
    def scan_id(self) -> str:
        return self.info.scan_id


def open_ct(path: Path | str, *, volume: int | None = None, max_voxels: int = MAX_VOXELS) -> CT:
    """Read ``.nii``, ``.nii.gz``, a folder or a ``.zip`` with one DICOM series.

    The volume is reoriented to RAS+ (never resampled), scaled to HU, and a constant fill outside the field of
    view (e.g. −3024) becomes air. ``volume`` picks one of a 4-D NIfTI or one of several DICOM series, from 0.
    Raises ScanError, in one line, for anything that isn't one CT volume; a header that claims more than
    ``max_voxels`` is refused unread.
    """
    path = Path(path)
    _check_exists(path)
    kind = _kind(path)
    if kind == "nifti":
        stored = read_nifti(path, volume=volume, max_voxels=max_voxels)
    else:
        stored = read_dicom(path, volume=volume, max_voxels=max_voxels)
    return _build(stored, path.name, "nifti" if kind == "nifti" else "dicom")


def ct_from_array(hu: NDArray[Any], affine: NDArray[np.float64], *, file_name: str = "array.nii.gz") -> CT:
    """A CT from HU [i, j, k] in any orientation, as if read from a NIfTI file.

    Raises ScanError like open_ct.
    """
    if hu.ndim != 3 or min(hu.shape) < 2:
        raise ScanError(f"{file_name} is not a volume ({format_shape(hu.shape)}); pass a 3-D scan")
    check_affine(file_name, affine)
    return _build(StoredVolume(hu, np.asarray(affine, np.float64)), file_name, "nifti")


def is_dicom(path: Path) -> bool:
    """Whether a path holds DICOM, as a folder or zip, and not NIfTI. Raises ScanError like open_ct."""
    _check_exists(path)
    return _kind(path) != "nifti"


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    if not path.parent.is_dir():
        raise ScanError(
            f"{path} does not exist, nor does the folder {path.parent}; check the path", "missing"
        )
    names = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = f"did you mean {path.parent / near[0]}?" if near else "check the path"
    raise ScanError(f"{path} does not exist; {hint}", "missing")


def _kind(path: Path) -> Literal["nifti", "zip", "folder"]:
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as cause:
        raise ScanError(f"{path.name} can't be read ({cause.strerror}); check its permissions") from cause
    if start[:2] == b"PK":
        return "zip"
    if start[128:] == b"DICM":
        raise ScanError(f"{path.name} is one DICOM file; pass the folder that holds its whole series")
    if not start:
        raise ScanError(f"{path.name} is empty; copy or export it again", "cut_off")
    if not path.name.lower().endswith(SUFFIXES):
        raise ScanError(f"{path.name} is not a CT file; pass .nii, .nii.gz, a DICOM folder or a DICOM .zip")
    return "nifti"


def _build(stored: StoredVolume, name: str, source: Literal["nifti", "dicom"]) -> CT:
    values, affine, axcodes = grid.reorient_to_ras(stored.values, stored.affine)
    with _ScanId(values.shape, affine) as scan_id:
        hu, found = _to_hu(values, stored.slope, stored.intercept, scan_id.add)
    low, high = _checked_range(hu, found, name)
    padding = _replace_padding(hu, low)
    low = low if padding is None else float(hu.min())
    notices = (*stored.notices, *_content_notices(found, hu.size, name), *_spacing_notices(affine, name))
    info = ScanInfo(
        scan_id=scan_id.text if padding is None else _scan_id(hu, affine),
        file_name=name,
        source_format=source,
        shape=(int(hu.shape[0]), int(hu.shape[1]), int(hu.shape[2])),
        spacing_mm=grid.spacing(affine),
        affine=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine),
        source_axcodes=axcodes,
        hu_min=low,
        hu_max=high,
        padding_hu=padding,
        notices=notices,
    )
    return CT(hu, affine, info)


def _slabs(depth: int) -> list[slice]:
    return [slice(start, min(start + _SLAB, depth)) for start in range(0, depth, _SLAB)]


@dataclass(frozen=True)
class _Found:
    """What one look at the voxels told; NaN in ``low`` or ``high`` when there is NaN."""

    low: float
    high: float
    dark: int
    """Voxels below fat; fill outside the field of view is among them, before and after it is replaced."""


def _to_hu(
    values: NDArray[Any], slope: float, intercept: float, on_slab: Callable[[NDArray[np.float32]], None]
) -> tuple[NDArray[np.float32], _Found]:
    """values · slope + intercept as float32, x fastest in memory; what is in them, while they are at hand.

    Scaled in float64, slab by slab; ``on_slab`` gets each finished one [k, y, x], in order.
    """
    hu = np.empty(values.shape, np.float32, order="F")
    scaled = slope != 1.0 or intercept != 0.0
    lows, highs, dark = [], [], 0
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _slabs(values.shape[2]):
            slab, stored = hu[:, :, part], values[:, :, part]
            slab[...] = stored.astype(np.float64) * slope + intercept if scaled else stored
            if stored.dtype.kind == "f" or scaled:
                slab += 0.0
            on_slab(slab.T)
            lows.append(slab.min())
            highs.append(slab.max())
            dark += int(np.count_nonzero(slab < _FAT_BELOW_HU))
    return hu, _Found(float(np.min(lows)), float(np.max(highs)), dark)


def _checked_range(hu: NDArray[np.float32], found: _Found, name: str) -> tuple[float, float]:
    """Smallest and largest HU of a volume that has something in it."""
    low, high = found.low, found.high
    if not np.isfinite([low, high]).all():
        count = sum(int(np.count_nonzero(~np.isfinite(hu[:, :, part]))) for part in _slabs(hu.shape[2]))
        raise ScanError(
            f"{name} holds {count} voxels of NaN or infinity; replace them, e.g. by -1024, and save it again",
            "not_finite",
        )
    if low == high:
        raise ScanError(f"{name} holds one value, {low:g}, everywhere; pass a scan with an image in it")
    if high <= _TISSUE_ABOVE_HU:
        raise ScanError(
            f"{name} holds only air (no voxel above {_TISSUE_ABOVE_HU:g} HU); "
            "check the rescale slope and intercept, or pass a scan of a patient"
        )
    return low, high


def _replace_padding(hu: NDArray[np.float32], low: float) -> float | None:
    """In place: a value no tissue has, shared by many voxels, is fill outside the field of view."""
    if low > _PADDING_BELOW_HU:
        return None
    count = sum(int(np.count_nonzero(hu[:, :, part] == low)) for part in _slabs(hu.shape[2]))
    if count < _PADDING_SHARE * hu.size:
        return None
    for part in _slabs(hu.shape[2]):
        slab = hu[:, :, part]
        slab[slab == low] = AIR_HU
    return low


def _content_notices(found: _Found, voxels: int, name: str) -> tuple[Notice, ...]:
    if found.dark >= _MR_SHARE * voxels:
        return ()
    text = (
        f"{name} has neither fat nor air below {_FAT_BELOW_HU:g} HU: it looks like MR, or like a CT stored "
        "without its rescale intercept; HU and findings can't be trusted"
    )
    return (Notice(code="looks_like_mr", message=text),)


def _spacing_notices(affine: Affine, name: str) -> tuple[Notice, ...]:
    sizes = grid.spacing(affine)
    if min(sizes) >= 0.05 and max(sizes) <= 50.0:
        return ()
    text = f"{name} has voxels of {format_mm(sizes)} mm; check that its header is in mm"
    return (Notice(code="implausible_spacing", message=text),)


def _scan_id(hu: NDArray[np.float32], affine: Affine) -> str:
    with _ScanId(hu.shape, affine) as scan_id:
        for part in _slabs(hu.shape[2]):
            scan_id.add(hu[:, :, part].T)
    return scan_id.text


class _ScanId:
    """24 hex digits of BLAKE3 over shape, rounded affine and voxels, hashed beside the caller's work.

    The affine is rounded (0.001 mm in the axes, 0.01 mm in the origin) because NIfTI keeps it in float32; the
    offset keeps decimal and binary fractions, which headers hold, away from the rounding edge.
    """

    def __init__(self, shape: tuple[int, ...], affine: Affine) -> None:
        steps = np.array([1e-3, 1e-3, 1e-3, 1e-2])
        rounded = np.floor(affine[:3] / steps + 0.5 + 0.31830989).astype(np.int64)
        self._digest = blake3(b"tumorchain-scan-2")
        self._digest.update(np.array(shape, np.int64).tobytes() + rounded.tobytes())
        self._beside = ThreadPoolExecutor(1)

    def __enter__(self) -> _ScanId:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._beside.shutdown()

    def add(self, slab: NDArray[np.float32]) -> None:
        """The next slab [k, y, x]; it mustn't change before the block ends."""
        flat = np.ascontiguousarray(slab).reshape(-1).view(np.uint8)
        self._beside.submit(self._digest.update, flat.data)

    @property
    def text(self) -> str:
        """The id, once the block has ended."""
        return self._digest.hexdigest()[:24]
