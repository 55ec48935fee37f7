"""Phantoms straight in model space: the grid that preprocessing would give, at half its in-plane resolution.

Painting an anatomy costs far more than a new set of lesions, so training keeps a pool of painted anatomies and
draws lesions, contrast and noise anew for every sample.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.tools.organs import MERGE
from tumorchain_agent.tools.preprocess import Preprocessing
from tumorchain_agent.training.phantom.anatomy import Painted
from tumorchain_agent.training.phantom.disease import sample_disease
from tumorchain_agent.training.phantom.mimics import sample_mimics
from tumorchain_agent.training.phantom.patient import ORGANS, Case, Plan, body_grid, realise, sample_plan
from tumorchain_agent.training.phantom.render import Appearance, Sampling
from tumorchain_agent.training.phantom.shapes import Array, Grid, triple
from tumorchain_agent.training.workers import worker_pool

SLICES, PIXELS = 32, 128
Scalar = TypeVar("Scalar", bound=np.generic)


def model_grid(plan: Plan, rng: np.random.Generator | None = None) -> Grid:
    """The (128, 128, 32) grid over the body: square pixels, whole scan length; ``rng`` jitters the crop."""
    coarse = body_grid(plan, (3.0, 3.0, 24.0))
    body = plan.anatomy.body(coarse)
    low, high = [], []
    for k in (0, 1):
        where = np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {k})))
        low.append(coarse.axis(k)[where[0]] - 1.5)
        high.append(coarse.axis(k)[where[-1]] + 1.5)
    side = max(h - lo for lo, h in zip(low, high, strict=True)) + 2 * Preprocessing().margin_mm
    centre = [(h + lo) / 2 for lo, h in zip(low, high, strict=True)]
    if rng is not None:
        side *= rng.uniform(0.99, 1.06)
        centre = [c + rng.uniform(-4, 4) for c in centre]
    pixel = float(side / PIXELS)
    z0, z1 = plan.z_range_mm
    step = max(z1 - z0, side / 2) / SLICES
    origin = (
        centre[0] - side / 2 + pixel / 2,
        centre[1] - side / 2 + pixel / 2,
        (z0 + z1) / 2 - step * (SLICES - 1) / 2,
    )
    return Grid((PIXELS, PIXELS, SLICES), (pixel, pixel, float(step)), triple(origin))


def generate_nano(seed: int, *, tumor_share: float = 0.6, organ: str | None = None) -> Case:
    """The patient of ``patient.generate`` on the (128, 128, 32) grid that nano looks at."""
    plan = sample_plan(seed, tumor_share=tumor_share, organ=organ)
    return realise(plan, model_grid(plan))


def to_model_axes(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """[x, y, z] RAS+ → [d, h, w] (inferior→superior, anterior→posterior, right→left)."""
    return np.ascontiguousarray(array[::-1, ::-1, :].transpose(2, 1, 0))


def windowed(hu: Array, window: float = 400.0, level: float = 40.0) -> Array:
    """Soft-tissue window to [0, 1]."""
    unit: Array = np.clip((hu - (level - window / 2)) / window, 0, 1).astype(np.float32)
    return unit


@dataclass(frozen=True)
class Pool:
    """Painted anatomies on disk, memory-mapped: ``labels`` and ``tissue`` [n, x, y, z]."""

    seeds: NDArray[np.int64]
    grids: NDArray[np.float64]
    """[n, 6] spacing and origin in mm."""
    labels: NDArray[np.uint8]
    tissue: NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path) -> Pool:
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("labels", "tissue"))
        return cls(np.load(folder / "seeds.npy"), np.load(folder / "grids.npy"), *arrays)

    def grid(self, i: int) -> Grid:
        values = self.grids[i]
        return Grid((PIXELS, PIXELS, SLICES), triple(values[:3]), triple(values[3:]))

    def draw(self, rng: np.random.Generator, *, diseases: tuple[float, ...] = (0.25, 0.4, 0.25, 0.1)) -> Case:
        """A new patient with a pooled anatomy; ``diseases`` are the odds of 0, 1, 2 … primary tumours."""
        i = int(rng.integers(len(self.seeds)))
        plan = sample_plan(int(self.seeds[i]), tumor_share=0.0)
        organs = rng.permutation(np.array(ORGANS))[: int(rng.choice(len(diseases), p=diseases))]
        lesions = sample_mimics(rng, plan.anatomy)
        painted, grid = Painted(np.array(self.labels[i]), np.array(self.tissue[i])), self.grid(i)
        for organ in organs:
            lesions += sample_disease(rng, plan.anatomy, str(organ), painted, grid)
        fresh = replace(plan, look=Appearance.sample(rng), lesions=tuple(lesions))
        return realise(fresh, grid, painted, Sampling.random(rng))


def _paint(seed: int) -> tuple[tuple[float, ...], NDArray[np.uint8], NDArray[np.uint8]]:
    plan = sample_plan(seed, tumor_share=0.0)
    grid = model_grid(plan, np.random.default_rng([7, seed]))
    painted = plan.anatomy.paint(grid)
    return (*grid.spacing, *grid.origin), painted.labels, painted.tissue


def make_pool(folder: Path, count: int, first_seed: int, workers: int = 2) -> Pool:
    """Paint ``count`` anatomies into ``folder``; seeds are ``first_seed`` onwards."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = np.arange(first_seed, first_seed + count)
    shape = (count, PIXELS, PIXELS, SLICES)
    open_memmap: Any = np.lib.format.open_memmap
    arrays = [open_memmap(folder / f"{n}.tmp.npy", "w+", np.uint8, shape) for n in ("labels", "tissue")]
    grids = np.zeros((count, 6))
    with worker_pool(workers) as pool:
        for i, (grid, *painted) in enumerate(pool.map(_paint, map(int, seeds), chunksize=8)):
            grids[i] = grid
            for array, values in zip(arrays, painted, strict=True):
                array[i] = values
    np.save(folder / "seeds.npy", seeds)
    np.save(folder / "grids.npy", grids)
    for array, name in zip(arrays, ("labels", "tissue"), strict=True):
        array.flush()
        os.replace(folder / f"{name}.tmp.npy", folder / f"{name}.npy")
    return Pool.open(folder)


@lru_cache(maxsize=4)
def _cell_numbers(shape: tuple[int, ...], grid: tuple[int, int, int]) -> NDArray[np.int32]:
    d, h, w = (np.arange(n) // (n // g) for n, g in zip(shape, grid, strict=True))
    numbers = (d[:, None, None] * grid[1] + h[None, :, None]) * grid[2] + w[None, None, :]
    return np.ascontiguousarray(numbers, dtype=np.int32)


def cell_shares(labels: NDArray[np.uint8], count: int, grid: tuple[int, int, int] = (8, 16, 16)) -> Array:
    """[count, d, h, w]: share of each cell that labels 0 … count − 1 of a [d, h, w] array cover."""
    cells = int(np.prod(grid))
    keys = labels.astype(np.int32) * np.int32(cells)
    keys += _cell_numbers(labels.shape, grid)
    counts = np.bincount(keys.ravel(), minlength=count * cells)
    return (counts.reshape(count, *grid) * (cells / labels.size)).astype(np.float32)


def merged_labels(case: Case) -> NDArray[np.uint8]:
    """[d, h, w] Table 10 ids."""
    merged: NDArray[np.uint8] = MERGE[to_model_axes(case.labels)]
    return merged
