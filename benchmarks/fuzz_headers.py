"""Broken NIfTI and DICOM headers for the readers: ``python benchmarks/fuzz_headers.py --headers 20000 REAL …``.

Each REAL is a NIfTI file or a folder with a DICOM series; a small NIfTI and a small DICOM series of our own are
always among them. Bytes, numbers and lengths of the headers are changed, files are cut. Each broken scan must be
read, or refused by a ScanError of one line; within 5 s, without going over 2 GB. Reading is done in worker
processes, so that a crash of a library is seen and counted. The seed is printed.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tumorchain_agent.errors import ScanError
from tumorchain_agent.tools.scan import open_ct

READ_S = 5.0
MAX_BYTES = 2 << 30
MAX_VOXELS = 100_000_000
SLICES = 4
NIFTI_HEADER = 352
DICOM_HEADER = 4000


@dataclass
class Outcome:
    """What a run has seen."""

    tried: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0


def read(path: Path) -> str:
    """``read``, or the kind of refusal; an error that nobody foresaw ends the worker, its traceback on stderr."""
    try:
        open_ct(path, max_voxels=MAX_VOXELS)
    except ScanError as error:
        return "refused" if "\n" not in str(error) else "not one line"
    return "read"


def worker(pipe: Connection) -> None:
    """Reads paths until there are no more; sends kind, seconds and the most memory so far."""
    limit = 3 * MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    while (path := pipe.recv()) is not None:
        started = time.monotonic()
        kind = read(path)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send((kind, time.monotonic() - started, memory))


class Reader:
    """A worker process, replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=worker, args=(theirs,), daemon=True)
        self._process.start()

    def read(self, path: Path) -> tuple[str, float, int]:
        self._pipe.send(path)
        try:
            if self._pipe.poll(4 * READ_S):
                kind, seconds, memory = self._pipe.recv()
                if memory > MAX_BYTES:
                    self.close()
                    self._start()
                return str(kind), float(seconds), int(memory)
            kind = "not within the time"
        except (EOFError, ConnectionError):
            kind = f"not survived: exit code {self._process.exitcode}"
        self.close()
        self._start()
        return kind, 4 * READ_S, 0

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def own_nifti() -> bytes:
    nibabel: Any = import_module("nibabel")
    rng = np.random.default_rng(0)
    values = rng.integers(-1000, 400, (12, 10, 8)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]), dtype=np.int16)
    return bytes(image.to_bytes())


def own_series() -> list[bytes]:
    """A few small slices."""
    SimpleITK: Any = import_module("SimpleITK")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(SLICES):
            rng = np.random.default_rng(index)
            image = SimpleITK.GetImageFromArray(rng.integers(-1000, 400, (1, 16, 16)).astype(np.int16))
            image.SetOrigin((0.0, 0.0, 3.0 * index))
            image.SetSpacing((2.0, 2.0, 3.0))
            for tag, value in (
                ("0008|0060", "CT"),
                ("0020|000e", "1.2.3"),
                ("0020|0013", str(index)),
                ("0008|0018", f"1.2.3.{index}"),
            ):
                image.SetMetaData(tag, value)
            path = Path(folder, f"{index}.dcm")
            writer = SimpleITK.ImageFileWriter()
            writer.SetImageIO("GDCMImageIO")
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(path))
            writer.Execute(image)
            found.append(path.read_bytes())
    return found


def sources(paths: Sequence[Path]) -> Iterator[bytes | list[bytes]]:
    """NIfTI files as they are unpacked, cut to a few slices' worth; DICOM series as their first slices."""
    yield own_nifti()
    yield own_series()
    for path in paths:
        if path.is_dir():
            yield [file.read_bytes() for file in sorted(path.iterdir())[:SLICES]]
        else:
            data = path.read_bytes()
            yield (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)[: 1 << 20]


def broken(data: bytes, header: int, rng: random.Random) -> bytes:
    """One to six changes of the header, or a cut anywhere."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(min(header, len(changed)))
        match rng.randrange(5):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.choice([0, 1, 127, 128, 255])
            case 2:
                number = rng.choice([0, -1, 1, 2**15 - 1, -(2**15)])
                changed[place : place + 2] = struct.pack("<h", number)
            case 3:
                value = rng.choice([0.0, -1.0, 1e38, 1e-38, float("nan"), float("inf"), 0.5])
                changed[place : place + 4] = struct.pack("<f", value)
            case _:
                changed[place : place + 4] = struct.pack(
                    "<I", rng.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 24])
                )
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


def write(source: bytes | list[bytes], folder: Path, rng: random.Random) -> Path:
    """A broken copy; what a number of it was before is gone."""
    if isinstance(source, bytes):
        path = folder / "ct.nii"
        path.write_bytes(broken(source, NIFTI_HEADER, rng))
        return path
    series = folder / "series"
    series.mkdir(exist_ok=True)
    hit = set(rng.sample(range(len(source)), rng.randint(1, len(source))))
    for number, data in enumerate(source):
        kept = broken(data, DICOM_HEADER, rng) if number in hit else data
        (series / f"{number}.dcm").write_bytes(kept)
    return series


def _keep(folder: Path, target: Path) -> None:
    shutil.copytree(folder, target)


def fuzz(headers: int, seed: int, paths: Sequence[Path], folder: Path, keep: Path | None = None) -> Outcome:
    """Read so many broken headers; failures are collected, and their files copied below ``keep``."""
    rng, outcome, found = random.Random(seed), Outcome(), list(sources(paths))
    reader = Reader()
    reader.read(write(found[0], folder, random.Random(0)))
    try:
        while outcome.tried < headers:
            source = rng.choice(found)
            kind, seconds, memory = reader.read(write(source, folder, rng))
            outcome.tried += 1 if isinstance(source, bytes) else len(source)
            outcome.kinds[kind.split(":")[0]] += 1
            outcome.slowest_s = max(outcome.slowest_s, seconds)
            outcome.largest_bytes = max(outcome.largest_bytes, memory)
            if kind.startswith("not ") or seconds > READ_S or memory > MAX_BYTES:
                what = "NIfTI" if isinstance(source, bytes) else "DICOM"
                outcome.failures.append(f"{what}: {kind}, {seconds:.1f} s, {memory / 1e6:.0f} MB")
                if keep is not None:
                    _keep(folder, keep / f"{len(outcome.failures):04d}")
    finally:
        reader.close()
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("real", metavar="REAL", type=Path, nargs="*")
    parser.add_argument("--headers", type=int, default=20_000)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="folder for what failed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    for path in args.real:
        if not path.is_file() and not (path.is_dir() and all(file.is_file() for file in path.iterdir())):
            parser.error(f"{path} is neither a NIfTI file nor a folder with the files of one DICOM series")
    with tempfile.TemporaryDirectory(prefix="tumorchain-fuzz-") as folder:
        started = time.monotonic()
        found = fuzz(args.headers, args.seed, args.real, Path(folder), args.keep)
    print(f"seed {args.seed}: {found.tried} headers in {time.monotonic() - started:.0f} s")
    print(f"slowest {found.slowest_s:.2f} s, largest {found.largest_bytes / 1e6:.0f} MB")
    for kind, count in found.kinds.most_common():
        print(f"{count:8} {kind}")
    for failure, count in Counter(found.failures).most_common(20):
        print(f"FAILURE {count} × {failure}")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
