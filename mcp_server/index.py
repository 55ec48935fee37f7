"""Small facts that outlive the process: which file a scan id stands for, which label map is a scan's latest.

Unlike the results in :mod:`~tumorchain_agent.mcp_server.store` they are never evicted: a few hundred bytes
each, one JSON file a fact, replaced atomically.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from tumorchain_agent.errors import InputError, OutputError
from tumorchain_agent.tools.cache import Part, content_key
from tumorchain_agent.tools.private import private_folder
from tumorchain_agent.tools.read_dicom import MAX_FILES

_NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")

Fact = dict[str, Any]


class Index:
    """``root/<kind>/<name>.json``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, kind: str, name: str) -> Fact | None:
        """The fact, or ``None`` when there is none or it can't be read."""
        if not _NAME.fullmatch(name):
            return None
        try:
            fact = json.loads((self.root / kind / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return fact if isinstance(fact, dict) else None

    def write(self, kind: str, name: str, fact: Fact) -> None:
        """Raises OutputError when the folder can't be written."""
        folder = self.root / kind
        try:
            private_folder(folder)
            fresh = folder / f".{uuid.uuid4().hex}"
            fresh.write_text(json.dumps(fact), encoding="utf-8")
            os.replace(fresh, folder / f"{name}.json")
        except OSError as error:
            raise OutputError(
                f"{folder} can't be written ({error.strerror}); "
                "free space or set TUMORCHAIN_CACHE_DIR to another folder"
            ) from error


def local_path(given: str, error: type[InputError]) -> Path:
    """A path as a caller wrote it, made absolute. Raises ``error`` for one that no file can have."""
    try:
        path = Path(given).expanduser().absolute()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, ValueError) as cause:
        raise error(f"{given[:80]!r} can't be a path on the server's machine ({cause}); check it") from cause
    return path


def file_signature(path: Path, *more: str | int | None) -> str | None:
    """Changes when the file, or any file below the folder, is replaced: names, sizes and modification times.

    A quick look that saves reading gigabytes again; content is checked when the voxels are read. ``None``
    when there is nothing to look at, or too much.
    """
    try:
        resolved = path.resolve()
        files = sorted(islice(_files(resolved), MAX_FILES + 1))
        if not files or len(files) > MAX_FILES:
            return None
        stats = [(file, file.stat()) for file in files]
    except OSError:
        return None
    seen: list[Part] = [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
    return content_key(str(resolved), seen, list(more))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for parent, _, names in os.walk(path):
        yield from (Path(parent, name) for name in names)
