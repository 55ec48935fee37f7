"""A DICOM file whose lengths can't be is refused before a reader believes them."""

from __future__ import annotations

import resource
import struct
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.dicom_elements import elements_fit
from tumorchain_agent.tools.dicom_inflate import InflateBudget
from tumorchain_agent.tools.scan import open_ct

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
SimpleITK: Any = import_module("SimpleITK")
MODALITY, ACCESSION = b"\x08\x00\x60\x00", b"\x08\x00\x50\x00"
LONG = struct.pack("<I", 0x7FFFFFFF)
BUDGET = InflateBudget(2**30)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three slices, written by GDCM in implicit little endian."""
    folder = tmp_path / "series"
    folder.mkdir()
    for index in range(3):
        image = SimpleITK.GetImageFromArray(np.zeros((1, 8, 8), np.int16))
        image.SetOrigin((0.0, 0.0, 3.0 * index))
        image.SetMetaData("0008|0060", "CT")
        image.SetMetaData("0020|000e", "1.2.3")
        writer = SimpleITK.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{index}.dcm"))
        writer.Execute(image)
    return folder


def test_files_that_readers_take_are_taken(series: Path) -> None:
    """Sequences of defined and undefined length, private elements, all transfer syntaxes: pydicom's own files."""
    assert all(elements_fit(file, BUDGET) for file in series.iterdir())
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    readable = [file for file in sorted(folder.glob("*.dcm")) if _gdcm_reads(file)]
    assert len(readable) > 30
    assert [file.name for file in readable if not elements_fit(file, BUDGET)] == []


def _gdcm_reads(file: Path) -> bool:
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.Execute()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("vr", [None, b"SH", b"OB", b"SQ", b"??"])
def test_a_length_beyond_the_files_end_is_refused_in_one_line_and_little_memory(
    vr: bytes | None, series: Path
) -> None:
    """Without ``vr`` in implicit little endian."""
    file = series / "1.dcm"
    if vr is not None:
        _make_explicit(file)
    data = file.read_bytes()
    place = data.index(MODALITY)
    told = {None: LONG, b"SH": b"SH" + struct.pack("<H", 0xFFF0), b"??": b"??" + LONG}.get(
        vr, (vr or b"") + b"\0\0" + LONG
    )
    file.write_bytes(data[:place] + ACCESSION + told + data[place:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ScanError) as error:
        open_ct(series)
    assert "\n" not in str(error.value)
    assert "copy or export the series again" in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def _make_explicit(file: Path) -> None:
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.save_as(file, implicit_vr=False, little_endian=True)


def test_a_file_cut_anywhere_does_not_fit(series: Path, rng: np.random.Generator) -> None:
    file = series / "0.dcm"
    data = file.read_bytes()
    for end in rng.integers(200, len(data) - 1, size=40).tolist():
        file.write_bytes(data[:end])
        with pytest.raises(ScanError):
            open_ct(series)
