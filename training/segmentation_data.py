"""Cases and augmentation for training the nano segmentation network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tumorchain_agent.errors import InputError
from tumorchain_agent.tools.segment import to_grid, to_spacing
from tumorchain_agent.training.segmentation_network import SPACING_MM, STRIDE, normalize

IGNORE = 255
"""Label of voxels outside the scan; carries no loss."""


@dataclass(frozen=True)
class Case:
    """One scan at the network's spacing."""

    name: str
    hu: NDArray[np.int16]
    """[z, y, x]: nnU-Net's axis order."""
    labels: NDArray[np.uint8]
    """TotalSegmentator ids [z, y, x]."""


def read_case(path: Path) -> Case:
    """An .npz of ``phantom.export.write_arrays``, brought to 3 mm. Raises InputError."""
    try:
        with np.load(path) as stored:
            hu, labels, spacing = stored["hu"], stored["labels"], stored["spacing"]
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} has no readable hu, labels, spacing ({error}); write it again") from error
    if hu.shape != labels.shape or hu.ndim != 3:
        raise InputError(f"{path}: hu {hu.shape}, labels {labels.shape} are not one 3-D grid; write it again")
    image = to_spacing(hu.astype(np.float32), spacing, SPACING_MM)
    small = to_grid(labels, image.shape)
    return Case(path.stem, np.ascontiguousarray(image.T, np.int16), np.ascontiguousarray(small.T))


class CaseFolder:
    """The .npz cases of a folder, by name; kept in memory up to ``memory_gb``, else read again."""

    def __init__(self, paths: Iterable[Path], memory_gb: float = 4.0) -> None:
        self.paths = sorted(paths)
        self._kept: dict[int, Case] = {}
        self._room = int(memory_gb * 2**30)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Case:
        if index in self._kept:
            return self._kept[index]
        case = read_case(self.paths[index])
        size = case.hu.nbytes + case.labels.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[index] = case
        return case

    def frequencies(self) -> dict[int, float]:
        """Share of the voxels of each label id that occurs, background (0) first."""
        counts = np.zeros(256, np.int64)
        for index in range(len(self)):
            counts += np.bincount(self[index].labels.ravel(), minlength=256)
        counts[0] = max(counts[0], 1)
        return {int(key): float(counts[key] / counts.sum()) for key in np.flatnonzero(counts)}


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges. Intensities in HU, angles in degrees."""

    crop: tuple[int, int, int] = (96, 112, 112)
    """[z, y, x] voxels of 3 mm, multiples of 16."""
    p_foreground: float = 0.6
    """Centre the crop on a voxel of a random structure, else anywhere."""
    p_z_cut: float = 0.5
    min_z: int = 24
    p_spatial: float = 0.4
    rotation: tuple[float, float, float] = (12.0, 5.0, 5.0)
    """Largest angle about z, y, x."""
    scaling: tuple[float, float] = (0.85, 1.2)
    p_thick_slices: float = 0.25
    thick_slices: tuple[float, float] = (1.3, 2.7)
    p_blur: float = 0.3
    blur_voxels: tuple[float, float] = (0.3, 0.9)
    contrast: tuple[float, float] = (0.85, 1.15)
    shift_hu: float = 20.0
    organ_shift_hu: float = 12.0
    """Standard deviation of a shift of each structure of its own."""
    noise_hu: float = 30.0
    """Largest standard deviation of white noise."""
    p_gamma: float = 0.3
    gamma: tuple[float, float] = (0.75, 1.35)


class Sampler:
    """Random crops of random cases; a seed gives the same sequence."""

    def __init__(
        self, cases: CaseFolder, augmentation: Augmentation, seed: int, device: torch.device
    ) -> None:
        self.cases, self.augmentation, self.device = cases, augmentation, device
        self.random = np.random.default_rng(seed)
        self.noise = torch.Generator(device=device).manual_seed(seed)

    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised image [1, 1, z, y, x] and ids int64 [1, z, y, x] with ``IGNORE`` outside the scan."""
        case = self.cases[int(self.random.integers(len(self.cases)))]
        hu, labels = self._cut(case)
        centre = self._centre(labels)
        volume = torch.from_numpy(hu).to(self.device, torch.float32)
        mask = torch.from_numpy(labels).to(self.device)
        image, target = self._crop(volume, mask, centre)
        image = self._degrade(self._intensity(image, target))
        inside = target != IGNORE
        return torch.where(inside, normalize(image), 0.0)[None, None], target[None].long()

    def _chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def _between(self, limits: tuple[float, float]) -> float:
        return float(self.random.uniform(*limits))

    def _cut(self, case: Case) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        depth, options = case.hu.shape[0], self.augmentation
        if depth <= options.min_z or not self._chance(options.p_z_cut):
            return case.hu, case.labels
        length = int(self.random.integers(options.min_z, depth + 1))
        start = int(self.random.integers(0, depth - length + 1))
        return case.hu[start : start + length], case.labels[start : start + length]

    def _centre(self, labels: NDArray[np.uint8]) -> NDArray[np.float64]:
        shape = np.array(labels.shape)
        crop = np.array(self.augmentation.crop)
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]) + 1
        if len(present) and self._chance(self.augmentation.p_foreground):
            voxels = np.flatnonzero(labels == self.random.choice(present))
            spot = np.array(np.unravel_index(self.random.choice(voxels), labels.shape))
        else:
            spot = self.random.integers(0, shape)
        low, high = np.minimum(crop, shape) // 2, shape - (np.minimum(crop, shape) + 1) // 2
        centre: NDArray[np.float64] = np.clip(spot, low, high).astype(np.float64)
        return centre

    def _crop(
        self, hu: torch.Tensor, labels: torch.Tensor, centre: NDArray[np.float64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = tuple(
            min(c, -(-n // STRIDE) * STRIDE) for c, n in zip(self.augmentation.crop, hu.shape, strict=True)
        )
        if self._chance(self.augmentation.p_spatial):
            return _warp(hu, labels, shape, centre, self._matrix())
        return _slice(hu, labels, shape, centre)

    def _matrix(self) -> NDArray[np.float64]:
        z, y, x = (math.radians(self._between((-limit, limit))) for limit in self.augmentation.rotation)
        rotation = np.eye(3)
        for angle, (a, b) in ((z, (1, 2)), (y, (0, 2)), (x, (0, 1))):
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = math.cos(angle)
            turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
            rotation = rotation @ turn
        return rotation / self._between(self.augmentation.scaling)

    def _intensity(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        options = self.augmentation
        shifts = torch.randn(256, generator=self.noise, device=self.device) * options.organ_shift_hu
        shifts[0] = shifts[IGNORE] = 0
        image = image + shifts[target.int()]
        image = image * self._between(options.contrast) + self._between((-options.shift_hu, options.shift_hu))
        if self._chance(options.p_gamma):
            unit = ((image + 500) / 1000).clamp(0, 1)
            image = unit ** self._between(options.gamma) * 1000 - 500
        return image

    def _degrade(self, image: torch.Tensor) -> torch.Tensor:
        options = self.augmentation
        if self._chance(options.p_blur):
            image = _blur(image, self._between(options.blur_voxels))
        noise = torch.randn(image.shape, generator=self.noise, device=self.device)
        image = image + noise * self._between((0.0, options.noise_hu))
        if self._chance(options.p_thick_slices):
            depth = image.shape[0]
            thick = max(2, round(depth / self._between(options.thick_slices)))
            slices = F.adaptive_avg_pool3d(image[None, None], (thick, *image.shape[1:]))
            image = F.interpolate(slices, image.shape, mode="trilinear", align_corners=False)[0, 0]
        return image


def _slice(
    hu: torch.Tensor, labels: torch.Tensor, shape: tuple[int, ...], centre: NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The window of ``shape`` around ``centre``, padded where the scan is smaller."""
    starts = [int(c) - min(s, n) // 2 for c, s, n in zip(centre, shape, hu.shape, strict=True)]
    window = tuple(slice(a, a + min(s, n)) for a, s, n in zip(starts, shape, hu.shape, strict=True))
    padding: list[int] = []
    for s, n in zip(reversed(shape), reversed(hu.shape), strict=True):
        missing = max(s - n, 0)
        padding += [missing // 2, missing - missing // 2]
    return F.pad(hu[window], padding), F.pad(labels[window], padding, value=IGNORE)


def _warp(
    hu: torch.Tensor,
    labels: torch.Tensor,
    shape: tuple[int, ...],
    centre: NDArray[np.float64],
    matrix: NDArray[np.float64],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample the window of ``shape`` at ``centre + matrix · offset``; labels by nearest neighbour."""
    size, out = np.array(hu.shape, np.float64), np.array(shape, np.float64)
    theta = np.zeros((3, 4))
    theta[:, :3] = matrix * out[None, :] / size[:, None]
    theta[:, 3] = (2 * centre + 1) / size - 1
    theta = theta[::-1, [2, 1, 0, 3]].copy()
    grid = F.affine_grid(
        torch.from_numpy(theta[None]).to(hu.device, torch.float32), [1, 1, *shape], align_corners=False
    )
    image = F.grid_sample(hu[None, None], grid, "bilinear", "border", align_corners=False)
    codes = (labels.float() + 1)[None, None]
    near = F.grid_sample(codes, grid, "nearest", "zeros", align_corners=False)
    target = torch.where(near == 0, float(IGNORE), near - 1)
    return image[0, 0], target[0, 0].to(torch.uint8)


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian, radius 2 voxels."""
    offsets = torch.arange(-2, 3, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        moved = image.movedim(axis, -1)
        padded = F.pad(moved, (2, 2), mode="replicate")
        n = moved.shape[-1]
        image = sum(kernel[i] * padded[..., i : i + n] for i in range(5)).movedim(-1, axis)  # type: ignore[union-attr]
    return image
