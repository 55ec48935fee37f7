"""A scan of hospital size for the benchmarks: a phantom patient, resampled, with a scanner's noise."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.tools.scan import CT, ct_from_array
from tumorchain_agent.training.phantom.volume import generate_nano

NOISE_HU = 12.0


def hospital_scan(slices: int = 400, side: int = 512, seed: int = 3) -> tuple[CT, NDArray[np.uint8]]:
    """[side, side, slices] HU with noise, and TotalSegmentator ids on the same grid."""
    case = generate_nano(seed)
    pick = [
        np.arange(new) * old // new for old, new in zip(case.labels.shape, (side, side, slices), strict=True)
    ]
    index = np.ix_(*pick)
    hu = case.hu[index].astype(np.float32)
    hu += np.random.default_rng(seed).normal(0, NOISE_HU, hu.shape).astype(np.float32)
    affine = case.grid.affine.copy()
    affine[:3, :3] *= np.array(case.labels.shape) / np.array(hu.shape)
    return ct_from_array(np.round(hu).astype(np.int16), affine), np.asfortranarray(case.labels[index])


def write_gz(ct: CT, path: Path, level: int = 6) -> None:
    """As a hospital's export: int16, gzipped at gzip's own default."""
    image = nib.Nifti1Image(ct.hu.astype(np.int16), ct.affine, dtype=np.int16)  # type: ignore[no-untyped-call]
    path.write_bytes(gzip.compress(image.to_bytes(), level))
