"""Does a scan look like what the checkpoint was trained on?

A handful of summary statistics of the model volume is compared with the ranges that the checkpoint stores
under ``training_distribution["statistics"]``. It is a check of the input, not of the answer: inside the
ranges nothing is promised, outside of them the model has never seen the like, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistics = dict[str, float]
Range = tuple[float, float]

VERSION = "1"
"""Changes when a statistic does: stored ranges and cached values are of one version."""

_MIN_VOXELS = 500
"""Fewer soft-tissue voxels than this and a statistic means nothing: it is left out."""

LABELS = {
    "noise_hu": "noise level in soft tissue (HU)",
    "texture": "noise texture (difference at 1 voxel over difference at 2)",
    "between_slices_hu": "change from slice to slice in soft tissue (HU)",
    "edges_hu": "edge strength inside the body (HU per voxel)",
    "soft_mean_hu": "mean of soft tissue (HU)",
    "soft_sd_hu": "spread of soft tissue (HU)",
    "fat_share": "share of the body that is fat",
    "bright_share": "share of the body between 100 HU and the window's top",
    "bone_share": "share of the body above the window",
    "body_share": "share of the model volume that is body",
}


@dataclass(frozen=True)
class Departure:
    """One statistic outside the range of the training data."""

    name: str
    value: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """How far outside, in widths of the range."""
        if np.isnan(self.value):
            return float("inf")
        return max(self.low - self.value, self.value - self.high) / max(self.high - self.low, 1e-12)

    def __str__(self) -> str:
        value = "not measurable" if np.isnan(self.value) else f"{self.value:.3g}"
        return f"{LABELS.get(self.name, self.name)} {value}, trained on {self.low:.3g} to {self.high:.3g}"


def _robust_sd(values: NDArray[np.float32]) -> float:
    """Median absolute deviation, scaled to the standard deviation of a normal distribution."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def volume_statistics(volume: NDArray[np.float32], *, window_hu: float, level_hu: float) -> Statistics:
    """Summary statistics of a model volume [1, D, H, W] in [0, 1], in HU where the name says so.

    Statistics that need more soft tissue than the volume holds are left out.
    """
    hu = volume[0] * np.float32(window_hu) + np.float32(level_hu - window_hu / 2)
    low, high = level_hu - window_hu / 2, level_hu + window_hu / 2
    body = hu > low + 0.02 * window_hu
    inside = max(int(body.sum()), 1)
    soft = (hu > 0) & (hu < 100)
    result: Statistics = {
        "fat_share": float((body & (hu < -20)).sum() / inside),
        "bright_share": float(((hu >= 100) & (hu < high - 1)).sum() / inside),
        "bone_share": float((hu >= high - 1).sum() / inside),
        "body_share": float(body.mean()),
    }
    if soft.sum() < _MIN_VOXELS:
        return result
    result["soft_mean_hu"] = float(hu[soft].mean())
    result["soft_sd_hu"] = float(hu[soft].std())
    return result | _texture(hu, body, soft)


def _texture(hu: NDArray[np.float32], body: NDArray[np.bool_], soft: NDArray[np.bool_]) -> Statistics:
    """Noise along w inside soft tissue, change along d, and edges; all from plain differences."""
    result: Statistics = {}
    row = soft[:, :, :-2] & soft[:, :, 1:-1] & soft[:, :, 2:]
    if row.sum() >= _MIN_VOXELS:
        first, middle, last = hu[:, :, :-2][row], hu[:, :, 1:-1][row], hu[:, :, 2:][row]
        result["noise_hu"] = _robust_sd(first - 2 * middle + last) / 6**0.5
        two_apart = _robust_sd(last - first)
        if two_apart > 0:
            result["texture"] = _robust_sd(middle - first) / two_apart
    pair = soft[:-1] & soft[1:]
    if pair.sum() >= _MIN_VOXELS:
        result["between_slices_hu"] = _robust_sd(hu[1:][pair] - hu[:-1][pair])
    both = body[:, :, :-1] & body[:, :, 1:]
    if both.sum() >= _MIN_VOXELS:
        result["edges_hu"] = float(np.percentile(np.abs(np.diff(hu, axis=2))[both], 90))
    return result


def fit_ranges(statistics: Iterable[Statistics], *, deviations: float = 4.0) -> dict[str, Range]:
    """Ranges to store in a checkpoint, from two dozen training scans or more.

    Of each statistic the mean ± ``deviations`` standard deviations, at least 2 % of it, and all values seen;
    not below 0 for what never is.
    """
    seen: dict[str, list[float]] = {}
    for one in statistics:
        for name, value in one.items():
            seen.setdefault(name, []).append(value)
    ranges: dict[str, Range] = {}
    for name, values in seen.items():
        mean = float(np.mean(values))
        room = max(deviations * float(np.std(values)), 0.02 * abs(mean))
        lowest = 0.0 if min(values) >= 0 else -np.inf
        ranges[name] = (max(lowest, min(mean - room, *values)), max(mean + room, *values))
    return ranges


def parse_ranges(training_distribution: Mapping[str, object]) -> dict[str, Range]:
    """The ranges in a checkpoint's ``training_distribution``, none when it holds none."""
    stored = training_distribution.get("statistics")
    if not isinstance(stored, dict):
        return {}
    return {name: (float(low), float(high)) for name, (low, high) in stored.items()}


def departures(statistics: Statistics, ranges: Mapping[str, Range]) -> list[Departure]:
    """The statistics outside their range, farthest first; one that the volume lacks counts as outside."""
    found = []
    for name, (low, high) in ranges.items():
        value = statistics.get(name, float("nan"))
        if not low <= value <= high:
            found.append(Departure(name, value, low, high))
    return sorted(found, key=lambda departure: -departure.distance)
