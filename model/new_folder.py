"""Write a folder whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tumorchain_agent.errors import OutputError


@contextmanager
def new_folder(folder: Path, *, marker: str) -> Iterator[Path]:
    """A draft beside ``folder`` that takes its place when the block ends without an error, else vanishes.

    A folder that is there is replaced only when it is empty or holds the file ``marker``. Raises
    :class:`OutputError` otherwise, and when the place can't be written.
    """
    folder = folder.absolute()
    occupied = folder.exists() and not (folder / marker).is_file()
    if occupied and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} holds something else ({marker} is missing): choose an empty or new folder"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        draft.chmod(0o755)
        yield draft
        for path in draft.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _take_place(draft, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder} can't be written ({error.strerror or error}): choose another folder")


def _take_place(draft: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(draft, folder)
        return
    old = draft.with_suffix(".old.tmp")
    os.rename(folder, old)
    try:
        os.rename(draft, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old)
