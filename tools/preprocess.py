"""CT → model volume (paper 10.1): soft-tissue window, crop to the body, zero-pad, resize."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tumorchain_agent.errors import CheckpointError, ScanError
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.grid import Affine
from tumorchain_agent.tools.scan import CT

_COARSE_MM = 3.0
"""The body is searched on a grid of about this spacing."""
_THREADS = 2
"""That average slabs: each holds one, and more would wait for memory."""


@dataclass(frozen=True)
class Preprocessing:
    """How a scan becomes a model volume; a checkpoint stores what it was trained with."""

    window_hu: float = 400.0
    level_hu: float = 40.0
    shape: tuple[int, int, int] = (32, 256, 256)
    """d, h, w."""
    body_above_hu: float = -300.0
    margin_mm: float = 5.0
    """Kept around the body in-plane."""
    min_depth_ratio: float = 0.5
    """A body shorter than this share of the in-plane square is padded with zeros, never stretched."""

    @property
    def range_hu(self) -> tuple[float, float]:
        """HU that become 0 and 1."""
        return self.level_hu - self.window_hu / 2, self.level_hu + self.window_hu / 2

    def as_dict(self) -> dict[str, Any]:
        """For ``tumorchain.json``."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """From ``tumorchain.json``. Raises CheckpointError for fields that this version doesn't know."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise CheckpointError(
                f"the checkpoint's preprocessing has unknown fields ({', '.join(unknown)}); "
                "it was written by a newer tumorchain-agent: update this one"
            )
        known = dict(values)
        if "shape" in known:
            depth, height, width = (int(size) for size in known["shape"])
            known["shape"] = (depth, height, width)
        return cls(**known)


@dataclass(frozen=True, eq=False)
class ModelVolume:
    """What the encoder sees, and where each of its voxels lies."""

    volume: NDArray[np.float32]
    """[1, d, h, w] in [0, 1]; d to the head, h from front to back, w from the patient's right to left.
    Outside the scan it is 0."""
    affine: Affine
    """4 × 4, model index (d, h, w) → mm RAS."""
    scan_affine: Affine
    """4 × 4, voxel index of the CT → mm RAS."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a model voxel along d, h, w."""
        return grid.spacing(self.affine)

    def voxel_to_model(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices [n, 3] (x, y, z) of the CT → model indices [n, 3] (d, h, w), not rounded."""
        return grid.apply_affine(np.linalg.inv(self.affine) @ self.scan_affine, ijk)

    def model_to_voxel(self, dhw: ArrayLike) -> NDArray[np.float64]:
        """Model indices [n, 3] (d, h, w) → voxel indices [n, 3] (x, y, z) of the CT, not rounded."""
        return grid.apply_affine(np.linalg.inv(self.scan_affine) @ self.affine, dhw)


@dataclass(frozen=True)
class _Source:
    """A scan on the patient's axes, read a few slices at a time."""

    read: Callable[[int, int], NDArray[np.float32]]
    """Slices k0..k1 as [k, y, x] in [0, 1]; a new array."""
    first_mm: NDArray[np.float64]
    """Centre of voxel (0, 0, 0)."""
    step_mm: NDArray[np.float64]
    count: tuple[int, int, int]
    """Voxels along x, y, z."""


@dataclass(frozen=True)
class _Part:
    """A block of a scan's voxels; nothing is copied."""

    hu: NDArray[np.float32]
    """[x, y, z]."""
    affine: Affine


def preprocess(ct: CT, config: Preprocessing | None = None) -> ModelVolume:
    """Window, crop to the body, pad and resize a CT; deterministic, about two slabs beyond the CT in memory.

    HU are clipped to the window first and averaged then, so that metal and air don't bleed into their
    surroundings. Each model voxel is the mean over the box that it covers, and linear interpolation where the
    model's voxels are the smaller ones. In-plane pixels are square. A scan that lies obliquely to the
    patient's axes is resampled onto them at its own spacing (linear), so model axes are always patient axes.

    Raises ScanError when no voxel lies above ``config.body_above_hu``.
    """
    config = config or Preprocessing()
    low, high = body_box(ct, config.body_above_hu)
    box_low, box_high = _model_box(low, high, config)
    return volume_of(ct, box_low, box_high, config)


def volume_of(
    ct: CT, low: NDArray[np.float64], high: NDArray[np.float64], config: Preprocessing
) -> ModelVolume:
    """A box of a CT (smallest and largest x, y, z in mm) as a model volume, as ``preprocess`` makes the body's.

    Only the part of the scan that the box needs is read. The box gives the model's field of view as it is: who
    asks for a square one gets square pixels.
    """
    (x, y, z), affine = grid.block(ct.affine, ct.shape, low, high, extra=2)
    part = _Part(ct.hu[x, y, z], affine)
    if grid.is_axis_aligned(ct.affine, ct.shape):
        source = _aligned_source(part, config.range_hu)
    else:
        source = _oblique_source(part, config.range_hu, low, high)
    volume = _average(source, low, high, config.shape)
    return ModelVolume(volume[None], _model_affine(low, high, config.shape), ct.affine.copy())


def body_mask(ct: CT, above_hu: float = -300.0) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The largest 6-connected component above a threshold, on every n-th voxel along each axis.

    Returns the mask [x, y, z] of the coarse grid and the strides n; voxel index = coarse index · n + n // 2.
    Holes are not filled: they don't change the body's extent. Raises ScanError when nothing is above.
    """
    from scipy import ndimage

    sizes = np.array(ct.spacing_mm)
    strides = np.maximum(1, np.floor(_COARSE_MM / sizes + 1e-3)).astype(np.int64)
    strides = np.minimum(strides, ct.shape)
    every_x, every_y, every_z = (slice(n // 2, None, n) for n in strides.tolist())
    coarse = ct.hu[every_x, every_y, every_z] > above_hu
    parts, count = ndimage.label(coarse)
    if count == 0:
        raise ScanError(
            f"{ct.info.file_name} holds no body (no voxel above {above_hu:g} HU); pass a scan of a patient"
        )
    voxels = np.bincount(parts.ravel())
    voxels[0] = 0
    return parts == voxels.argmax(), strides


def body_box(ct: CT, above_hu: float = -300.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest x, y, z in mm of the body, to within one voxel of body_mask's grid (3 mm)."""
    mask, strides = body_mask(ct, above_hu)
    coarse = ct.affine.copy()
    coarse[:3, :3] *= strides
    coarse[:3, 3] = grid.apply_affine(ct.affine, (strides - 1) / 2)
    low, high = grid.extent(mask, coarse)
    scan_low, scan_high = grid.world_bbox(ct.affine, ct.shape)
    return np.maximum(low, scan_low), np.minimum(high, scan_high)


def _model_box(
    low: NDArray[np.float64], high: NDArray[np.float64], config: Preprocessing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The body's box with its margin, square in-plane and deep enough, around the same centre."""
    centre = (low + high) / 2
    size = high - low
    size[:2] = size[:2].max() + 2 * config.margin_mm
    size[2] = max(size[2], config.min_depth_ratio * size[0])
    return centre - size / 2, centre + size / 2


def _model_affine(low: NDArray[np.float64], high: NDArray[np.float64], shape: tuple[int, int, int]) -> Affine:
    """(d, h, w) → mm: d runs up z, h down y, w down x."""
    depth, height, width = (high[::-1] - low[::-1]) / np.array(shape)
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0] = -width, -height, depth
    affine[:3, 3] = high[0] - width / 2, high[1] - height / 2, low[2] + depth / 2
    affine[3, 3] = 1.0
    return affine


def _to_unit(slab: NDArray[np.float32], range_hu: tuple[float, float]) -> NDArray[np.float32]:
    """[k, y, x] → a new array in [0, 1], slice by slice, so that each stays in the processor's cache."""
    low, high, width = (np.float32(value) for value in (*range_hu, range_hu[1] - range_hu[0]))
    unit = np.empty(slab.shape, np.float32)
    for source, target in zip(slab, unit, strict=True):
        np.clip(source, low, high, out=target)
        target -= low
        target /= width
    return unit


def _aligned_source(part: _Part, range_hu: tuple[float, float]) -> _Source:
    stacked = part.hu.T

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return _to_unit(stacked[start:stop], range_hu)

    x, y, z = part.hu.shape
    return _Source(read, part.affine[:3, 3].copy(), np.diag(part.affine)[:3].copy(), (x, y, z))


def _oblique_source(
    part: _Part, range_hu: tuple[float, float], low: NDArray[np.float64], high: NDArray[np.float64]
) -> _Source:
    """The part of an oblique scan inside a box (mm), resampled slab by slab onto the patient's axes."""
    from scipy import ndimage

    part_low, part_high = grid.world_bbox(part.affine, part.hu.shape)
    low, high = np.maximum(low, part_low), np.minimum(high, part_high)
    step = np.array(grid.spacing(part.affine))
    sizes = np.maximum(1, np.ceil((high - low) / step - 1e-6)).astype(int)
    count = (int(sizes[0]), int(sizes[1]), int(sizes[2]))
    first = (low + high) / 2 - (sizes - 1) / 2 * step
    unit = _to_unit(part.hu.T, range_hu).T
    to_scan = np.asarray(np.linalg.inv(part.affine), np.float64)
    matrix = to_scan[:3, :3] * step

    def read(start: int, stop: int) -> NDArray[np.float32]:
        corner = grid.apply_affine(to_scan, first + np.array([0, 0, start]) * step)
        slab = np.empty((count[0], count[1], stop - start), np.float32)
        ndimage.affine_transform(unit, matrix, corner, slab.shape, output=slab, order=1, mode="constant")
        turned: NDArray[np.float32] = slab.T
        return turned

    return _Source(read, first, step, count)


def _average(
    source: _Source, low: NDArray[np.float64], high: NDArray[np.float64], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """[d, h, w] means over the model's boxes: along z slab by slab, then in-plane as matrix products."""
    depth, height, width = shape
    first, step = source.first_mm, source.step_mm
    along_x, along_y, along_z = (
        _overlap_weights(first[axis], step[axis], source.count[axis], low[axis], high[axis], cells)
        for axis, cells in enumerate((width, height, depth))
    )
    rows, columns = along_y[::-1], along_x[::-1].T
    volume = np.zeros(shape, np.float32)

    def fill(index: int) -> None:
        used = np.flatnonzero(along_z[index])
        if used.size:
            start, stop = int(used[0]), int(used[-1]) + 1
            slab = source.read(start, stop)
            plane = np.tensordot(along_z[index, start:stop], slab, axes=1)
            volume[index] = rows @ (plane @ columns)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(fill, range(depth)))
    return np.clip(volume, 0.0, 1.0, out=volume)


def _overlap_weights(
    first: float, step: float, count: int, low: float, high: float, cells: int
) -> NDArray[np.float32]:
    """Weights [cells, count] that turn samples along a line into means over equal cells of [low, high].

    A cell's box is widened to the sample spacing where it is narrower, which is linear interpolation. Rows
    sum to 1, or are 0 for a cell whose centre lies outside the samples' extent.
    """
    width = (high - low) / cells
    centres = low + (np.arange(cells) + 0.5) * width
    reach = max(width, step) / 2
    samples = first + np.arange(count) * step
    upper = np.minimum(centres[:, None] + reach, samples + step / 2)
    lower = np.maximum(centres[:, None] - reach, samples - step / 2)
    overlap = np.maximum(upper - lower, 0.0)
    overlap[overlap < 1e-6 * step] = 0.0
    inside = (centres >= first - step / 2) & (centres <= first + (count - 0.5) * step)
    total = overlap.sum(axis=1, keepdims=True)
    weights = np.where(inside[:, None], overlap / np.maximum(total, 1e-12), 0.0)
    return weights.astype(np.float32)
