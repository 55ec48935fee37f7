"""Worker processes that make phantoms: one thread each, and memory that is kept between arrays."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's ``mallopt``."""


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Calm processes that begin anew: one forked from a process that has run PyTorch on threads can hang in its first
    operation, waiting for threads that it doesn't have."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=calm_worker)


def calm_worker() -> None:
    """Call once in a process that paints or draws phantoms.

    The products of small matrices there take twice the processor time on two threads; and glibc gives every
    large array's pages back to the system, to ask for them again a moment later.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 1 << 27)):
            mallopt(parameter, value)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
