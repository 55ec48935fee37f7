"""Painting and drawing are fast by leaving out what can't matter: the voxels are those of the plain way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tumorchain_agent.training.phantom.anatomy import Anatomy, Part, Tissue
from tumorchain_agent.training.phantom.patient import body_grid, sample_plan
from tumorchain_agent.training.phantom.render import _mixed
from tumorchain_agent.training.phantom.shapes import Ellipsoid, Grid, SmoothField, Tube, at_points

Bytes = NDArray[np.uint8]


def plainly(anatomy: Anatomy, grid: Grid) -> tuple[Bytes, Bytes]:
    """Labels and tissue, every part evaluated on every voxel."""
    axes = [grid.axis(k) for k in range(3)]
    open_axes = np.ix_(*axes)
    x, y, z = (
        a / np.float32(s) + field.on_axes(*axes)
        for a, s, field in zip(open_axes, anatomy.scale, anatomy.displacement, strict=True)
    )
    rough = anatomy.roughness.on_axes(*axes)
    labels, tissue = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    trunk, inner = anatomy.trunk, 1 - anatomy.fat_share
    ratio = Ellipsoid(trunk.centre, (trunk.radii[0], trunk.radii[1], 1e9), power=trunk.power).ratio(x, y, z)
    for limit, kind in ((1.0, Tissue.FAT), (inner, Tissue.MUSCLE), (inner - 0.085, Tissue.FAT)):
        tissue[ratio < limit] = kind
    right, left = map(np.float32, anatomy.dome_z)
    top = np.where(x > 0, right, left)
    dome = top - (np.where(x > 0, x - 78, x + 78) / 14) ** 2 - ((y - 5) / 13) ** 2 + 4 * rough
    lung = (ratio < inner - 0.06) & (z > dome) & (np.abs(x) > 18)
    labels[lung] = np.where(x > 0, np.where(y > 25, 13, 14), np.where(y > 25, 10, 11))[lung]
    tissue[lung] = Tissue.LUNG
    for part in anatomy.parts:
        fill(part, (x, y, z), rough, labels, tissue)
    return labels, tissue


def fill(part: Part, q: tuple[Any, Any, Any], rough: NDArray[Any], labels: Bytes, tissue: Bytes) -> None:
    radius: Any
    if isinstance(part.shape, Tube):
        ratio, t = part.shape.ratio(*q)
        knots = np.linspace(0, 1, part.shape.segments + 1)
        radius = np.interp(t, knots, part.shape.path[:, 3]).astype(np.float32)
        ratio = ratio + rough * np.minimum(1.6 / radius, 0.12)
    else:
        radius = float(np.mean(part.shape.radii))
        ratio = part.shape.ratio(*q) + rough * min(2.2 / radius * 2, 0.1)
    inside = (ratio < 1) & (tissue != Tissue.AIR)
    inside &= np.isin(labels, part.over) | (255 in part.over)
    labels[inside], tissue[inside] = part.label, part.tissue
    if part.rim is not None:
        tissue[inside & (ratio > 1 - 2.4 / radius)] = part.rim
    lumen = inside & (ratio < 1 - part.wall_mm / radius) & (part.wall_mm > 0)
    tissue[lumen] = np.where(lumen, part.lumen, 0)[lumen]
    if part.gas_share > 0 and lumen.any():
        tissue[lumen & (q[1] > np.quantile(q[1][lumen], 1 - part.gas_share))] = Tissue.GAS


@pytest.mark.parametrize("patient", [4, 77])
def test_painting_leaves_out_only_what_can_not_matter(patient: int) -> None:
    plan = sample_plan(patient, tumor_share=0.0)
    grid = body_grid(plan, (8.0, 8.0, 12.0))
    labels, tissue = plainly(plan.anatomy, grid)
    fast = plan.anatomy.paint(grid)
    assert np.array_equal(fast.labels, labels)
    assert np.array_equal(fast.tissue, tissue)
    assert np.array_equal(plan.anatomy.body(grid), tissue != Tissue.AIR)


@pytest.mark.parametrize("shape", [(21, 17, 9), (3, 2, 1), (8, 1, 16)])
def test_mixing_neighbours_is_a_correlation_to_the_bit(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    values = (300 * rng.standard_normal(shape)).astype(np.float32)
    weights = tuple(map(float, rng.uniform(0.01, 0.2, 3)))
    expected = values
    for axis, weight in enumerate(weights):
        kernel = np.array([weight, 1 - 2 * weight, weight], np.float32)
        expected = ndimage.correlate1d(expected, kernel, axis=axis, output=np.float32, mode="nearest")
    mixed = _mixed(values, (weights[0], weights[1], weights[2]))
    assert np.array_equal(mixed, expected)
    assert _mixed(values, (0.0, 0.0, 0.0)) is values


def test_fields_on_one_lattice_are_the_same_together_as_alone(rng: np.random.Generator) -> None:
    fields = [SmoothField.random(rng, 75.0, 5.5) for _ in range(3)]
    points = rng.uniform(-150, 150, (40, 3)).astype(np.float32)
    together = at_points(fields, points)
    assert all(np.array_equal(together[:, k], field.at(points)) for k, field in enumerate(fields))
