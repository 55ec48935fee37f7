"""A DICOM series that was copied in part, or in a damaged zip, is refused: a short scan must not look whole."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import WriteDicom, torso, torso_grid
from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.dicom_headers import read_headers
from tumorchain_agent.tools.scan import open_ct

AFFINE, SHAPE = torso_grid(24.0)
HU = np.round(torso(AFFINE, SHAPE)[0])

LEFT: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "60 bytes": lambda data: b"II*" + data[3:60],
    "100 bytes": lambda data: data[:100],
    "a preamble": lambda data: data[:132],
    "half a meta header": lambda data: data[:170],
    "a meta header": lambda data: data[: data.index(b"\x08\0\x05\0", 132) + 4],
    "zeros": lambda data: bytes(len(data)),
    "zeros at first": lambda data: bytes(5000) + data[500:],
}
NAMES = {
    ".dcm": "{:03d}.dcm",
    ".IMA": "{:03d}.IMA",
    "no suffix": "IM{:05d}",
    "a UID": "1.2.826.0.1.{:d}",
    "numbered": "slice.I{:03d}",
}


@pytest.fixture
def series(write_dicom: WriteDicom) -> Path:
    """As files 0 to n from foot to head."""
    folder = write_dicom(HU, AFFINE, tags={"0008|0005": "ISO_IR 100"})
    slices, _ = read_headers(folder, "series", 2**30)
    for index, item in enumerate(sorted(slices, key=lambda item: item.position)):
        item.path.rename(folder / f"{index:03d}.dcm")
    return folder


def renamed(folder: Path, pattern: str) -> list[Path]:
    files = sorted(folder.iterdir())
    return [file.rename(folder / pattern.format(index)) for index, file in enumerate(files)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("left", LEFT)
def test_what_a_copy_left_of_the_last_slice_is_refused_by_name(left: str, name: str, series: Path) -> None:
    files = renamed(series, NAMES[name])
    whole = open_ct(series)
    assert whole.shape == HU.shape
    files[-1].write_bytes(LEFT[left](files[-1].read_bytes()))
    with pytest.raises(ScanError, match="copy") as caught:
        open_ct(series)
    assert files[-1].name in str(caught.value)
    assert "\n" not in str(caught.value)
    files[-1].unlink()
    assert open_ct(series).shape == (*HU.shape[:2], HU.shape[2] - 1), "the remedy works"


@pytest.mark.parametrize("left", ["nothing", "zeros", "100 bytes"])
@pytest.mark.parametrize("name", [".dcm", "no suffix"])
def test_the_same_in_a_zip(left: str, name: str, series: Path, tmp_path: Path) -> None:
    files = renamed(series, NAMES[name])
    files[-1].write_bytes(LEFT[left](files[-1].read_bytes()))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in files:
            archive.write(file, f"study/{file.name}")
    with pytest.raises(ScanError, match=f"{files[-1].name} is empty, cut off or no DICOM"):
        open_ct(tmp_path / "scan.zip")


def test_a_page_of_errors_saved_as_a_slice_is_refused(series: Path) -> None:
    (series / "099.dcm").write_text("<html>404 Not Found</html>" * 99, encoding="utf-8")
    with pytest.raises(ScanError, match=r"099\.dcm is empty, cut off or no DICOM"):
        open_ct(series)


@pytest.mark.parametrize("name", NAMES)
def test_what_else_lies_in_real_folders_is_skipped_as_ever(name: str, series: Path, tmp_path: Path) -> None:
    whole = open_ct(series)
    renamed(series, NAMES[name])
    (series / "README").write_text("CT of 1.2.840.10008.5.1.4.1.1.2\n" * 20, encoding="utf-8")
    (series / "VERSION").write_text("3.1\n", encoding="utf-8")
    (series / "viewer").write_bytes(b"\x7fELF" + bytes(range(256)) * 9)
    for empty in (".DS_Store", "Thumbs.db", "DICOMDIR", "index.html", "._000.dcm"):
        (series / empty).write_bytes(b"")
    (series / "._001.dcm").write_bytes(b"\0\5\x16\7" + bytes(200))
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in series.iterdir():
            archive.write(file, file.name)
    for scan in (open_ct(series), open_ct(tmp_path / "scan.zip")):
        assert scan.scan_id == whole.scan_id
        assert scan.affine == pytest.approx(whole.affine)
        assert scan.info.notices == ()


def test_an_empty_file_without_suffix_beside_slices_with_one_is_named_as_left_out(series: Path) -> None:
    (series / "LOCK").write_bytes(b"")
    (notice,) = open_ct(series).info.notices
    assert "left out 1 × empty file" in notice.message


def test_real_slices_that_lost_their_end_are_refused(real: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real / "dcmqi" / "ct-3slice", tmp_path / "ct", copy_function=shutil.copyfile)
    assert open_ct(folder).shape[2] == 3
    last = max(read_headers(folder, "ct", 2**30)[0], key=lambda item: item.position).path
    for left in (b"", bytes(last.stat().st_size)):
        last.write_bytes(left)
        with pytest.raises(ScanError, match=last.name):
            open_ct(folder)


def _data_of_first_entry(data: bytearray) -> int:
    return 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")


DAMAGE: dict[str, tuple[int, int, bytes]] = {
    "deflate": (zipfile.ZIP_DEFLATED, 0, b"\x07"),
    "lzma": (zipfile.ZIP_LZMA, 9, b"\xff" * 40),
    "lzma's properties": (zipfile.ZIP_LZMA, 4, b"\xff" * 5),
    "checksum": (zipfile.ZIP_STORED, 400, b"\1\2\3"),
    "local header": (zipfile.ZIP_STORED, -35, b"\1\2\3"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_of_a_zip_is_refused_in_one_line_that_names_it(
    kind: str, series: Path, tmp_path: Path
) -> None:
    method, at, bad = DAMAGE[kind]
    packed = tmp_path / "scan.zip"
    with zipfile.ZipFile(packed, "w", method) as archive:
        for file in sorted(series.iterdir()):
            archive.write(file, file.name)
    whole = open_ct(packed)
    assert whole.scan_id == open_ct(series).scan_id
    data = bytearray(packed.read_bytes())
    place = max(_data_of_first_entry(data) + at, 0)
    data[place : place + len(bad)] = bad
    packed.write_bytes(data)
    with pytest.raises(
        ScanError, match=r"scan\.zip is not a readable zip \(000\.dcm: .*zip the DICOM folder"
    ) as caught:
        open_ct(packed)
    assert "\n" not in str(caught.value)


def test_a_zip_of_bzip2_whose_size_nobody_knows_is_refused(tmp_path: Path) -> None:
    """A thousand bytes of it unpack to a gigabyte in one piece, whatever the zip's directory says."""
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("000.dcm", bytes(9999))
    with pytest.raises(ScanError, match=r"scan\.zip is packed with bzip2.*; zip the DICOM folder again"):
        open_ct(tmp_path / "scan.zip")


def test_a_zip_that_does_not_fit_on_the_disk_is_not_called_damaged(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        archive.write(series / "000.dcm", "000.dcm")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(ScanError, match=r"No space left on device\); unpack it elsewhere"):
        open_ct(tmp_path / "scan.zip")
