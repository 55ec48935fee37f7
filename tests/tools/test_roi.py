"""Γ: volume is conserved, geometry doesn't matter, and no patch of an organ is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import torso, torso_grid
from tumorchain_agent.errors import InputError
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.organs import MERGE, ORGANS
from tumorchain_agent.tools.preprocess import ModelVolume, preprocess
from tumorchain_agent.tools.roi import (
    CELLS,
    GRID,
    Coverage,
    covered_cells,
    global_mixture,
    global_pool,
    mean_roi,
    organ_coverage,
    roi_tokens,
)
from tumorchain_agent.tools.scan import open_ct

Affine = NDArray[np.float64]
LIVER = next(key for key, name in ORGANS.items() if name == "liver")
PATCH_ML = (4 * 8.0) * (16 * 1.4) ** 2 / 1000


def model(offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> ModelVolume:
    """A model volume of 8 × 1.4 × 1.4 mm voxels around the origin; d up, h to the back, w to the left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 8.0, -1.4, -1.4, 1.0
    affine[:3, 3] = np.array([1.4 * 127.5, 1.4 * 127.5, -8.0 * 15.5]) + offset_mm
    return ModelVolume(np.zeros((1, 32, 256, 256), np.float32), affine, np.eye(4))


def rotation(degrees: float, first: int, second: int) -> Affine:
    turn = np.eye(4)
    angle = np.radians(degrees)
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    return turn


def millilitres(labels: NDArray[np.uint8], affine: Affine, organ: int) -> float:
    return float((MERGE[labels] == organ).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)


def random_labels(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return rng.integers(0, 118, shape).astype(np.uint8)


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (0.9, 0.9, 5.0), (2.3, 1.7, 11.0), (40.0, 30.0, 50.0)])
def test_coverage_conserves_the_volume_of_every_organ(
    rng: np.random.Generator, spacing: tuple[float, float, float]
) -> None:
    shape = tuple(int(n) for n in np.ceil(160 / np.array(spacing)))
    labels = random_labels(rng, shape)  # type: ignore[arg-type]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng.uniform(-90, -70, 3)
    coverage = organ_coverage(labels, affine, model())
    for organ in ORGANS:
        assert coverage[organ].sum() * PATCH_ML == pytest.approx(millilitres(labels, affine, organ), rel=1e-4)
    assert coverage.min() >= 0
    assert coverage[1:].sum(axis=0).max() <= 1 + 1e-5
    np.testing.assert_allclose(coverage.sum(axis=0), 1, atol=1e-5)


def test_an_oblique_scan_conserves_volume_too(rng: np.random.Generator) -> None:
    labels = random_labels(rng, (50, 40, 30))
    affine = rotation(17, 0, 1) @ rotation(9, 0, 2) @ np.diag([3.0, 2.5, 5.0, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(labels.shape) / 2)
    coverage = organ_coverage(labels, affine, model())
    for organ in ORGANS:
        assert coverage[organ].sum() * PATCH_ML == pytest.approx(millilitres(labels, affine, organ), rel=1e-4)


def test_an_organ_that_fills_the_scan_fills_its_inner_patches_and_no_others() -> None:
    affine, shape = torso_grid(1.5, 1.5, 5.0)
    coverage = organ_coverage(np.full(shape, 5, np.uint8), affine, model())[LIVER]
    inner = coverage[2:6, 4:12, 4:12]
    np.testing.assert_allclose(inner, 1, atol=1e-5)
    assert coverage.max() <= 1 + 1e-5


@pytest.mark.parametrize("flip", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_flipped_scan_has_the_same_coverage(flip: tuple[int, ...]) -> None:
    affine, shape = torso_grid(3.0)
    labels = torso(affine, shape)[1]
    turned = affine.copy()
    for axis in flip:
        turned[:3, 3] += turned[:3, axis] * (shape[axis] - 1)
        turned[:3, axis] *= -1
    flipped = np.flip(labels, flip)
    np.testing.assert_allclose(
        organ_coverage(flipped, turned, model()), organ_coverage(labels, affine, model()), atol=1e-5
    )


def test_permuted_axes_have_the_same_coverage() -> None:
    affine, shape = torso_grid(3.0)
    labels = torso(affine, shape)[1]
    swapped = affine[:, [2, 0, 1, 3]]
    np.testing.assert_allclose(
        organ_coverage(labels.transpose(2, 0, 1), swapped, model()),
        organ_coverage(labels, affine, model()),
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def reference() -> Coverage:
    """The liver's coverage, counted on a fine grid."""
    affine, shape = torso_grid(2.0)
    liver: Coverage = organ_coverage(torso(affine, shape)[1], affine, model())[LIVER]
    return liver


@pytest.mark.parametrize("grid", ["coarse", "thick slices", "oblique"])
def test_one_anatomy_on_any_grid_covers_the_same_patches(grid: str, reference: Coverage) -> None:
    affine, shape = torso_grid(2.0, 2.0, 5.0) if grid == "thick slices" else torso_grid(3.0)
    if grid == "oblique":
        affine = rotation(12, 0, 1) @ rotation(8, 1, 2) @ affine
    coverage = organ_coverage(torso(affine, shape)[1], affine, model())[LIVER]
    assert np.abs(coverage - reference).max() < 0.08
    both = set(covered_cells(coverage, 0.2)) & set(covered_cells(reference, 0.1))
    assert both == set(covered_cells(coverage, 0.2))


def test_the_patches_of_a_real_scan_hold_its_organs(real: Path) -> None:
    folder = real / "totalsegmentator"
    ct = open_ct(folder / "example_ct.nii.gz")
    labels = load_label_map(folder / "example_seg_fast_force_split.nii.gz", ct).labels
    volume = preprocess(ct)
    coverage = organ_coverage(labels, ct.affine, volume)
    patch_ml = float(np.prod(volume.spacing_mm) * 4 * 16 * 16 / 1000)
    assert coverage[LIVER].sum() * patch_ml == pytest.approx(1125.68, abs=0.05)
    assert len(covered_cells(coverage[LIVER])) > 64
    esophagus = next(key for key, name in ORGANS.items() if name == "esophagus")
    assert len(covered_cells(coverage[esophagus])) == 0


def test_aligned_and_oblique_counting_agree() -> None:
    affine, shape = torso_grid(3.0)
    labels = torso(affine, shape)[1]
    slanted = rotation(0.3, 0, 1) @ affine
    straight, general = organ_coverage(labels, affine, model()), organ_coverage(labels, slanted, model())
    assert np.abs(straight - general).max() < 0.06


def test_a_single_voxel_lands_in_the_patch_that_holds_it(rng: np.random.Generator) -> None:
    volume = model()
    affine, shape = torso_grid(2.0)
    for _ in range(20):
        ijk = rng.integers(20, np.array(shape) - 20)
        labels = np.zeros(shape, np.uint8)
        labels[tuple(ijk)] = 5
        cell = int(organ_coverage(labels, affine, volume)[LIVER].argmax())
        mm = affine @ np.array([*ijk, 1.0])
        dhw = (np.linalg.inv(volume.affine) @ mm)[:3]
        place = (dhw + 0.5) / np.array([4, 16, 16])
        found = np.array(np.unravel_index(cell, GRID))
        assert (np.abs(place - (found + 0.5)) <= 0.5 + 0.5 * 2.0 / np.array([32.0, 22.4, 22.4])).all()


def test_a_one_voxel_organ_keeps_its_best_patch() -> None:
    affine, shape = torso_grid(2.0)
    labels = np.zeros(shape, np.uint8)
    labels[80, 60, 70] = 5
    coverage = organ_coverage(labels, affine, model())[LIVER]
    assert 0 < coverage.max() < 0.05
    found = roi_tokens(torch.randn(CELLS, 4), coverage)
    assert found.cells.tolist() == [int(coverage.argmax())]
    assert found.tokens.shape == (1, 4)


def test_an_organ_outside_the_model_volume_has_no_tokens() -> None:
    affine, shape = torso_grid(3.0)
    labels = torso(affine, shape)[1]
    far = organ_coverage(labels, affine, model((2000.0, 0.0, 0.0)))
    assert far[1:].max() == 0
    found = roi_tokens(torch.randn(CELLS, 4), far[LIVER])
    assert (found.tokens.shape, len(found.cells), found.pooled) == ((0, 4), 0, False)
    with pytest.raises(InputError, match="covers no patch"):
        mean_roi(torch.randn(CELLS, 4), far[LIVER])


def blob(rng: np.random.Generator, share: float) -> NDArray[np.float32]:
    """Coverage of an organ that is a random ellipsoid in the patch grid."""
    centre, radii = rng.uniform(1, GRID), rng.uniform(0.8, 1.0, 3) * np.array(GRID) * share
    cell = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in GRID), indexing="ij"), -1)
    coverage: NDArray[np.float32] = (2 * (1.2 - (((cell - centre) / radii) ** 2).sum(-1))).astype(np.float32)
    return coverage.clip(0, 1)


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 64, 200])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 2.0])
def test_pooling_respects_the_maximum_and_drops_no_patch(
    rng: np.random.Generator, max_tokens: int, share: float
) -> None:
    coverage = blob(rng, share)
    cells = covered_cells(coverage)
    for cell in rng.choice(cells, min(8, len(cells)), replace=False):
        tokens = torch.zeros(CELLS, 1)
        tokens[cell] = 1
        found = roi_tokens(tokens, coverage, max_tokens)
        assert 1 <= len(found.tokens) <= max_tokens
        assert found.pooled == (len(cells) > max_tokens)
        np.testing.assert_array_equal(found.cells, cells)
        assert (found.tokens > 0).sum() == 1, f"patch {cell} must be in exactly one token"


def test_pooled_tokens_are_means_weighted_by_coverage_over_covered_patches_only(
    rng: np.random.Generator,
) -> None:
    coverage = np.zeros(GRID, np.float32)
    coverage[0, 0, 0], coverage[0, 0, 1], coverage[0, 0, 2] = 0.2, 0.6, 1.0
    tokens = torch.from_numpy(rng.normal(size=(CELLS, 3)).astype(np.float32))
    found = roi_tokens(tokens, coverage, max_tokens=2)
    expected = torch.stack([(0.2 * tokens[0] + 0.6 * tokens[1]) / 0.8, tokens[2]])
    torch.testing.assert_close(found.tokens, expected)
    torch.testing.assert_close(
        mean_roi(tokens, coverage), (0.2 * tokens[0] + 0.6 * tokens[1] + tokens[2]) / 1.8
    )


def test_tokens_that_fit_are_the_patches_tokens_unchanged(rng: np.random.Generator) -> None:
    coverage = blob(rng, 0.1)
    tokens = torch.randn(CELLS, 5).half()
    found = roi_tokens(tokens, torch.from_numpy(coverage), max_tokens=CELLS)
    assert found.tokens.dtype == torch.float16
    assert torch.equal(found.tokens, tokens[torch.from_numpy(found.cells)])


def test_gradients_flow_through_roi_tokens_and_means() -> None:
    tokens = torch.randn(CELLS, 2, requires_grad=True)
    coverage = np.ones(GRID, np.float32)
    (roi_tokens(tokens, coverage).tokens.sum() + mean_roi(tokens, coverage).sum()).backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    assert bool((tokens.grad != 0).all())


def test_global_pool_averages_neighbouring_patches_in_d_h_w_order() -> None:
    d, h, w = np.meshgrid(*(np.arange(n) for n in GRID), indexing="ij")
    tokens = torch.from_numpy(np.stack([d, h, w], -1).reshape(CELLS, 3).astype(np.float32))
    pooled = global_pool(tokens)
    assert pooled.shape == (256, 3)
    assert pooled[0].tolist() == [0.5, 0.5, 0.5]
    assert pooled[1].tolist() == [0.5, 0.5, 2.5]
    assert pooled[8].tolist() == [0.5, 2.5, 0.5]
    assert pooled[64].tolist() == [2.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda t, c: roi_tokens(t[:7], c), r"\(7, 4\)"),
        (lambda t, c: roi_tokens(t, c[0]), "256 patches"),
        (lambda t, c: roi_tokens(t, c, max_tokens=0), "max_tokens is 0"),
        (lambda t, c: global_pool(t[None]), r"\(1, 2048, 4\)"),
    ],
)
def test_wrong_shapes_are_named(call: Any, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        call(torch.randn(CELLS, 4), np.ones(GRID, np.float32))


def test_global_tokens_are_mixed_as_they_are_pooled() -> None:
    tokens = torch.randn(CELLS, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(global_mixture().of(tokens), global_pool(tokens), atol=1e-6)
