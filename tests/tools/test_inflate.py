"""A gzip stream gives the same voxels, and the same refusals, whichever library unpacks it."""

from __future__ import annotations

import gzip
import zlib
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteNifti, torso, torso_grid
from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools import inflate
from tumorchain_agent.tools.scan import open_ct

AFFINE, SHAPE = torso_grid(12.0)
HU, _ = torso(AFFINE, SHAPE)


@pytest.fixture(params=["zlib", "isal.isal_zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    pytest.importorskip(name.partition(".")[0], reason="isal, a faster inflate, is not installed")
    module: Any = import_module(name)
    monkeypatch.setattr(inflate, "_inflate", module)
    return name


def test_members_one_after_the_other_are_one_stream(library: str, write_nifti: WriteNifti) -> None:
    path = write_nifti(HU, AFFINE)
    raw = gzip.decompress(path.read_bytes())
    cut = len(raw) // 3
    path.write_bytes(gzip.compress(raw[:cut], 9) + gzip.compress(raw[cut:], 1))
    assert np.array_equal(open_ct(path).hu, HU.astype(np.int16))


@pytest.mark.parametrize("damage", ["checksum", "cut", "bits"])
def test_damaged_streams_are_refused(library: str, damage: str, write_nifti: WriteNifti) -> None:
    path = write_nifti(HU, AFFINE)
    data = bytearray(path.read_bytes())
    if damage == "checksum":
        data[-6] ^= 1
    elif damage == "cut":
        del data[-40:]
    else:
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(ScanError, match="cut off or damaged"):
        open_ct(path)


def test_a_stream_is_unpacked_a_bounded_number_of_bytes_at_a_time(library: str) -> None:
    packed = zlib.compress(bytes(1 << 20), wbits=31)
    unpack = inflate.unpacker()
    assert len(unpack.decompress(packed, 1000)) == 1000
    assert len(unpack.decompress(unpack.unconsumed_tail)) == (1 << 20) - 1000
    assert unpack.eof
