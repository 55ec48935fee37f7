"""Open scans by id: read once, kept in memory while there is room, found again after a restart."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from tumorchain_agent import __version__
from tumorchain_agent.errors import ScanError
from tumorchain_agent.mcp_server.guard import Guard
from tumorchain_agent.mcp_server.index import Fact, Index, file_signature
from tumorchain_agent.mcp_server.jobs import Job, Lane
from tumorchain_agent.records import ScanInfo
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.input_gate import inspect_input
from tumorchain_agent.tools.scan import CT, open_ct

T = TypeVar("T")

SCAN_MEMORY_BYTES = 1_000_000_000
"""CTs kept in memory; the latest stays whatever its size (512×512×600 is 630 MB)."""


class Memory(Generic[T]):
    """Least recently used values of a total size; safe from any thread."""

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes, self._size = max_bytes, size
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: T) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > 1 and sum(map(self._size, self._values.values())) > self._max_bytes:
                self._values.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


class Scans:
    """Path → scan id → CT."""

    def __init__(
        self, settings: Settings, index: Index, guard: Guard, *, memory_bytes: int = SCAN_MEMORY_BYTES
    ) -> None:
        self._settings = settings
        self._index = index
        self._guard = guard
        self._memory: Memory[CT] = Memory(memory_bytes, lambda ct: int(ct.hu.nbytes))
        self._lane = Lane("reading the scan")

    def open(self, path: str, volume: int | None, job: Job) -> ScanInfo:
        """What is in the file; its voxels are read unless they were before and the file is unchanged.

        Raises ScanError.
        """
        file = self._guard.read(path, ScanError)
        signature = file_signature(file, volume)
        if signature is not None and (known := self._known(signature)):
            return known
        job.progress("reading the scan", 0.0)
        with self._lane.hold(job):
            return self._read(file, volume).info

    def info(self, scan_id: str) -> ScanInfo:
        """What ``open`` returned for this id, also in an earlier process. Raises ScanError."""
        ct = self._memory.get(scan_id)
        return ct.info if ct is not None else ScanInfo.model_validate(self._fact(scan_id)["info"])

    def ct(self, scan_id: str, job: Job) -> CT:
        """The voxels, read again from the file when they aren't in memory.

        Raises ScanError when the id is unknown, or its file is gone or holds another scan now.
        """
        ct = self._memory.get(scan_id)
        if ct is not None:
            return ct
        fact = self._fact(scan_id)
        job.progress("reading the scan", 0.0)
        file = self._guard.read(fact["path"], ScanError)
        with self._lane.hold(job):
            ct = self._memory.get(scan_id) or self._read(file, fact["volume"])
        if ct.scan_id != scan_id:
            raise ScanError(
                f"{Path(fact['path']).name} has changed since scan {scan_id} was opened; "
                "open it again with open_scan"
            )
        return ct

    def check_allowed(self, scan_id: str) -> None:
        """Raises ScanError for the scan of a file that this server's callers may not read."""
        fact = None if self._memory.get(scan_id) is not None else self._index.read("scans", scan_id)
        if fact is not None and not self._guard.allows(Path(fact["path"])):
            self._fact(scan_id)

    def forget(self) -> None:
        """Free the memory; the files are read again when needed."""
        self._memory.clear()

    def _read(self, file: Path, volume: int | None) -> CT:
        signature = file_signature(file, volume)
        opened = open_ct(file, volume=volume, max_voxels=self._settings.max_scan_voxels)
        ct = replace(opened, info=opened.info.model_copy(update={"gate": inspect_input(opened)}))
        fact = {
            "path": str(file),
            "volume": volume,
            "info": ct.info.model_dump(mode="json"),
            "version": __version__,
        }
        self._index.write("scans", ct.scan_id, fact)
        if signature is not None:
            self._index.write("files", signature, fact)
        self._memory.put(ct.scan_id, ct)
        return ct

    def _known(self, signature: str) -> ScanInfo | None:
        fact = self._index.read("files", signature)
        if fact is None or fact.get("version") != __version__:
            return None
        try:
            info = ScanInfo.model_validate(fact["info"])
        except ValidationError:
            return None
        if self._index.read("scans", info.scan_id) != fact:
            self._index.write("scans", info.scan_id, fact)
        return info

    def _fact(self, scan_id: str) -> Fact:
        fact = self._index.read("scans", scan_id)
        if fact is None or not self._guard.allows(Path(fact["path"])):
            raise ScanError(f"scan {scan_id[:60]!r} is not known here; open its file with open_scan first")
        return fact
