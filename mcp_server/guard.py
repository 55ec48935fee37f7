"""Which files a server reads for its callers: those below its roots, and no way around it."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server.index import local_path
from tumorchain_agent.tools.read_dicom import MAX_FILES

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}:")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_UNC: Final = re.compile(r"[\\/]{2}")
MAX_PATH: Final = 4096
_LOOKED_AT: Final = 2000
"""Names below the roots among which the nearest to a wrong path is searched."""


class Guard(Protocol):
    """Decides about paths that a caller names."""

    @property
    def roots(self) -> tuple[Path, ...] | None:
        """The folders below which files are read; ``None`` is anywhere."""
        ...

    def read(self, given: str, error: type[InputError]) -> Path:
        """The file or folder, absolute. Raises ``error`` for one that may not be read."""
        ...

    def allows(self, path: Path) -> bool:
        """Whether a path of an earlier process may be read in this one."""
        ...


class NoGuard:
    """Any path: for a caller in this process, who has the user's own rights."""

    roots: Final = None

    def read(self, given: str, error: type[InputError]) -> Path:
        return local_path(given, error)

    def allows(self, path: Path) -> bool:
        return True


class PathGuard:
    """Files below the roots, which are looked up once.

    Below a root there may be no symbolic link on the way to a file, nor inside a folder that is read: a link
    that is exchanged later would lead out. Whoever may write below a root can still exchange a whole file.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        """Raises InputError for a root that is no folder, or is the whole file system."""
        self.roots = tuple(dict.fromkeys(_checked_root(root) for root in roots))
        if not self.roots:
            raise InputError("no folder may be read; name one with --root DIR")

    def read(self, given: str, error: type[InputError]) -> Path:
        """Relative paths are looked for below each root in turn. The message names roots and the nearest path."""
        self._check_words(given, error)
        path = Path(given).expanduser() if given.startswith("~/") else Path(given)
        candidates = [path] if path.is_absolute() else [root / path for root in self.roots]
        inside = [found for found in map(self._below, candidates) if found is not None]
        if not inside:
            self._refuse(given, "it lies outside", error)
        for candidate in inside:
            if self._exists(given, *candidate, error):
                path = candidate[0].joinpath(*candidate[1])
                self._check_kind(given, path, error)
                return path
        self._refuse(given, "it does not exist", error)

    def allows(self, path: Path) -> bool:
        """By name alone, for a path that was checked when it was first read."""
        return ".." not in path.parts and self._below(path) is not None

    def _check_words(self, given: str, error: type[InputError]) -> None:
        if not given.strip() or len(given) > MAX_PATH or not given.isprintable():
            self._refuse(given, "it is empty, too long or has control characters", error)
        if _URL.match(given) or _DRIVE.match(given):
            self._refuse(
                given, "it is a URL or has a drive letter, not a path on the server's machine", error
            )
        if _UNC.match(given) or "\\" in given:
            self._refuse(given, "it is a network path or has backslashes", error)
        if ".." in Path(given).parts:
            self._refuse(given, "it goes up with '..'", error)

    def _below(self, path: Path) -> tuple[Path, tuple[str, ...]] | None:
        """The root that holds it, and the parts of the way down."""
        for root in self.roots:
            if path.is_relative_to(root):
                return root, path.relative_to(root).parts
        return None

    def _exists(self, given: str, root: Path, parts: tuple[str, ...], error: type[InputError]) -> bool:
        """Looks at each step without following it."""
        path = root
        for part in parts:
            path = path / part
            try:
                mode = path.lstat().st_mode
            except (OSError, ValueError):
                return False
            if stat.S_ISLNK(mode):
                self._refuse(given, f"{part[:80]!r} is a symbolic link", error)
        return True

    def _check_kind(self, given: str, path: Path, error: type[InputError]) -> None:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            return
        if not stat.S_ISDIR(mode):
            self._refuse(given, "it is a device, pipe or socket", error)
        for number, entry in enumerate(_entries(path)):
            if number >= MAX_FILES:
                self._refuse(given, f"it holds more than {MAX_FILES} files", error)
            if entry.is_symlink():
                self._refuse(given, f"it holds the symbolic link {entry.name[:80]!r}", error)
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                self._refuse(given, f"it holds {entry.name[:80]!r}, a device, pipe or socket", error)

    def _refuse(self, given: str, why: str, error: type[InputError]) -> NoReturn:
        shown = "".join(char if char.isprintable() else "?" for char in given[:200])
        roots = ", ".join(map(str, self.roots))
        near = self._nearest(given)
        hint = f"; the nearest path there is {near}" if near else ""
        raise error(f"path {shown!r} is refused: {why}; files are read below {roots} only{hint}")

    def _nearest(self, given: str) -> str | None:
        """The path below a root whose name, then whole way, is most like the wrong one."""
        wanted = re.split(r"[\\/]+", given[:MAX_PATH].strip().rstrip("\\/"))[-1]
        found: dict[str, list[str]] = {}
        for root in self.roots:
            for number, entry in enumerate(_entries(root)):
                if number >= _LOOKED_AT:
                    break
                if not entry.name.startswith(".") and not entry.is_symlink():
                    found.setdefault(entry.name, []).append(entry.path)
        names = difflib.get_close_matches(wanted, found, n=1, cutoff=0.5)
        if not names:
            return None
        paths = found[names[0]]
        return max(paths, key=lambda path: difflib.SequenceMatcher(None, path, given).ratio())


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, the upper levels first; links are not followed, what can't be read is left out."""
    waiting = [str(folder)]
    while waiting:
        below: list[str] = []
        for each in waiting:
            try:
                with os.scandir(each) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError:
                continue
            yield from listed
            below += [entry.path for entry in listed if entry.is_dir(follow_symlinks=False)]
        waiting = below


def _checked_root(root: Path) -> Path:
    try:
        resolved = root.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as cause:
        raise InputError(f"--root {root} can't be used ({cause}); name a folder that exists") from cause
    if not resolved.is_dir():
        raise InputError(f"--root {root} is no folder; name the folder that holds the scans")
    if resolved == resolved.parent:
        raise InputError(
            f"--root {root} would open the whole file system to callers; name the folder that holds the scans"
        )
    return resolved
