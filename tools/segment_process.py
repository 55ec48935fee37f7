"""The parent's side of the segmentation worker: start, talk, kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tumorchain_agent.errors import SegmentationError
from tumorchain_agent.tools.segment_weights import Weights

TERMINATE_GRACE_S = 1.0
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""glibc: reuse big blocks rather than map and zero new pages for each; halves the time of a warm scan."""
_START = (
    "import sys; sys.path.append({root!r}); "
    "from tumorchain_agent.tools.segment_worker import main; main(sys.argv[1:])"
)


def worker_threads(weights: Weights) -> int:
    """The nano network gains nothing from more than 2 threads; the official ones take what may be used."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 2 if weights.source == "nano" else 16)


def import_root() -> str:
    """The folder that holds ``tumorchain_agent``, for the worker's ``sys.path``."""
    import tumorchain_agent

    return str(Path(tumorchain_agent.__file__).resolve().parent.parent)


class WorkerProcess:
    """One worker, in a process group of its own, with a private temporary folder.

    Its stdin is empty, its stdout and stderr go to a log file there, and messages go over a socket that
    nobody else holds: when this process ends, however it ends, the worker sees the socket close and ends too.
    (PR_SET_PDEATHSIG would end it with the thread that started it.)
    """

    def __init__(self, weights: Weights, device: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(
            prefix="tumorchain-segment-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._temporary.name)
        self.log = self.folder / "worker.log"
        self._buffer = b""
        ours, theirs = socket.socketpair()
        options = {
            "socket": theirs.fileno(),
            "folder": str(self.folder),
            "nano": weights.source == "nano",
            "mode": weights.mode,
            "spacing_mm": weights.spacing_mm,
            "device": device,
            "threads": worker_threads(weights),
        }
        with theirs, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START.format(root=import_root()), json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                cwd=self.folder,
                env=self._environment(weights),
                start_new_session=True,
            )
        self._socket = ours

    def _environment(self, weights: Weights) -> dict[str, str]:
        drop = ("nnUNet_compile", "TOTALSEG_HOME_DIR")
        environment = {key: value for key, value in os.environ.items() if key not in drop}
        threads = str(worker_threads(weights))
        environment |= {
            "TOTALSEG_WEIGHTS_PATH": str(weights.folder.resolve()),
            "TOTALSEG_HOME_DIR": str(self.folder / "totalsegmentator"),
            "TMPDIR": str(self.folder),
            "MPLCONFIGDIR": str(self.folder / "matplotlib"),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": threads,
            "nnUNet_def_n_proc": threads,
            **KEEP_MEMORY,
        }
        return environment

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """Raises SegmentationError when the worker is gone."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise SegmentationError(self.why_it_ended()) from error

    def events(self, timeout_s: float) -> list[dict[str, Any]]:
        """Messages that came within ``timeout_s``. Raises SegmentationError when the worker has ended."""
        self._socket.settimeout(timeout_s)
        try:
            received = self._socket.recv(1 << 16)
        except TimeoutError:
            return []
        except ConnectionError:
            received = b""
        if not received:
            raise SegmentationError(self.why_it_ended())
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def why_it_ended(self) -> str:
        """One line: how the worker ended, and the last line of its log."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(TERMINATE_GRACE_S)
        code = self.process.returncode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += " (out of memory?)"
        said = f": {line}" if (line := self.last_line()) else ""
        return f"the segmentation worker {how}{said}; it starts afresh with the next scan"

    def last_line(self) -> str:
        """The last line that is not empty of the worker's log, cut to 300 characters."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""

    def kill(self) -> None:
        """Terminate the whole process group, kill what is left after a second, remove the folder."""
        if self.alive:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TERMINATE_GRACE_S)
            self._signal(signal.SIGKILL)
            self.process.wait()
        self._socket.close()
        self._temporary.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
