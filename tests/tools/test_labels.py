"""Label maps: brought onto the scan's grid, or refused with what is wrong."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import WriteNifti, torso, torso_grid
from tumorchain_agent.errors import LabelMapError
from tumorchain_agent.tools.labels import label_map, load_label_map
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct

AFFINE, SHAPE = torso_grid(12.0)
LABELS: NDArray[Any] = torso(AFFINE, SHAPE)[1]


@pytest.fixture(scope="module")
def ct() -> CT:
    return ct_from_array(torso(AFFINE, SHAPE)[0], AFFINE, file_name="scan.nii.gz")


def save(write: WriteNifti, labels: NDArray[Any], affine: Any = AFFINE, dtype: Any = np.uint8) -> Path:
    return write(labels, affine, "seg.nii.gz", dtype=dtype)


def test_a_real_label_map_lists_its_organs(real: Path) -> None:
    folder = real / "totalsegmentator"
    ct = open_ct(folder / "example_ct.nii.gz")
    labelmap = load_label_map(folder / "example_seg_fast_force_split.nii.gz", ct)
    assert labelmap.labels.shape == ct.shape
    assert labelmap.labels.dtype == np.uint8
    info = labelmap.info
    assert (info.source, info.task, info.scan_id) == ("given", "given", ct.scan_id)
    assert {"liver", "pancreas", "stomach", "colorectum"} <= set(info.organs_present)
    assert "esophagus" not in info.organs_present
    assert len(info.weights_id) == 24


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_any_number_type_with_whole_numbers_is_read(ct: CT, write_nifti: WriteNifti, dtype: Any) -> None:
    labelmap = load_label_map(save(write_nifti, LABELS, dtype=dtype), ct)
    assert np.array_equal(labelmap.labels, LABELS)
    assert set(labelmap.info.organs_present) == {"liver", "spleen", "aorta", "lumbar_vertebrae"}


def test_the_content_decides_the_id(ct: CT, write_nifti: WriteNifti) -> None:
    first = load_label_map(save(write_nifti, LABELS), ct).info.weights_id
    assert load_label_map(save(write_nifti, LABELS[::-1], AFFINE @ _flip_x()), ct).info.weights_id == first
    other = LABELS.copy()
    other[5, 5, 5] = 7
    assert load_label_map(save(write_nifti, other), ct).info.weights_id != first


def _flip_x() -> NDArray[np.float64]:
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1, SHAPE[0] - 1
    return flip


def test_an_empty_label_map_is_accepted_with_a_warning(ct: CT, write_nifti: WriteNifti) -> None:
    info = load_label_map(save(write_nifti, LABELS * 0), ct).info
    assert info.organs_present == ()
    assert [notice.code for notice in info.notices] == ["empty_label_map"]


def shifted(mm: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[2, 3] += mm
    return affine


def turned() -> NDArray[np.float64]:
    angle = np.radians(5)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


def one_voxel(label: float) -> NDArray[Any]:
    labels = LABELS.astype(np.float64)
    labels[0, 0, 0] = label
    return labels


@pytest.mark.parametrize(
    ("labels", "affine", "expected"),
    [
        (LABELS[:, :, :9], AFFINE, "is not on the grid of scan.nii.gz: 28×20×9 voxels instead of 28×20×24"),
        (LABELS, shifted(246.0), "shifted by 246.0 mm; pass the label map made from this scan"),
        (LABELS, np.diag([1, 1, 2, 1]) @ AFFINE, "voxels of 12×12×24 mm instead of 12×12×12 mm"),
        (LABELS, turned(), "turned, by up to"),
        (one_voxel(118), AFFINE, "holds label 118; TotalSegmentator's task total v2 has ids 0..117"),
        (one_voxel(-1), AFFINE, "holds label -1;"),
        (one_voxel(2.5), AFFINE, "not whole numbers; resample it with nearest neighbour"),
        (one_voxel(np.nan), AFFINE, "holds label nan"),
        (np.stack([LABELS, LABELS], -1), AFFINE, "is 4-D"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(
    ct: CT, write_nifti: WriteNifti, labels: NDArray[Any], affine: Any, expected: str
) -> None:
    with pytest.raises(LabelMapError, match=expected) as caught:
        load_label_map(save(write_nifti, labels, affine, np.float32), ct)
    assert "\n" not in str(caught.value)


def test_a_small_error_of_the_affine_is_forgiven(ct: CT, write_nifti: WriteNifti) -> None:
    assert np.array_equal(load_label_map(save(write_nifti, LABELS, shifted(0.5)), ct).labels, LABELS)


def test_a_missing_file_and_a_folder_are_refused(ct: CT, tmp_path: Path) -> None:
    with pytest.raises(LabelMapError, match=r"nothing\.nii\.gz is missing; pass"):
        load_label_map(tmp_path / "nothing.nii.gz", ct)
    with pytest.raises(LabelMapError, match="is a folder; pass the one file"):
        load_label_map(tmp_path, ct)


def test_labels_named_otherwise_than_in_v2_are_refused(ct: CT, tmp_path: Path) -> None:
    nibabel: Any = import_module("nibabel")

    image = nibabel.Nifti1Image(LABELS, AFFINE)
    names = b'<Label Key="1" Red="0"><![CDATA[spleen]]></Label><Label Key="5"><![CDATA[%s]]></Label>'
    for name in (b"liver", b"gallbladder"):
        image.header.extensions[:] = [nibabel.nifti1.Nifti1Extension(0, names % name)]
        (tmp_path / f"{name.decode()}.nii").write_bytes(image.to_bytes())
    assert load_label_map(tmp_path / "liver.nii", ct).info.organs_present
    with pytest.raises(LabelMapError, match="names label 5 'gallbladder', in task total v2 it is 'liver'"):
        load_label_map(tmp_path / "gallbladder.nii", ct)


def test_labels_of_another_shape_are_refused_in_memory_too(ct: CT) -> None:
    with pytest.raises(LabelMapError, match="28×20×9 voxels, the scan 28×20×24"):
        label_map(LABELS[:, :, :9], ct, source="nano", task="total", weights_id="x", seconds=0.0)
