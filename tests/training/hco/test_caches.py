"""The caches: whole entries only, made again when damaged, never another scan's or another encoder's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.data.examples import write_patient
from tests.training.hco import tiny
from tumorchain_agent.errors import InputError
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.preprocess import preprocess
from tumorchain_agent.tools.roi import organ_coverage
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.hco.batches import Order, Shape
from tumorchain_agent.training.hco.scans import ScanData, TokenCache, VolumeCache
from tumorchain_agent.training.hco.sources import RecordSource, fill_cache, load


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def records(cohort: Path, tmp_path: Path) -> Path:
    shutil.copytree(cohort.parent, tmp_path / "cohort")
    return tmp_path / "cohort" / "cot.jsonl"


def source(records: Path, volumes: str = "float16") -> RecordSource:
    return RecordSource(records, "train", VolumeCache(records.parent / "cache"), volumes)


def good(records: Path, scan: int = 0, volumes: str = "float16") -> ScanData:
    found = load(source(records, volumes), scan)
    assert isinstance(found, ScanData)
    return found


def test_what_is_cached_is_what_inference_preprocesses(records: Path) -> None:
    for volumes, step in (("float16", 1e-3), ("uint8", 1 / 255)):
        made, kept = good(records, volumes=volumes), good(records, volumes=volumes)
        ct = open_ct(records.parent / made.name)
        model = preprocess(ct)
        labels = load_label_map((records.parent / made.name).with_name("labels.nii.gz"), ct)
        shares = organ_coverage(labels.labels, ct.affine, model)
        for found in (made, kept):
            assert torch.allclose(found.unit_volume(), torch.from_numpy(model.volume), atol=step)
            assert set(found.coverage) == {"liver", "spleen", "aorta", "lumbar_vertebrae"}
            assert found.present == frozenset(labels.info.organs_present)
            assert np.array_equal(found.coverage["liver"], shares[5])


def test_a_damaged_entry_is_made_again(records: Path) -> None:
    made = good(records)
    path = VolumeCache(records.parent / "cache").path(source(records).key(0))
    whole = path.read_bytes()
    for spoiled in (whole[: len(whole) // 2], b"", b"nonsense"):
        path.write_bytes(spoiled)
        again = good(records)
        assert made.volume is not None
        assert again.volume is not None
        assert torch.equal(made.volume, again.volume)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_changed_scan_is_read_again(records: Path) -> None:
    before = source(records).key(0)
    good(records)
    path = records.parent / source(records).record(0).scan
    os.utime(path, (1, 1))
    assert source(records).key(0) != before


@pytest.mark.slow
def test_several_workers_fill_the_cache_and_a_second_filling_makes_nothing(records: Path) -> None:
    write_patient(records.parent, "P-9")
    (records.parent / "P-2" / "ct.nii.gz").unlink()
    counted: list[int] = []
    bad = fill_cache(source(records), 2, counted.append)
    assert {each.reason for each in bad.values()} == {Reason.MISSING_SCAN}
    assert sum(counted) == len(source(records)) == 4
    entries = {path: path.stat().st_mtime_ns for path in (records.parent / "cache").rglob("*.npz")}
    assert len(entries) == 3
    fill_cache(source(records), 1)
    assert entries == {path: path.stat().st_mtime_ns for path in entries}


def test_tokens_of_another_encoder_are_not_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    tokens = torch.randn(2048, 2).half()
    TokenCache(tmp_path, one, "fp32").put("ab", tokens)
    found = TokenCache(tmp_path, one, "fp32").get("ab")
    assert found is not None
    assert torch.equal(found, tokens)
    assert TokenCache(tmp_path, other, "fp32").get("ab") is None
    assert TokenCache(tmp_path, one, "bf16").get("ab") is None
    path = TokenCache(tmp_path, one, "fp32").path("ab")
    path.write_bytes(path.read_bytes()[:100])
    assert TokenCache(tmp_path, one, "fp32").get("ab") is None
    assert not path.exists()


def test_the_order_is_a_function_of_seed_and_step_whatever_the_processes(records: Path) -> None:
    order = Order(source(records), 1, 5, 0)
    assert order.length == 8
    first, second = ([order.unit(n) for n in range(k * 8, k * 8 + 8)] for k in (0, 1))
    assert sorted(map(repr, first)) == sorted(map(repr, second))
    assert first != second
    assert [Order(source(records), 1, 5, 0).unit(n) for n in range(8, 16)] == second
    for step in range(3):
        one = {n for part in range(4) for n in Shape(2, 4).numbers(step * 4 + part)}
        two = {n for rank in (0, 1) for part in (0, 1) for n in Shape(2, 2, 2, rank).numbers(step * 2 + part)}
        assert one == two == set(range(step * 8, step * 8 + 8))


def test_a_packed_file_of_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unpack it"):
        RecordSource(tmp_path / "cot.jsonl.gz", "train", VolumeCache(tmp_path))
