"""Telling scans that the checkpoint has never seen the like of."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tests.conftest import SEED
from tumorchain_agent.tools.distribution import (
    departures,
    fit_ranges,
    parse_ranges,
    volume_statistics,
)


def volume(rng: np.random.Generator, *, noise_hu: float = 12.0, smooth: float = 0.0) -> NDArray[np.float32]:
    """A model volume: an ellipse of soft tissue in air, with noise."""
    d, h, w = np.meshgrid(np.arange(32), np.arange(256), np.arange(256), indexing="ij")
    body = ((h - 128) / 90) ** 2 + ((w - 128) / 115) ** 2 < 1
    noise = rng.normal(size=body.shape)
    if smooth:
        noise = gaussian_filter(noise, smooth)
        noise /= noise.std()
    hu = np.where(body, 50.0 + 8 * (d % 2) + noise_hu * noise, -1000.0)
    return np.clip((hu + 160) / 400, 0, 1).astype(np.float32)[None]


def statistics(values: NDArray[np.float32]) -> dict[str, float]:
    return volume_statistics(values, window_hu=400.0, level_hu=40.0)


@pytest.fixture(scope="module")
def trained_on() -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(SEED)
    return fit_ranges(statistics(volume(rng, noise_hu=level)) for level in (10.0, 12.0, 14.0))


def test_noise_is_measured_in_hu(rng: np.random.Generator) -> None:
    assert statistics(volume(rng, noise_hu=12.0))["noise_hu"] == pytest.approx(12.0, rel=0.05)


def test_a_scan_like_the_training_scans_raises_nothing(
    rng: np.random.Generator, trained_on: dict[str, tuple[float, float]]
) -> None:
    assert departures(statistics(volume(rng, noise_hu=11.0)), trained_on) == []


@pytest.mark.parametrize(("noise_hu", "smooth", "name"), [(40.0, 0.0, "noise_hu"), (12.0, 1.5, "texture")])
def test_other_noise_is_told_by_name(
    rng: np.random.Generator,
    trained_on: dict[str, tuple[float, float]],
    noise_hu: float,
    smooth: float,
    name: str,
) -> None:
    found = departures(statistics(volume(rng, noise_hu=noise_hu, smooth=smooth)), trained_on)
    assert name in [departure.name for departure in found]
    assert all("trained on" in str(departure) for departure in found)


def test_a_scan_too_empty_to_measure_is_unlike_any(trained_on: dict[str, tuple[float, float]]) -> None:
    found = departures(statistics(np.zeros((1, 32, 256, 256), np.float32)), trained_on)
    assert "not measurable" in str(next(d for d in found if d.name == "noise_hu"))


def test_ranges_come_back_from_a_checkpoints_json() -> None:
    assert parse_ranges({"statistics": {"noise_hu": [1, 2.5]}}) == {"noise_hu": (1.0, 2.5)}
    assert parse_ranges({}) == {}
