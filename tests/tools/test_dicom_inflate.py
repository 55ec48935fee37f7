"""Deflated DICOM is read like any other, and one that unpacks to gigabytes is refused before it does."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteDicom, torso, torso_grid
from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.scan import CT, open_ct

pydicom: Any = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
AFFINE, SHAPE = torso_grid(24.0)
HU = np.round(torso(AFFINE, SHAPE)[0])
RAW = -zlib.MAX_WBITS


@pytest.fixture
def plain(write_dicom: WriteDicom) -> CT:
    return open_ct(write_dicom(HU, AFFINE, "plain"))


@pytest.fixture
def deflated(write_dicom: WriteDicom) -> Path:
    folder = write_dicom(HU, AFFINE, "deflated")
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(file, implicit_vr=False, little_endian=True)
    return folder


def split(file: Path) -> tuple[bytes, bytes]:
    """The file up to its meta header's end, and its elements inflated."""
    data = file.read_bytes()
    end = 144 + int.from_bytes(data[140:144], "little")
    return data[:end], zlib.decompress(data[end:], RAW)


def join(start: bytes, elements: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, RAW)
    return start + stream.compress(elements) + stream.flush()


def test_a_deflated_series_is_the_same_scan(plain: CT, deflated: Path) -> None:
    ct = open_ct(deflated)
    assert ct.scan_id == plain.scan_id
    assert ct.affine == pytest.approx(plain.affine)
    assert ct.info.notices == ()


def test_a_bomb_is_refused_in_one_line_and_little_memory(deflated: Path) -> None:
    """300 kB that would take 300 MB."""
    file = min(deflated.iterdir())
    start, elements = split(file)
    stream = zlib.compressobj(9, zlib.DEFLATED, RAW)
    size = 300 << 20
    parts = [stream.compress(b"\x09\0\x10\x10OB\0\0" + struct.pack("<I", size))]
    parts += [stream.compress(bytes(1 << 20)) for _ in range(300)]
    file.write_bytes(b"".join([start, *parts, stream.compress(elements), stream.flush()]))
    assert file.stat().st_size < 400_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ScanError, match=f"{file.name} is deflated and unpacks to more than 67 MB; export"):
        open_ct(deflated)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def test_all_deflated_files_together_keep_to_the_limit_of_a_zip(deflated: Path) -> None:
    assert open_ct(deflated, max_voxels=4 * HU.size).shape == HU.shape
    with pytest.raises(ScanError, match=r"deflated files before it unpack to more than .*MAX_SCAN_VOXELS"):
        open_ct(deflated, max_voxels=HU.size // 4)


def test_a_length_beyond_the_end_of_what_is_deflated_is_refused(deflated: Path) -> None:
    file = min(deflated.iterdir())
    start, elements = split(file)
    broken = b"\x08\0\x50\0OB\0\0" + struct.pack("<I", 0x7FFFFFFF)
    file.write_bytes(join(start, broken + elements))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ScanError, match="copy or export the series again"):
        open_ct(deflated)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def test_a_deflated_file_cut_anywhere_is_refused(deflated: Path, rng: np.random.Generator) -> None:
    file = min(deflated.iterdir())
    data = file.read_bytes()
    for end in rng.integers(200, len(data) - 8, size=20).tolist():
        file.write_bytes(data[:end])
        with pytest.raises(ScanError, match=file.name):
            open_ct(deflated)
