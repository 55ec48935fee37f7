"""CT → model volume: window, crop, padding, averaging, and the way back to voxels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import big_scan, torso, torso_grid
from tumorchain_agent.errors import CheckpointError, ScanError
from tumorchain_agent.tools.preprocess import Preprocessing, body_box, body_mask, preprocess
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct


def block(shape: tuple[int, int, int], spacing: tuple[float, float, float], hu: float = 40.0) -> CT:
    """A box of tissue in air, two voxels away from the in-plane edges and reaching through all slices."""
    values = np.full(shape, -1000.0, np.float32)
    values[2:-2, 2:-2] = hu
    return ct_from_array(values, np.diag([*spacing, 1.0]))


@pytest.fixture(scope="module")
def scan() -> CT:
    affine, shape = torso_grid(4.0)
    return ct_from_array(torso(affine, shape)[0], affine)


def test_the_window_maps_its_ends_to_zero_and_one(scan: CT) -> None:
    model = preprocess(scan)
    assert model.volume.shape == (1, 32, 256, 256)
    assert model.volume.dtype == np.float32
    assert float(model.volume.min()) == 0.0
    assert float(model.volume.max()) == 1.0
    tissue = model.volume[0, 16, 128, 128]
    d, h, w = (16, 128, 128)
    x, y, z = np.round(model.model_to_voxel([[d, h, w]])[0]).astype(int)
    assert tissue == pytest.approx((scan.hu[x, y, z] + 160) / 400, abs=0.02)


def test_another_window_is_honoured(scan: CT) -> None:
    wide = preprocess(scan, Preprocessing(window_hu=2000, level_hu=0)).volume
    narrow = preprocess(scan).volume
    assert wide[0, 16, 128, 128] == pytest.approx((scan.hu[42, 30, 36] + 1000) / 2000, abs=0.05)
    assert wide.min() == 0.0
    assert wide.max() < narrow.max()


def test_model_axes_run_to_the_head_to_the_back_and_to_the_patients_left() -> None:
    values = np.full((60, 60, 60), -1000.0, np.float32)
    values[5:55, 5:55, :] = 0.0
    values[40:50, 40:50, 40:50] = 1000.0
    ct = ct_from_array(values, np.diag([4.0, 4.0, 4.0, 1.0]))
    d, h, w = np.argwhere(preprocess(ct).volume[0] > 0.9).mean(axis=0) / (32, 256, 256)
    assert d > 0.6, "the right, front, upper marker lies up"
    assert h < 0.4, "towards the front"
    assert w < 0.4, "and on the left side of a radiologist's picture"


def test_pixels_are_square_and_nothing_is_stretched() -> None:
    model = preprocess(block((100, 50, 90), (3.0, 3.0, 3.0)))
    d, h, w = model.spacing_mm
    assert h == pytest.approx(w)
    assert h * 256 == pytest.approx(96 * 3 + 10, abs=1e-6)
    assert d * 32 == pytest.approx(90 * 3)
    inside = model.volume[0, 16] > 0.25
    width, height = inside.any(axis=0).sum() * w, inside.any(axis=1).sum() * h
    assert width == pytest.approx(96 * 3, abs=2 * w)
    assert height == pytest.approx(46 * 3, abs=2 * h)


def test_a_short_scan_is_padded_with_zeros_in_the_middle() -> None:
    model = preprocess(block((100, 100, 10), (3.0, 3.0, 3.0)))
    filled = np.flatnonzero(model.volume[0].any(axis=(1, 2)))
    assert model.spacing_mm[0] * 32 == pytest.approx((96 * 3 + 10) / 2)
    assert len(filled) * model.spacing_mm[0] == pytest.approx(30, abs=1.01 * model.spacing_mm[0])
    assert abs(filled.mean() - 15.5) <= 0.5


def test_fine_patterns_average_out_instead_of_aliasing() -> None:
    ct = block((400, 400, 160), (1.0, 1.0, 1.0))
    ct.hu[2:-2:2, 2:-2] = 140.0
    ct.hu[3:-2:2, 2:-2] = -60.0
    inner = preprocess(ct).volume[0, 4:28, 40:216, 40:216]
    assert inner == pytest.approx(0.5, abs=0.17)
    assert float(inner.mean()) == pytest.approx(0.5, abs=0.002)
    ct.hu[:, :, ::2] += 10.0
    mean = preprocess(ct).volume[0, 4:28, 40:216, 40:216].mean(axis=(1, 2))
    assert mean == pytest.approx(0.5125, abs=0.004)


def test_metal_is_clipped_before_averaging() -> None:
    ct = block((200, 200, 120), (1.0, 1.0, 1.0))
    ct.hu[100, 100, 60] = 30_000.0
    bright = preprocess(ct).volume.max()
    assert bright <= 0.5 + 0.5 / 2


def test_the_table_is_not_part_of_the_body(scan: CT) -> None:
    low, high = body_box(scan)
    hu = scan.hu.copy()
    hu[:, 0, :] = 200.0
    with_table = body_box(ct_from_array(hu, scan.affine))
    assert np.array_equal(with_table[0], low)
    assert np.array_equal(with_table[1], high)
    assert (low > scan.affine[:3, 3] + 4).all()


def test_the_real_body_has_its_known_share_of_the_scan(real: Path, oracles: dict[str, Any]) -> None:
    from scipy import ndimage

    known = oracles["ts_example_ct_full"]["body_fraction_gt_m300_largest_component_filled"]
    mask, strides = body_mask(open_ct(real / "totalsegmentator" / "example_ct.nii.gz"))
    assert strides.tolist() == [1, 1, 1]
    assert float(ndimage.binary_fill_holes(mask).mean()) == pytest.approx(known, abs=5e-5)


def test_the_body_is_found_on_a_coarse_grid_to_within_a_coarse_voxel() -> None:
    affine, shape = torso_grid(3.0)
    hu = torso(affine, shape)[0]
    thirds = np.diag([1 / 3, 1 / 3, 1 / 3, 1.0])
    thirds[:3, 3] = -1 / 3
    fine = ct_from_array(hu.repeat(3, 0).repeat(3, 1)[:, :, 40:50].repeat(3, 2), affine @ thirds)
    coarse = ct_from_array(hu[:, :, 40:50], affine)
    assert body_mask(fine)[1].tolist() == [3, 3, 3]
    assert np.abs(np.array(body_box(fine)) - np.array(body_box(coarse))).max() <= 3.0


def test_no_body_is_an_error_that_names_the_scan(scan: CT) -> None:
    with pytest.raises(ScanError, match=r"array.nii.gz holds no body \(no voxel above 5000 HU\)"):
        preprocess(scan, Preprocessing(body_above_hu=5000))


def test_the_same_scan_gives_the_same_bytes(scan: CT) -> None:
    assert preprocess(scan).volume.tobytes() == preprocess(scan).volume.tobytes()


def test_the_order_of_voxels_in_memory_does_not_matter(scan: CT) -> None:
    c_order = CT(np.ascontiguousarray(scan.hu), scan.affine, scan.info)
    assert np.array_equal(preprocess(c_order).volume, preprocess(scan).volume)


def test_mapping_there_and_back_is_exact(scan: CT, rng: np.random.Generator) -> None:
    model = preprocess(scan)
    ijk = rng.uniform(-10, 200, (50, 3))
    there = model.voxel_to_model(ijk)
    assert model.model_to_voxel(there) == pytest.approx(ijk, abs=1e-9)
    mm = ijk @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    assert there @ model.affine[:3, :3].T + model.affine[:3, 3] == pytest.approx(mm, abs=1e-9)


def test_settings_survive_json_and_unknown_ones_are_refused() -> None:
    config = Preprocessing(window_hu=350, shape=(16, 128, 128))
    stored = json.loads(json.dumps(config.as_dict()))
    assert Preprocessing.from_dict(stored) == config
    assert Preprocessing.from_dict({}) == Preprocessing()
    with pytest.raises(CheckpointError, match=r"unknown fields .rotate_degrees.*update"):
        Preprocessing.from_dict({**stored, "rotate_degrees": 3})


@pytest.mark.slow
def test_a_600_slice_ct_is_preprocessed_under_4_gb(tmp_path: Path) -> None:
    big_scan(tmp_path / "big.nii.gz")
    code = (
        "import re, sys\n"
        "from tumorchain_agent.tools.scan import open_ct\n"
        "from tumorchain_agent.tools.preprocess import preprocess\n"
        "model = preprocess(open_ct(sys.argv[1]))\n"
        "assert model.volume.any()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big.nii.gz")], capture_output=True, text=True, check=True
    )
    peak_gb = int(done.stdout) * 1024 / 1e9
    print(f"peak {peak_gb:.2f} GB")
    assert peak_gb < 4.0
