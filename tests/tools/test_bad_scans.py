"""Input that can't be used is refused in one line that names the file and the remedy."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteDicom, WriteNifti, torso, torso_grid
from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.scan import ct_from_array, open_ct

AFFINE, SHAPE = torso_grid(16.0)
HU = np.round(torso(AFFINE, SHAPE)[0])


@dataclass
class Maker:
    """What a case needs to make its bad file."""

    folder: Path
    nifti: WriteNifti
    dicom: WriteDicom

    def patched(self, at: int, value: Any, name: str = "scan.nii.gz") -> Path:
        """A good NIfTI file with some header bytes replaced."""
        path = self.nifti(HU, AFFINE, name)
        data = bytearray(gzip.decompress(path.read_bytes()))
        data[at : at + len(value.tobytes())] = value.tobytes()
        path.write_bytes(gzip.compress(bytes(data), 1))
        return path

    def text(self, content: bytes, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def zipped(self, entries: dict[str, bytes]) -> Path:
        path = self.folder / "scan.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return path


def misspelt(make: Maker) -> Path:
    make.nifti(HU, AFFINE, "patient7.nii.gz")
    return make.folder / "pateint7.nii.gz"


def truncated(make: Maker) -> Path:
    path = make.nifti(HU + np.random.default_rng(0).integers(0, 99, HU.shape), AFFINE, "scan.nii.gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def truncated_plain(make: Maker) -> Path:
    path = make.nifti(HU, AFFINE, "scan.nii")
    path.write_bytes(path.read_bytes()[:-100])
    return path


def damaged(make: Maker) -> Path:
    path = make.nifti(HU, AFFINE, "scan.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = os.urandom(40)
    path.write_bytes(bytes(data))
    return path


def rgb(make: Maker) -> Path:
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    return make.nifti(colours, AFFINE, "scan.nii.gz", dtype=colours.dtype)


def with_nan(make: Maker) -> Path:
    broken = HU.copy()
    broken[1, 2, 3], broken[2, 2, 2] = np.nan, np.inf
    return make.nifti(broken, AFFINE, "scan.nii.gz", dtype=np.float32)


def singular(make: Maker) -> Path:
    rows = np.array([[16, 16, 0, 0], [16, 16, 0, 0], [0, 0, 16, 0]], np.float32)
    return make.patched(280, rows)


def negative_extension(make: Maker) -> Path:
    path = make.patched(348, np.array([1, -800], np.int32))
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[108:112] = np.float32(416).tobytes()
    path.write_bytes(gzip.compress(bytes(data), 1))
    return path


def two_series(make: Maker) -> Path:
    make.dicom(HU, AFFINE, "mixed", series="1.2.3.1")
    return make.dicom(HU, AFFINE, "mixed", series="1.2.3.2")


def two_phases(make: Maker) -> Path:
    make.dicom(HU, AFFINE, "mixed/arterial")
    make.dicom(HU + 1, AFFINE, "mixed/venous")
    return make.folder / "mixed"


def slice_missing(make: Maker) -> Path:
    folder = make.dicom(HU, AFFINE)
    next(folder.glob("*-5.dcm")).unlink()
    return folder


def slice_damaged(make: Maker) -> Path:
    folder = make.dicom(HU, AFFINE)
    path = next(folder.glob("*-5.dcm"))
    path.write_bytes(path.read_bytes()[:-600])
    return folder


def one_file(make: Maker) -> Path:
    return next(make.dicom(HU, AFFINE).iterdir())


def protected(make: Maker) -> Path:
    path = make.zipped({"a.dcm": b"x"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    return path


def empty_folder(make: Maker) -> Path:
    (make.folder / "empty").mkdir()
    return make.folder / "empty"


CASES: dict[str, tuple[Callable[[Maker], Path], str]] = {
    "missing file, similar name": (misspelt, "did you mean .*patient7.nii.gz"),
    "missing folder": (lambda make: make.folder / "no" / "scan.nii.gz", "nor does the folder"),
    "empty file": (lambda make: make.text(b"", "scan.nii.gz"), "is empty; copy or export"),
    "text named .nii": (lambda make: make.text(b"hello " * 99, "scan.nii"), "not a NIfTI file; pass a CT as"),
    "text named .txt": (lambda make: make.text(b"hello " * 99, "scan.txt"), "not a CT file; pass"),
    "not gzipped": (lambda make: make.text(b"hello " * 99, "scan.nii.gz"), "rename it to scan.nii$"),
    "gzipped, not named so": (
        lambda make: make.text(gzip.compress(b"hi"), "scan.nii"),
        "rename it to scan.nii.gz",
    ),
    "gzipped text": (lambda make: make.text(gzip.compress(b"x" * 999), "scan.nii.gz"), "not a NIfTI file"),
    "gzip cut in its header": (lambda make: make.text(gzip.compress(b"x" * 999)[:12], "a.nii.gz"), "cut off"),
    "truncated gzip": (truncated, "cut off or damaged; copy or export it again"),
    "truncated": (truncated_plain, "cut off"),
    "damaged gzip": (damaged, "cut off or damaged"),
    "2-D": (lambda make: make.nifti(HU[:, :, 0], AFFINE), "not a volume .*3-D scan"),
    "one slice": (lambda make: make.nifti(HU[:, :, :1], AFFINE), "not a volume"),
    "4-D": (
        lambda make: make.nifti(np.stack([HU] * 3, -1), AFFINE),
        r"is 4-D \(.*×3, 3 volumes\); .*--volume 0",
    ),
    "5-D": (lambda make: make.nifti(HU[..., None, None].repeat(3, -1), AFFINE), "is 5-D"),
    "data nowhere": (lambda make: make.patched(108, np.full(1, np.nan, np.float32)), "vox_offset = nan"),
    "an extension of less than nothing": (negative_extension, "has a damaged header"),
    "data before the file": (lambda make: make.patched(108, np.full(1, -8, np.float32)), "vox_offset = -8"),
    "NaN and infinity": (with_nan, "2 voxels of NaN or infinity; replace"),
    "zero spacing": (lambda make: make.patched(80, np.zeros(1, np.float32)), "spacing of 0, 16, 16 mm"),
    "spacing of NaN": (
        lambda make: make.patched(84, np.full(1, np.nan, np.float32)),
        "spacing of 16, nan, 16",
    ),
    "singular affine": (singular, "singular affine"),
    "affine with a zero column": (
        lambda make: make.patched(280, np.zeros(1, np.float32)),
        "spacing of 0, 16, 16",
    ),
    "affine with NaN": (
        lambda make: make.patched(280, np.full(1, np.nan, np.float32)),
        "NaN or infinity in its",
    ),
    "30000³ voxels": (
        lambda make: make.patched(42, np.full(3, 30000, np.int16)),
        "30000×30000×30000 voxels, more",
    ),
    "more voxels than bytes": (lambda make: make.patched(42, np.full(3, 800, np.int16)), "too small to hold"),
    "negative size": (lambda make: make.patched(42, np.full(1, -5, np.int16)), "not a volume"),
    "damaged dim": (lambda make: make.patched(40, np.full(1, 99, np.int16)), "damaged header|not a NIfTI"),
    "unknown data type": (lambda make: make.patched(70, np.full(1, 999, np.int16)), "unknown data type"),
    "RGB": (rgb, "RGB colours"),
    "complex": (lambda make: make.nifti(HU, AFFINE, dtype=np.complex64), "complex64 values"),
    "all air": (lambda make: make.nifti(np.minimum(HU, -900), AFFINE), "only air"),
    "constant": (lambda make: make.nifti(HU * 0, AFFINE), "one value, 0, everywhere"),
    "empty folder": (empty_folder, "no DICOM image; pass the folder"),
    "folder without DICOM": (lambda make: make.text(b"notes", "papers/a.txt").parent, "no DICOM image"),
    "one DICOM file": (one_file, "pass the folder that holds its whole series"),
    "one slice in a folder": (lambda make: make.dicom(HU[:, :, :1], AFFINE), "single slices only"),
    "several series": (two_series, r"holds 2 series \(series 1 CT: 18 slices .*; series 2 CT: 18 slices"),
    "two phases in one series": (two_phases, "two slices at one position"),
    "a slice is missing": (slice_missing, r"lacks slices .*32.00 mm between .*16.00 mm elsewhere"),
    "a slice is cut off": (slice_damaged, "can't be decoded"),
    "zip of text": (lambda make: make.zipped({"a.txt": b"text"}), "scan.zip holds no DICOM image"),
    "damaged zip": (lambda make: make.text(b"PK\x03\x04" + b"x" * 200, "scan.zip"), "not a readable zip"),
    "zip with a password": (protected, "protected by a password"),
}


@pytest.fixture
def make(tmp_path: Path, write_nifti: WriteNifti, write_dicom: WriteDicom) -> Maker:
    return Maker(tmp_path, write_nifti, write_dicom)


@pytest.mark.parametrize("case", CASES)
def test_a_bad_scan_is_refused_with_a_remedy(
    case: str, make: Maker, capfd: pytest.CaptureFixture[str]
) -> None:
    build, expected = CASES[case]
    path = build(make)
    capfd.readouterr()
    with pytest.raises(ScanError, match=expected) as caught:
        open_ct(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    assert path.name in message or any(part.name in message for part in path.rglob("*"))
    assert capfd.readouterr() == ("", ""), "nothing else is printed"


def test_a_giant_header_is_refused_before_anything_is_allocated(make: Maker) -> None:
    path = make.patched(42, np.full(3, 1100, np.int16))
    tracemalloc.start()
    with pytest.raises(ScanError):
        open_ct(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_the_voxel_limit_holds_for_dicom_and_can_be_set(make: Maker) -> None:
    folder = make.dicom(HU, AFFINE)
    with pytest.raises(ScanError, match="more than the limit of 1000;"):
        open_ct(folder, max_voxels=1000)
    with pytest.raises(ScanError, match="TUMORCHAIN_MAX_SCAN_VOXELS"):
        open_ct(make.nifti(HU, AFFINE), max_voxels=1000)


def test_a_zip_bomb_is_refused_before_unpacking(make: Maker) -> None:
    path = make.zipped({"a.dcm": b"\0" * 5_000_000})
    assert path.stat().st_size < 10_000
    with pytest.raises(ScanError, match="would unpack to"):
        open_ct(path, max_voxels=1_000_000)


def test_nothing_is_left_in_the_temporary_folder(
    make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with pytest.raises(ScanError):
        open_ct(make.zipped({"a.dcm": b"x" * 999}))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_an_array_is_checked_like_a_file() -> None:
    with pytest.raises(ScanError, match="not a volume"):
        ct_from_array(HU[:, :, 0], AFFINE)
    with pytest.raises(ScanError, match="singular affine"):
        ct_from_array(HU, np.ones((4, 4)))
