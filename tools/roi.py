"""Γ: which patches of the model volume each organ covers, and an organ's tokens (ROI tokens τ_l)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import InputError
from tumorchain_agent.tools.organs import MERGE, ORGANS

if TYPE_CHECKING:
    from torch import Tensor

    from tumorchain_agent.tools.preprocess import ModelVolume

PATCH: Final = (4, 16, 16)
"""Model voxels of a patch along d, h, w."""
GRID: Final = (8, 16, 16)
"""Patches of the (32, 256, 256) model volume along d, h, w; token order is d slowest, w fastest."""
CELLS: Final = 8 * 16 * 16

MIN_COVERAGE: Final = 0.05
MAX_TOKENS: Final = 64
BLOCKS: Final = (
    (1, 1, 2),
    (1, 2, 2),
    (2, 2, 2),
    (2, 2, 4),
    (2, 4, 4),
    (4, 4, 4),
    (4, 4, 8),
    (4, 8, 8),
    (8, 8, 8),
)
"""Blocks of patches (d, h, w) over which the tokens of a large organ are averaged, smallest first."""

_POINTS_PER_PATCH = 8
"""In an oblique scan a voxel is divided until its parts are at most this fraction of a patch."""

Coverage = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Tokens as weighted means of vision tokens: known from an organ's coverage alone, before any encoding."""

    cells: NDArray[np.int64]
    """[k] indices into the 2048 vision tokens."""
    groups: NDArray[np.int64]
    """[k] which of the ``count`` tokens each cell belongs to."""
    weights: Coverage
    """[k]; those of a token sum to 1."""
    count: int

    def of(self, tokens: Tensor) -> Tensor:
        """[count, C] from the vision tokens [2048, C]; differentiable."""
        import torch

        picked = tokens[torch.from_numpy(self.cells).to(tokens.device)]
        if self.count == len(self.cells):
            return picked
        matrix = np.zeros((self.count, len(self.cells)), np.float32)
        matrix[self.groups, np.arange(len(self.cells))] = self.weights
        return (torch.from_numpy(matrix).to(tokens.device) @ picked.float()).to(tokens.dtype)


@dataclass(frozen=True, eq=False)
class RoiTokens:
    """Tokens of one organ."""

    tokens: Tensor
    """[n, C]; n is 0 for an organ that isn't in the model volume."""
    cells: NDArray[np.int64]
    """Indices into the 2048 tokens of the k patches that the organ covers, ascending."""
    pooled: bool
    """Whether tokens are averages over blocks of patches, because the organ covers more than the maximum."""


def organ_coverage(labels: NDArray[np.uint8], affine: NDArray[np.float64], model: ModelVolume) -> Coverage:
    """Fraction of each patch's volume that each Table 10 organ covers: [57, 8, 16, 16].

    Index 0 is the rest: background, and what lies outside the scan. ``labels`` are TotalSegmentator ids
    [x, y, z], ``affine`` maps their indices to mm. Every voxel counts with its volume, divided among the
    patches that it overlaps: exactly where the scan lies parallel to the model volume, by sub-voxel points
    where it is oblique. Voxels outside the model volume are left out. One pass, slice by slice.
    """
    to_model = np.linalg.inv(model.affine) @ affine
    to_patch = np.diag([*(1 / np.array(PATCH, float)), 1.0]) @ _shift(0.5) @ to_model
    axes = _aligned_axes(to_patch, labels.shape)
    counted = _aligned(labels, to_patch, axes) if axes is not None else _oblique(labels, to_patch)
    counted[0] = np.clip(1 - counted[1:].sum(axis=0), 0, 1)
    return counted.astype(np.float32)


def _shift(by: float) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


def _aligned_axes(to_patch: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """For each of x, y, z the patch axis (0 d, 1 h, 2 w) that it runs along; ``None`` for an oblique scan.

    Slants that move no voxel by a hundredth of a patch are rounding, not obliqueness.
    """
    linear = np.abs(to_patch[:3, :3])
    axes = tuple(int(axis) for axis in linear.argmax(axis=0))
    if sorted(axes) != [0, 1, 2]:
        return None
    drift = linear * np.array(shape, float)
    drift[list(axes), [0, 1, 2]] = 0
    return (axes[0], axes[1], axes[2]) if float(drift.sum(axis=1).max()) < 0.01 else None


def _axis_overlap(start: float, step: float, count: int, patches: int) -> tuple[NDArray[np.intp], Coverage]:
    """Bins along one axis: bin of each voxel [count], and the length of each bin's voxel in each patch.

    A bin is a run of voxels with the same patches: all voxels inside patch p share one, a voxel across a
    boundary has its own. ``overlap`` [patches, bins] is in patch units. Voxel i reaches from
    ``start + (i − ½) step`` to ``start + (i + ½) step``.
    """
    ends = start + (np.arange(count + 1) - 0.5) * step
    low, high = np.minimum(ends[:-1], ends[1:]), np.maximum(ends[:-1], ends[1:])
    first = np.floor(low + 1e-9).astype(int)
    last = np.ceil(high - 1e-9).astype(int) - 1
    alone = first != last
    new_bin = np.ones(count, dtype=bool)
    new_bin[1:] = alone[1:] | alone[:-1] | (first[1:] != first[:-1])
    bins = np.cumsum(new_bin) - 1
    heads = np.flatnonzero(new_bin)
    edges = np.arange(patches)[:, None]
    overlap = np.minimum(high[heads], edges + 1) - np.maximum(low[heads], edges)
    return bins, np.clip(overlap, 0, None).astype(np.float32)


def _aligned(
    labels: NDArray[np.uint8], to_patch: NDArray[np.float64], axes: tuple[int, int, int]
) -> NDArray[np.float64]:
    """Count voxels by (organ, bin, bin, bin), then distribute the bins over the patches they overlap."""
    found = [
        _axis_overlap(float(to_patch[axis, 3]), float(to_patch[axis, k]), labels.shape[k], GRID[axis])
        for k, axis in enumerate(axes)
    ]
    (bx, wx), (by, wy), (bz, wz) = found
    nx, ny = wx.shape[1], wy.shape[1]
    plane = (bx[:, None] * ny + by[None, :]).astype(np.int32)
    counts = np.zeros((len(ORGANS) + 1, nx * ny, wz.shape[1]), np.int64)
    for index in range(labels.shape[2]):
        organs = MERGE[labels[:, :, index]]
        mask = organs > 0
        keys = organs[mask].astype(np.int32) * np.int32(nx * ny) + plane[mask]
        counts[:, :, bz[index]] += np.bincount(keys, minlength=counts[:, :, 0].size).reshape(-1, nx * ny)
    volume: NDArray[Any] = counts.reshape(-1, nx, ny, wz.shape[1]).astype(np.float64)
    for weights in (wx, wy, wz):
        volume = np.moveaxis(np.tensordot(weights, volume, axes=([1], [1])), 0, -1)
    return volume.transpose(0, *(1 + axes.index(axis) for axis in range(3)))


def _oblique(labels: NDArray[np.uint8], to_patch: NDArray[np.float64]) -> NDArray[np.float64]:
    """Count sub-voxel points by (organ, patch)."""
    offsets = _sub_voxel_offsets(to_patch)
    unit = abs(float(np.linalg.det(to_patch[:3, :3]))) / len(offsets)
    counts = np.zeros((len(ORGANS) + 1) * CELLS, np.int64)
    limits = np.array(GRID)
    for index in range(labels.shape[2]):
        organs = MERGE[labels[:, :, index]]
        x, y = np.nonzero(organs)
        centres = np.column_stack([x, y, np.full(len(x), index)]) @ to_patch[:3, :3].T + to_patch[:3, 3]
        first = organs[x, y].astype(np.int64) * CELLS
        for offset in offsets:
            cells = np.floor(centres + offset).astype(np.int64)
            inside = ((cells >= 0) & (cells < limits)).all(axis=1)
            d, h, w = cells[inside].T
            counts += np.bincount(
                first[inside] + np.ravel_multi_index((d, h, w), GRID), minlength=counts.size
            )
    volume = counts.reshape(-1, *GRID).astype(np.float64)
    volume *= unit
    return volume


def _sub_voxel_offsets(to_patch: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 3] offsets in patch units that divide a voxel evenly."""
    linear = to_patch[:3, :3]
    parts = np.ceil(np.abs(linear).max(axis=0) * _POINTS_PER_PATCH - 1e-9).clip(1, 8).astype(int)
    steps = [(np.arange(n) + 0.5) / n - 0.5 for n in parts]
    points = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    offsets: NDArray[np.float64] = points @ linear.T
    return offsets


def covered_cells(coverage: Coverage | Tensor, min_coverage: float = MIN_COVERAGE) -> NDArray[np.int64]:
    """Indices of the patches that an organ covers, ascending.

    Patches of at least ``min_coverage``; for an organ that reaches it nowhere its best patch; none when it is
    outside the model volume. ``coverage`` is [8, 16, 16].
    """
    flat = np.asarray(coverage, dtype=np.float32).reshape(-1)
    if flat.size != CELLS:
        raise InputError(f"coverage has {flat.size} patches, not {CELLS}; pass one organ's [8, 16, 16]")
    cells = np.flatnonzero((flat >= min_coverage) & (flat > 0))
    if len(cells) == 0 and flat.max() > 0:
        cells = np.array([flat.argmax()])
    return cells.astype(np.int64)


def roi_mixture(
    coverage: Coverage | Tensor, max_tokens: int = MAX_TOKENS, min_coverage: float = MIN_COVERAGE
) -> Mixture:
    """How an organ's tokens come from the vision tokens, in (d, h, w) order.

    An organ that covers more than ``max_tokens`` patches is averaged over blocks of patches, the smallest of
    ``BLOCKS`` that gives few enough tokens: only its own patches, weighted by coverage. No patch is dropped.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
    cells = covered_cells(coverage, min_coverage)
    if len(cells) <= max_tokens:
        return Mixture(cells, np.arange(len(cells)), np.ones(len(cells), np.float32), len(cells))
    d, h, w = np.unravel_index(cells, GRID)
    for block in (*BLOCKS, GRID):
        shape = tuple(-(-n // b) for n, b in zip(GRID, block, strict=True))
        blocks = np.ravel_multi_index((d // block[0], h // block[1], w // block[2]), shape)
        kept, groups = np.unique(blocks, return_inverse=True)
        if len(kept) <= max_tokens:
            break
    return _mixture(coverage, cells, groups, len(kept))


def mean_mixture(coverage: Coverage | Tensor, min_coverage: float = MIN_COVERAGE) -> Mixture:
    """Coverage-weighted mean of an organ's tokens, for Cls. Raises InputError for an absent organ."""
    cells = covered_cells(coverage, min_coverage)
    if len(cells) == 0:
        raise InputError(
            "the organ covers no patch of the model volume, so it can't be classified; leave it out"
        )
    return _mixture(coverage, cells, np.zeros(len(cells), np.int64), 1)


def global_mixture() -> Mixture:
    """τ_g before projection: means over 2 × 2 × 2 patches, d slowest, w fastest."""
    d, h, w = np.unravel_index(np.arange(CELLS), GRID)
    half = tuple(n // 2 for n in GRID)
    groups = np.ravel_multi_index((d // 2, h // 2, w // 2), half)
    return Mixture(np.arange(CELLS), groups, np.full(CELLS, 1 / 8, np.float32), CELLS // 8)


def _mixture(
    coverage: Coverage | Tensor, cells: NDArray[np.int64], groups: NDArray[np.int64], count: int
) -> Mixture:
    weights = np.asarray(coverage, dtype=np.float32).reshape(-1)[cells]
    sums = np.bincount(groups, weights=weights, minlength=count).astype(np.float32)
    return Mixture(cells, groups, weights / sums[groups], count)


def roi_tokens(
    tokens: Tensor,
    coverage: Coverage | Tensor,
    max_tokens: int = MAX_TOKENS,
    min_coverage: float = MIN_COVERAGE,
) -> RoiTokens:
    """An organ's tokens out of ``tokens`` [2048, C] by :func:`roi_mixture`."""
    _check_tokens(tokens)
    mixture = roi_mixture(coverage, max_tokens, min_coverage)
    return RoiTokens(mixture.of(tokens), mixture.cells, pooled=mixture.count < len(mixture.cells))


def mean_roi(tokens: Tensor, coverage: Coverage | Tensor, min_coverage: float = MIN_COVERAGE) -> Tensor:
    """[C]: an organ's mean token by :func:`mean_mixture`. Raises InputError for an absent organ."""
    _check_tokens(tokens)
    return mean_mixture(coverage, min_coverage).of(tokens)[0]


def global_pool(tokens: Tensor) -> Tensor:
    """Vision tokens [2048, C] averaged over 2 × 2 × 2 patches → [256, C], d slowest, w fastest (τ_g)."""
    _check_tokens(tokens)
    d, h, w = GRID
    return tokens.reshape(d // 2, 2, h // 2, 2, w // 2, 2, -1).mean(dim=(1, 3, 5)).reshape(CELLS // 8, -1)


def _check_tokens(tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.shape[0] != CELLS:
        raise InputError(f"vision tokens are {tuple(tokens.shape)}, not [{CELLS}, C]; encode one scan")
