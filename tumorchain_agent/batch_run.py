"""A batch on Ray Data: workers that keep their models loaded, rows streamed to them and their outcomes back."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tumorchain_agent.batch_rows import Outcome
from tumorchain_agent.batch_table import Row
from tumorchain_agent.batch_worker import Attempts, Reasoning, RowAsker, from_item, to_item
from tumorchain_agent.errors import InputError, OutputError, TumorChainError
from tumorchain_agent.settings import Settings

_OBJECT_STORE_BYTES: Final = 128 << 20
_CORES_A_WORKER: Final = 4
_PREFIX: Final = "tumorchain-ray-"
_FOLDER_BYTES: Final = 43
"""Of the path of Ray's folder at most: a socket's has 107 bytes, and Ray's own names below the folder take 64."""
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
ALONE: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
"""Ray's own switch for "this machine is no part of a cluster": with it every server listens on 127.0.0.1. And workers
as nice as this process, not 15 nicer, which on a busy machine is a stop."""

_WORKERS: Final = {"env_vars": {"MALLOC_ARENA_MAX": "2"}}
"""glibc: with an arena for every thread a worker's memory grows by a half over its first rows, out of fragments."""


@contextmanager
def cluster() -> Iterator[Any]:
    """Ray: the cluster that RAY_ADDRESS names, or one of this machine alone that nobody else can reach.

    The latter listens on 127.0.0.1 only, reports nothing to anybody, and leaves nothing behind.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None and "ray" in sys.modules and any(os.environ.get(k) != v for k, v in ALONE.items()):
        raise InputError(
            "Ray was imported before batch could tell it to listen on this machine only: set "
            f"{' '.join(f'{k}={v}' for k, v in ALONE.items())} before that, or name a cluster by RAY_ADDRESS"
        )
    os.environ.update(_QUIET if address else _QUIET | ALONE)
    try:
        import ray
    except ImportError as error:
        raise InputError('batch needs Ray: pip install "tumorchain-agent[ray]"') from error

    folder = None if address else _short_folder()
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _start(ray, address, folder)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, address: str | None, folder: str | None) -> None:
    """Raises TumorChainError for whatever Ray ends in: its node's start raises Exception itself."""
    given = {"address": address} if folder is None else _alone(folder)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **given)
    except Exception as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = (
            "check it with ray status"
            if folder is None
            else f"free memory and room in {Path(folder).parent}, or set TMPDIR to another folder, and run again"
        )
        raise TumorChainError(f"no Ray cluster could be used {where} ({reason}); {remedy}") from error


def _short_folder() -> str:
    """A new folder for Ray, in /tmp where the temporary folder's path is too long for its sockets."""
    try:
        given = tempfile.gettempdir()
        for place in dict.fromkeys((given, "/tmp")):
            length = len(os.fsencode(place)) + len(f"/{_PREFIX}12345678")
            if length <= _FOLDER_BYTES and os.access(place, os.W_OK | os.X_OK):
                return tempfile.mkdtemp(prefix=_PREFIX, dir=place)
    except OSError as error:
        raise OutputError(
            f"no temporary folder can be made ({error.strerror}); free space, or set TMPDIR to another folder"
        ) from error
    raise OutputError(
        f"the temporary folder {given} has too long a path for Ray's sockets, and /tmp can't be written; "
        f"set TMPDIR to a folder of {_FOLDER_BYTES - len(_PREFIX) - 9} bytes or less"
    )


def _alone(folder: str) -> dict[str, Any]:
    return {
        "num_cpus": cores(),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": folder,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(resources: dict[str, float], workers: int | None, device: str) -> tuple[int, float, float]:
    """How many workers, and cores and GPUs of each, from what the cluster has."""
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0)) if device != "cpu" else 0
    count = workers or gpus or max(1, cpus // _CORES_A_WORKER)
    return count, max(1, cpus // count) if count <= cpus else cpus / count, min(1.0, gpus / count)


def outcomes(
    rows: Sequence[tuple[Row, str]], settings: Settings, reasoning: Reasoning, workers: int | None = None
) -> Iterator[Outcome]:
    """The outcome of each row with its key, as they are finished.

    A worker that dies is replaced, and its row tried once more. A row that ends in an error which isn't ours has
    no outcome.
    """
    with cluster() as ray:
        from ray.data import ActorPoolStrategy, from_items

        _configure()
        count, cpus, gpus = share(ray.cluster_resources(), workers, settings.device)
        attempts = ray.remote(Attempts).options(num_cpus=0).remote()
        asker: Any = RowAsker
        found = from_items([to_item(*each) for each in rows], override_num_blocks=len(rows)).map(
            asker,
            fn_constructor_args=(settings.model_dump(mode="json"), reasoning.model_dump_json(), attempts),
            compute=ActorPoolStrategy(size=min(count, len(rows)), max_tasks_in_flight_per_actor=2),
            num_cpus=cpus,
            num_gpus=gpus or None,
            runtime_env=_WORKERS,
        )
        for item in found.iter_rows():
            yield from_item(item)


def _configure() -> None:
    """Quiet, and a block of one row may fail without the rest."""
    from ray.data import DataContext

    context: Any = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.max_errored_blocks = -1
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
