"""One anatomy, however it is stored, is one model volume; a voxel and its model voxel are one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import WriteNifti, torso, torso_grid
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.measure import measure_all
from tumorchain_agent.tools.preprocess import ModelVolume, preprocess
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]
ORGANS = ("liver", "spleen")


def flipped(axes: str) -> tuple[Affine, Shape]:
    affine, shape = torso_grid(3.0)
    flip = np.eye(4)
    for axis, (code, positive) in enumerate(zip(axes, "RAS", strict=True)):
        if code != positive:
            flip[axis, axis], flip[axis, 3] = -1, shape[axis] - 1
    return affine @ flip, shape


def turned(degrees: float, first: int, second: int, spacing: float = 3.0) -> tuple[Affine, Shape]:
    """A grid around the torso that is rotated in the plane of two patient axes."""
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    shape = (130, 110, 110)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -0.5 * spacing * (np.array(shape) - 1)
    return turn @ affine, shape


RESAMPLED: dict[str, tuple[Affine, Shape]] = {
    "2 mm in-plane, 3 mm slices": torso_grid(2.0, 2.0, 3.0),
    "1.5 mm in-plane, 5 mm slices": torso_grid(1.5, 1.5, 5.0),
    "three spacings": torso_grid(2.5, 3.0, 4.0),
    "rotated 15° about z": turned(15, 0, 1),
    "rotated 20° about y": turned(20, 0, 2),
    "rotated 20° about x": turned(20, 1, 2),
}


@pytest.fixture(scope="module")
def true_ml() -> list[float]:
    """ml of ORGANS on a fine grid."""
    labels = torso(*torso_grid(2.0))[1]
    return [int((labels == key).sum()) * 2.0**3 / 1000 for key in (5, 1)]


@pytest.fixture(scope="module")
def reference() -> tuple[CT, ModelVolume]:
    affine, shape = torso_grid(3.0)
    ct = ct_from_array(np.round(torso(affine, shape)[0]), affine)
    return ct, preprocess(ct)


def in_reference(model: ModelVolume, reference: ModelVolume) -> NDArray[Any]:
    """A model volume sampled at the places in mm of the reference's voxels."""
    from scipy import ndimage

    there = np.linalg.inv(model.affine) @ reference.affine
    sampled: NDArray[Any] = ndimage.affine_transform(
        model.volume[0], there[:3, :3], there[:3, 3], model.volume.shape[1:], order=1, mode="nearest"
    )
    return sampled


@pytest.mark.parametrize("axes", ["LPS", "LAS", "RPI"])
def test_flipped_storage_gives_the_identical_model_volume_and_ml(
    axes: str, reference: tuple[CT, ModelVolume], write_nifti: WriteNifti
) -> None:
    affine, shape = flipped(axes)
    hu, labels = torso(affine, shape)
    ct = open_ct(write_nifti(np.round(hu), affine))
    labelmap = load_label_map(write_nifti(labels, affine, "labels.nii.gz", dtype=np.uint8), ct)
    model = preprocess(ct)
    assert ct.scan_id == reference[0].scan_id
    assert np.array_equal(model.volume, reference[1].volume)
    assert model.affine == pytest.approx(reference[1].affine)
    straight = torso(*torso_grid(3.0))[1]
    assert np.array_equal(labelmap.labels, straight)
    measured = measure_all(ct, labelmap)
    assert measured["liver"].voxels == int((straight == 5).sum())


@pytest.mark.parametrize("name", RESAMPLED)
def test_another_grid_gives_nearly_the_same_model_volume_and_ml(
    name: str, reference: tuple[CT, ModelVolume], true_ml: list[float], write_nifti: WriteNifti
) -> None:
    """Mean difference at most 0.01 index by index (the body's box moves by up to 3 mm), 0.002 in mm space."""
    affine, shape = RESAMPLED[name]
    hu, labels = torso(affine, shape)
    ct = ct_from_array(hu, affine)
    model = preprocess(ct)
    assert float(np.abs(model.volume - reference[1].volume).mean()) < 0.01
    difference = np.abs(in_reference(model, reference[1]) - reference[1].volume[0])
    assert float(difference.mean()) < 0.002
    assert float(np.percentile(difference, 99)) < 0.04
    measured = measure_all(ct, load_label_map(write_nifti(labels, affine, "l.nii.gz", dtype=np.uint8), ct))
    for organ, ml in zip(ORGANS, true_ml, strict=True):
        assert measured[organ].volume_ml == pytest.approx(ml, rel=0.02)
        assert measured[organ].cut_by_edge == ()


@pytest.mark.parametrize(
    "storage",
    ["RAS", "LPS", "LAS", "rotated 15° about z", "rotated 20° about x", "2 mm in-plane, 3 mm slices"],
)
def test_a_marker_is_found_where_the_mapping_says(storage: str, rng: np.random.Generator) -> None:
    affine, shape = RESAMPLED[storage] if storage in RESAMPLED else flipped(storage)
    hu = np.minimum(torso(affine, shape)[0], 40.0)
    place = rng.uniform([-60, -40, -70], [60, 40, 70])
    ijk = np.linalg.inv(affine) @ np.append(place, 1)
    corner = np.round(ijk[:3]).astype(int)
    hu[tuple(slice(index - 2, index + 3) for index in corner)] = 3000.0
    ct = ct_from_array(hu, affine)
    model = preprocess(ct)
    centre = affine[:3, :3] @ corner + affine[:3, 3]
    voxel = np.linalg.inv(ct.affine) @ np.append(centre, 1)
    expected = model.voxel_to_model(voxel[None, :3])[0]
    d, h, w = (slice(max(0, int(index) - 12), int(index) + 13) for index in expected)
    bright = model.volume[0, d, h, w]
    weight = np.clip(bright - 0.55, 0, None)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in bright.shape), indexing="ij"), axis=-1)
    found = (grid * weight[..., None]).sum(axis=(0, 1, 2)) / weight.sum() + [d.start, h.start, w.start]
    assert np.abs(found - expected).max() < 1.0
    assert (
        np.abs(model.model_to_voxel(found[None])[0] - voxel[:3]).max()
        < 1.0 + 0.5 * max(np.array(model.spacing_mm) / min(ct.spacing_mm)) * np.abs(found - expected).max()
    )
