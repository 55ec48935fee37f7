"""A zip of DICOM files, unpacked into a temporary folder that is removed again."""

from __future__ import annotations

import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from tumorchain_agent.errors import ScanError

MAX_FILES = 20_000
NO_IMAGES: Final = (".", "DICOMDIR")
"""How the names begin of files that no series is made of; those of macOS are hidden copies named like slices."""
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)
"""What ``zipfile`` raises for a zip or an entry that it can't unpack."""


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
                if not PurePosixPath(entry.filename).name.startswith(NO_IMAGES):
                    _unpack_entry(path, archive, entry, folder / f"{number:06d}_{_plain(entry)}")
    except _DAMAGED as cause:
        raise ScanError(f"{path.name} is not a readable zip ({cause}); zip the DICOM folder again") from cause


def _unpack_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    """Raises ScanError, which names the entry, where it is damaged or there is no room for it."""
    try:
        with archive.open(entry) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, _chunk(entry))
    except OSError as cause:
        raise ScanError(
            f"{path.name} can't be unpacked ({cause.strerror or cause}); unpack it elsewhere and pass the folder"
        ) from cause
    except _DAMAGED as cause:
        raise ScanError(
            f"{path.name} is not a readable zip ({_plain(entry)}: {cause}); copy it or zip the DICOM folder again"
        ) from cause


def _plain(entry: zipfile.ZipInfo) -> str:
    """The entry's own name without its folders, fit for a file and for one line."""
    return re.sub(r"[^\w.-]", "_", PurePosixPath(entry.filename).name)[-80:]


def _chunk(entry: zipfile.ZipInfo) -> int:
    """Bytes read at a time: few of LZMA, where ``zipfile`` unpacks all that it has read, up to thousands of times."""
    return 1 << 12 if entry.compress_type == zipfile.ZIP_LZMA else 1 << 20


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
    if any(entry.compress_type == zipfile.ZIP_BZIP2 for entry in entries):
        raise ScanError(
            f"{path.name} is packed with bzip2, which can unpack to any size; zip the DICOM folder again by deflate"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise ScanError(f"{path.name} is protected by a password; unpack it and pass the folder")
