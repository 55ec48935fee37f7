"""A content-addressed cache on disk: atomic, capped, shared safely by threads and processes.

Layout below the root: ``entries/`` (one file or folder per key), ``tmp/`` (half-written), ``locks/``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import OutputError
from tumorchain_agent.tools.private import private_folder

_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

Part = None | bool | int | float | str | bytes | NDArray[np.generic] | Sequence["Part"] | Mapping[str, "Part"]
"""What ``content_key`` can hash."""


def content_key(*parts: Part) -> str:
    """40 hex digits that depend on the type, shape, order and value of every part.

    Arrays are hashed by dtype, shape and values, whatever their memory order. Raises TypeError for types
    that aren't a Part.
    """
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: hashlib.blake2b, part: Part) -> None:
    if isinstance(part, np.ndarray):
        _feed(digest, f"array {part.dtype.str} {part.shape}")
        for slab in part if part.ndim > 1 else [part]:
            digest.update(np.ascontiguousarray(slab).data.cast("B") if slab.size else b"")
    elif isinstance(part, Mapping):
        _feed(digest, f"map {len(part)}")
        for name in sorted(part):
            _feed(digest, name)
            _feed(digest, part[name])
    elif isinstance(part, (list, tuple)):
        _feed(digest, f"list {len(part)}")
        for item in part:
            _feed(digest, item)
    elif part is None or isinstance(part, (bool, int, float, str, bytes)):
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{type(part).__name__} {len(data)}:".encode() + data)
    else:
        raise TypeError(f"content_key can't hash {type(part).__name__}; pass its content")


_owners: dict[str, int] = {}
"""Lock file → thread of this process that holds it."""
_handles: set[int] = set()


def _forget_parents_locks() -> None:
    """A forked child holds copies of the handles; closing them leaves the parent's locks as they are."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()
    _owners.clear()


os.register_at_fork(after_in_child=_forget_parents_locks)


@contextlib.contextmanager
def _lock_file(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock ``path`` among threads and processes; yields False when ``wait`` is off and it is taken.

    The kernel drops the lock of a dead owner.
    """
    name = os.path.realpath(path)
    if wait and _owners.get(name) == threading.get_ident():
        raise RuntimeError(f"this thread already holds the lock {path}")
    handle = _open_locked(path, wait)
    if handle is None:
        yield False
        return
    _owners[name] = threading.get_ident()
    try:
        yield True
    finally:
        if handle in _handles:
            del _owners[name]
            path.unlink(missing_ok=True)
            _close(handle)


def _open_locked(path: Path, wait: bool) -> int | None:
    """An open, locked file that still has the name ``path``: the last owner unlinks it before letting go."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _handles.add(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(handle).st_nlink:
                return handle
        except BlockingIOError:
            _close(handle)
            return None
        except BaseException:
            _close(handle)
            raise
        _close(handle)


def _close(handle: int) -> None:
    _handles.discard(handle)
    os.close(handle)


def _sync(path: Path) -> None:
    """Flush a file, or a folder with all it holds, to the disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync(child)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what vanishes meanwhile counts as 0."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if path.is_dir():
            return sum(_size(child) for child in path.iterdir())
        return path.stat().st_size
    return 0


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Cache:
    """Files and folders by key; the least recently used are removed above ``max_bytes``.

    An entry is either whole or absent, also after a kill or a power cut. Folders are private (0700).
    The newest entry is never the one removed, so one entry larger than the cap stays until the next.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._ready = False

    def get(self, key: str) -> Path | None:
        """The entry, marked as just used, or None."""
        path = self._entry(key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError:
            return path if path.exists() else None
        return path

    def put(self, key: str, writer: Callable[[Path], None]) -> Path:
        """Let ``writer`` write a file or folder at the path it is given, then make it the entry, atomically.

        The path's last part is the key, so that a suffix in the key is seen by the writer. An entry that is
        there already is kept. Raises OutputError when the disk is full or the folder can't be written.
        """
        path = self._entry(key)
        self._prepare()
        try:
            with self._temporary() as folder:
                fresh = folder / key
                writer(fresh)
                _sync(fresh)
                self._install(fresh, path)
        except OSError as error:
            if error.errno in _FULL:
                raise self._unusable(error) from error
            raise
        self._evict(keep=path)
        return path

    def get_or_make(self, key: str, make: Callable[[Path], None]) -> Path:
        """The entry, made by one caller only however many threads and processes ask at once."""
        if (path := self.get(key)) is not None:
            return path
        with self.lock(key):
            return self.get(key) or self.put(key, make)

    @contextlib.contextmanager
    def lock(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Exclude other threads and processes for this key, and keep its entry from being removed.

        Without ``wait`` yields False where another holds it.
        """
        self._entry(key)
        self._prepare()
        with _lock_file(self.root / "locks" / key, wait) as held:
            yield held

    def remove(self, key: str) -> None:
        """Drop the entry, e.g. one found to be damaged; nothing happens when there is none."""
        path = self._entry(key)
        if path.exists():
            self._prepare()
            self._discard(path)

    def size_bytes(self) -> int:
        """Bytes of all entries."""
        return _size(self.root / "entries")

    def _entry(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"cache key {key[:80]!r}: use content_key, or 1 to 200 of A-Z a-z 0-9 . _ -")
        return self.root / "entries" / key

    def _prepare(self) -> None:
        if self._ready:
            return
        try:
            private_folder(self.root)
            for name in ("entries", "tmp", "locks"):
                folder = self.root / name
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)
        except OSError as error:
            raise self._unusable(error) from error
        self._clean()
        self._ready = True

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"cache folder {self.root} can't be written ({error.strerror}); "
            "free space or set TUMORCHAIN_CACHE_DIR to another folder"
        )

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A private folder whose lock tells others that its owner lives."""
        name = uuid.uuid4().hex
        folder = self.root / "tmp" / name
        with _lock_file(self.root / "locks" / f".{name}"):
            try:
                folder.mkdir(mode=0o700)
                yield folder
            finally:
                _delete(folder)

    def _install(self, fresh: Path, path: Path) -> None:
        try:
            os.replace(fresh, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                raise
        os.utime(path)
        _sync_one(path.parent)

    def _clean(self) -> None:
        """Remove what killed writers left behind."""
        for folder in (self.root / "tmp").iterdir():
            with _lock_file(self.root / "locks" / f".{folder.name}", wait=False) as owner_is_dead:
                if owner_is_dead:
                    _delete(folder)

    def _discard(self, path: Path) -> None:
        """Take an entry out in one step, then delete it: nobody sees half a folder."""
        with self._temporary() as folder, contextlib.suppress(FileNotFoundError):
            os.replace(path, folder / path.name)

    def _evict(self, keep: Path) -> None:
        entries: list[tuple[int, int, Path]] = []
        for path in (self.root / "entries").iterdir():
            with contextlib.suppress(FileNotFoundError):
                entries.append((path.stat().st_mtime_ns, _size(path), path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if path == keep:
                continue
            with _lock_file(self.root / "locks" / path.name, wait=False) as unused:
                if unused:
                    self._discard(path)
                    excess -= size
