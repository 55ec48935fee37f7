"""A zip of DICOM files, unpacked into a temporary folder that is removed again."""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tumorchain_agent.errors import ScanError

MAX_FILES = 20_000


@contextmanager
def dicom_folder(path: Path, max_bytes: int) -> Iterator[Path]:
    """The folder itself, or the zip's files in a folder of their own that lasts as long as the block."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tumorchain-") as folder:
        _unpack(path, Path(folder), max_bytes)
        yield Path(folder)


def _unpack(path: Path, folder: Path, max_bytes: int) -> None:
    """Every file of the zip under a flat new name, so that no entry's path can lead out of ``folder``."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_entries(path, entries, max_bytes, shutil.disk_usage(folder).free)
            for number, entry in enumerate(entries):
                base = re.sub(r"[^\w.-]", "_", PurePosixPath(entry.filename).name)[-80:]
                with archive.open(entry) as source, (folder / f"{number:06d}_{base}").open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as cause:
        raise ScanError(f"{path.name} is not a readable zip ({cause}); zip the DICOM folder again") from cause


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], max_bytes: int, free: int) -> None:
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES:
        raise ScanError(f"{path.name} holds {len(entries)} files; zip the folder of one series only")
    if total > max_bytes:
        raise ScanError(
            f"{path.name} would unpack to {total / 1e9:.1f} GB, more than {max_bytes / 1e9:.1f} GB; "
            "zip the folder of one series only"
        )
    if total > free:
        raise ScanError(
            f"{path.name} needs {total / 1e9:.1f} GB of temporary space, {free / 1e9:.1f} GB are free; "
            "unpack it elsewhere and pass the folder"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise ScanError(f"{path.name} is protected by a password; unpack it and pass the folder")
