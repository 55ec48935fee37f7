"""Files of benchmarks → questions with their scans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from tumorchain_agent.errors import InputError
from tumorchain_agent.training.data import deeptumorvqa, m3d, rad3d
from tumorchain_agent.training.data.convert import Reader
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.rows import Source
from tumorchain_agent.training.evaluation.runner import Item, good

Read = Callable[[Path, Path | None, bool, int | None], list[Item]]
"""``read(path, scans, open_ended, limit)``."""


def read_deeptumorvqa(path: Path, scans: Path | None, open_ended: bool, limit: int | None) -> list[Item]:
    """A dataset folder (``benchmark/test_qa.json``, ``benchmark/ct/ID/ct.nii.gz``), or its question file."""
    file = path
    if path.is_dir():
        places = [path / "benchmark" / f"test_qa.{suffix}" for suffix in ("json", "jsonl")]
        file = next((each for each in places if each.is_file()), places[0])
    source = Source(file, file.parent / "out.jsonl", scans, "test", open_ended)
    samples = islice(good(deeptumorvqa.read(source), file.name), limit)
    return [Item(sample, file.parent / sample.scan, sample.patient) for sample in samples]


def read_m3d_vqa(path: Path, scans: Path | None, open_ended: bool, limit: int | None) -> list[Item]:
    """``M3D_VQA_test.csv``; its volumes are ``.npy`` files below ``scans``."""
    return _read(m3d.read_vqa, path, scans, open_ended, limit)


def read_3d_rad(path: Path, scans: Path | None, open_ended: bool, limit: int | None) -> list[Item]:
    """A CSV of 3D-RAD, or a folder of them; CT-RATE's volumes lie below ``scans``."""
    files = sorted(path.glob("**/*.csv")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no .csv; pass 3DRAD/test or one of its files")
    items = [item for file in files for item in _read(rad3d.read, file, scans, open_ended, limit)]
    return items[:limit]


def read_tumorcot(path: Path, scans: Path | None, open_ended: bool, limit: int | None) -> list[Item]:
    """The test side of a TumorCoT file; all of it when no sample is of the test side."""
    samples = list(read_samples(path))
    chosen = [sample for sample in samples if sample.split == "test"] or samples
    folder = scans or path.parent
    return [
        replace(_item(sample, folder), label_map=folder / sample.label_map if sample.label_map else None)
        for sample in chosen[:limit]
    ]


def _read(reader: Reader, path: Path, scans: Path | None, open_ended: bool, limit: int | None) -> list[Item]:
    source = Source(path, path.parent / "out.jsonl", scans, "test", open_ended)
    samples = islice(good(reader(source, None), path.name), limit)
    return [_item(sample, path.parent) for sample in samples]


def _item(sample: CoTSample, folder: Path) -> Item:
    scan = folder / sample.scan
    name = scan.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".npy")
    return Item(sample, scan, scan.parent.name if name == "ct" else name)


READERS: Final[dict[str, Read]] = {
    "deeptumorvqa": read_deeptumorvqa,
    "m3d-vqa": read_m3d_vqa,
    "3d-rad": read_3d_rad,
    "tumorcot": read_tumorcot,
}
