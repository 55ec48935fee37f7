"""Pictures of organs: the right slice, the right way round, the right size."""

from __future__ import annotations

import io
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tumorchain_agent.errors import InputError, UnknownOrganError
from tumorchain_agent.tools.labels import LabelMap, label_map, load_label_map
from tumorchain_agent.tools.picture import MAX_BYTES, PictureInfo, organ_pictures
from tumorchain_agent.tools.scan import CT, ct_from_array, open_ct

YELLOW = (255, 214, 10)
CAPTION = 24
SPACING = (2.0, 2.0, 4.0)
SHAPE = (80, 60, 40)


def scene(labels: NDArray[np.uint8], spacing: tuple[float, float, float] = SPACING) -> tuple[CT, LabelMap]:
    """Fat everywhere, the labelled voxels brighter; x, y, z start at (−50, −60, 100) mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-50, -60, 100)
    ct = ct_from_array(np.where(labels > 0, 150, -100).astype(np.float32), affine)
    return ct, label_map(labels, ct, source="given", task="given", weights_id="", seconds=0.0)


def block(*span: slice, value: int = 5) -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[span] = value
    return labels


def rgb(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def outline(data: bytes) -> NDArray[np.bool_]:
    return np.asarray((rgb(data) == YELLOW).all(axis=2))


def only(pictures: list[tuple[PictureInfo, bytes]]) -> tuple[PictureInfo, bytes]:
    assert len(pictures) == 1
    return pictures[0]


def test_the_slice_is_the_one_with_the_largest_cross_section() -> None:
    labels = block(np.s_[30:40], np.s_[20:30], np.s_[5:30])
    labels[25:45, 15:35, 12] = 5
    for info, _ in organ_pictures(*scene(labels), "liver"):
        assert info.slice_index == {"axial": 12, "coronal": 20, "sagittal": 30}[info.plane]
        assert info.position_mm == {"axial": 148.0, "coronal": -20.0, "sagittal": 10.0}[info.plane]


@pytest.mark.parametrize(
    ("plane", "span", "side"),
    [
        ("axial", (np.s_[70:78], np.s_[25:35], np.s_[15:25]), "left"),
        ("axial", (np.s_[2:10], np.s_[25:35], np.s_[15:25]), "right"),
        ("axial", (np.s_[35:45], np.s_[50:58], np.s_[15:25]), "top"),
        ("coronal", (np.s_[70:78], np.s_[25:35], np.s_[15:25]), "left"),
        ("coronal", (np.s_[35:45], np.s_[25:35], np.s_[35:39]), "top"),
        ("sagittal", (np.s_[35:45], np.s_[50:58], np.s_[15:25]), "left"),
        ("sagittal", (np.s_[35:45], np.s_[25:35], np.s_[2:6]), "bottom"),
    ],
)
def test_the_display_is_radiological(plane: str, span: tuple[slice, slice, slice], side: str) -> None:
    """Patient right, or anterior in sagittal, is on the left; anterior, or superior, is on top."""
    info, data = only(organ_pictures(*scene(block(*span)), "liver", (plane,)))  # type: ignore[arg-type]
    row, column = np.argwhere(outline(data)).mean(axis=0) / (info.height - CAPTION, info.width)
    expected = {"left": column < 0.3, "right": column > 0.7, "top": row < 0.3, "bottom": row > 0.7}
    assert expected[side]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_millimetres_are_the_same_in_both_directions(plane: str) -> None:
    """A 40 mm cube on a 2 × 2 × 4 mm grid is a square on screen."""
    labels = block(np.s_[30:50], np.s_[20:40], np.s_[15:25])
    _, data = only(organ_pictures(*scene(labels), "liver", (plane,)))  # type: ignore[arg-type]
    rows, columns = np.nonzero(outline(data))
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 3


def test_the_longer_side_has_the_asked_size_and_the_record_tells_it() -> None:
    labels = block(np.s_[30:50], np.s_[20:40], np.s_[15:25])
    for size in (256, 512):
        for info, data in organ_pictures(*scene(labels), "liver", size=size):
            image = Image.open(io.BytesIO(data))
            assert image.size == (info.width, info.height)
            assert max(info.width, info.height - CAPTION) == size
            record = info.record("picture://1")
            assert (record.width, record.height, record.organ) == (info.width, info.height, "liver")


def test_the_outline_lies_on_the_boundary_and_not_inside() -> None:
    labels = block(np.s_[30:50], np.s_[20:40], np.s_[15:25])
    _, data = only(organ_pictures(*scene(labels), "liver", ("axial",)))
    line = outline(data)
    rows, columns = np.nonzero(line)
    inside = line[rows.min() + 6 : rows.max() - 5, columns.min() + 6 : columns.max() - 5]
    assert inside.size > 1000
    assert not inside.any()
    assert (rgb(data)[rows.min() + 6 : rows.max() - 5, columns.min() + 6 : columns.max() - 5] > 180).all()


@pytest.mark.parametrize("at", [(40, 30, 20), (0, 0, 0), (79, 59, 39)])
def test_an_organ_of_one_voxel_is_marked(at: tuple[int, int, int]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[at] = 8
    pictures = organ_pictures(*scene(labels), "adrenal_gland_right")
    assert len(pictures) == 3
    for info, data in pictures:
        assert info.slice_index == at[["sagittal", "coronal", "axial"].index(info.plane)]
        assert outline(data).sum() > 50


def test_a_structure_below_one_screen_pixel_is_marked() -> None:
    labels = np.zeros((500, 400, 8), np.uint8)
    labels[250, 200, 4] = 8
    info, data = only(
        organ_pictures(*scene(labels, (0.7, 0.7, 5.0)), "adrenal_gland_right", ("axial",), size=128)
    )
    assert info.slice_index == 4
    assert outline(data).any()


def test_an_absent_organ_has_no_pictures() -> None:
    assert organ_pictures(*scene(block(np.s_[30:50], np.s_[20:40], np.s_[15:25])), "esophagus") == []


def test_air_and_table_are_cut_off_but_never_the_organ() -> None:
    labels = block(np.s_[60:70], np.s_[35:50], np.s_[15:25])
    ct, labelmap = scene(labels)
    ct.hu[...] = -1000
    ct.hu[20:50, 20:40] = 30
    ct.hu[:, 3] = 100
    info, data = only(organ_pictures(ct, labelmap, "liver", ("axial",)))
    line = outline(data)
    assert line.any()
    assert info.width > info.height - CAPTION
    rows, columns = np.nonzero(line)
    px_per_mm = 512 / (2 * (71 + 4 - 15))
    assert np.ptp(columns) == pytest.approx(20 * px_per_mm, abs=6)
    assert np.ptp(rows) == pytest.approx(30 * px_per_mm, abs=6)


def test_a_noisy_slice_still_fits_the_limit() -> None:
    labels = np.zeros((400, 400, 2), np.uint8)
    labels[200:300, 200:300] = 5
    affine = np.diag([0.7, 0.7, 3.0, 1.0])
    noise = np.random.default_rng(1).normal(40, 150, labels.shape).astype(np.float32)
    ct = ct_from_array(noise, affine)
    labelmap = label_map(labels, ct, source="given", task="given", weights_id="", seconds=0.0)
    for size in (512, 700):
        info, data = only(organ_pictures(ct, labelmap, "liver", ("axial",), size=size))
        assert len(data) <= MAX_BYTES
        assert Image.open(io.BytesIO(data)).size == (info.width, info.height)


def test_thin_slabs_are_not_stretched() -> None:
    labels = np.zeros((200, 200, 3), np.uint8)
    labels[80:120, 80:120] = 5
    info, data = only(organ_pictures(*scene(labels, (1.0, 1.0, 5.0)), "liver", ("coronal",)))
    columns = np.nonzero(outline(data))[1]
    assert np.ptp(columns) == pytest.approx(40 * 512 / 200, abs=4)
    assert info.height < 300


@pytest.mark.parametrize(
    ("plane", "size", "message"), [("axia", 512, "choose axial"), ("axial", 10, "choose 64")]
)
def test_a_wrong_plane_or_size_is_an_input_error(plane: str, size: int, message: str) -> None:
    labels = block(np.s_[30:50], np.s_[20:40], np.s_[15:25])
    with pytest.raises(InputError, match=message):
        organ_pictures(*scene(labels), "liver", (plane,), size=size)  # type: ignore[arg-type]


def test_a_slice_is_drawn_without_a_copy_of_the_volume() -> None:
    labels = np.zeros((160, 160, 160), np.uint8, order="F")
    labels[70:90, 70:90, 70:90] = 5
    ct, labelmap = scene(labels)
    ct = replace(ct, hu=np.asfortranarray(ct.hu))
    labelmap = replace(labelmap, labels=labels)
    tracemalloc.start()
    organ_pictures(ct, labelmap, "liver", size=64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < labels.nbytes


def test_an_unknown_organ_is_an_error() -> None:
    with pytest.raises(UnknownOrganError, match="liver"):
        organ_pictures(*scene(block(np.s_[30:50], np.s_[20:40], np.s_[15:25])), "livr")


def test_pictures_of_a_real_scan(real: Path) -> None:
    folder = real / "totalsegmentator"
    ct = open_ct(folder / "example_ct.nii.gz")
    labelmap = load_label_map(folder / "example_seg_fast_force_split.nii.gz", ct)
    assert organ_pictures(ct, labelmap, "esophagus") == []
    for organ in ("liver", "pancreas", "colorectum"):
        for info, data in organ_pictures(ct, labelmap, organ):
            assert max(info.width, info.height - CAPTION) == 512
            assert len(data) <= MAX_BYTES
            assert outline(data).sum() > 100
    (_, data), *_ = organ_pictures(ct, labelmap, "liver")
    assert np.argwhere(outline(data))[:, 1].mean() < 256
