"""The process that runs TotalSegmentator: keeps the networks loaded, one scan after the other.

Started by ``segment_process.WorkerProcess`` in a process group of its own, with a socket for JSON lines as
its only channel: stdout and stderr go to a log file. It ends itself, and its folder, when the socket closes.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

OFFLINE_CONFIG = {
    "totalseg_id": "tumorchain_agent",
    "send_usage_stats": False,
    "prediction_counter": 0,
    "statistics_disclaimer_shown": True,
}

_END_GROUP = 'kill -s KILL -- "-$0"; rm -rf -- "$1" || rm -rf -- "$1"'


@dataclass(frozen=True)
class Job:
    """What the parent asks for; the arrays are .npy files in the worker's folder."""

    job: int
    image: str
    """HU [x, y, z], RAS+, isotropic at the weights' spacing."""
    result: str
    """uint8 label ids on the same grid."""
    models: list[int]
    """TotalSegmentator's numbers of the networks to run."""


class Channel:
    """JSON lines over the socket. A thread reads, so that the parent's end is noticed during a scan too."""

    def __init__(self, file_descriptor: int, folder: Path) -> None:
        self.socket = socket.socket(fileno=file_descriptor)
        self.folder = folder
        self.jobs: queue.Queue[Job] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, event: str, **values: Any) -> None:
        try:
            self.socket.sendall(json.dumps({"event": event, **values}).encode() + b"\n")
        except ConnectionError:
            self._end()

    def _read(self) -> None:
        with self.socket.makefile("r", encoding="utf-8") as lines:
            try:
                for line in lines:
                    self.jobs.put(Job(**json.loads(line)))
            finally:
                self._end()

    def _end(self) -> NoReturn:
        """End this process group, then remove the folder, into which nothing can be written by then."""
        if os.getpgrp() == os.getpid():
            arguments = ["sh", "-c", _END_GROUP, str(os.getpgrp()), str(self.folder)]
            os.posix_spawn("/bin/sh", arguments, os.environ, setsid=True)
            threading.Event().wait()
        os._exit(1)


@dataclass(frozen=True)
class Options:
    """The command line, one JSON object."""

    socket: int
    folder: str
    nano: bool
    mode: str
    spacing_mm: float
    device: str
    threads: int


def _no_download(task_id: object) -> None:
    """In the place of TotalSegmentator's downloader: the weights were found before the worker started.

    Raises FileNotFoundError when they have gone since.
    """
    root = Path(os.environ["TOTALSEG_WEIGHTS_PATH"])
    if not root.is_dir():
        raise FileNotFoundError(f"TotalSegmentator weights folder {root} has gone (model {task_id})")


def prepare_totalsegmentator(options: Options) -> Any:
    """Import TotalSegmentator with the warm predictor in place; returns its Python API function."""
    home = Path(os.environ["TOTALSEG_HOME_DIR"])
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps(OFFLINE_CONFIG))
    from totalsegmentator import nnunet, python_api

    from tumorchain_agent.tools.warm_predictor import WarmPredictor

    WarmPredictor.nano, WarmPredictor.threads = options.nano, options.threads
    nnunet.nnUNetPredictor = WarmPredictor
    python_api.download_pretrained_weights = _no_download
    return python_api.totalsegmentator


def totalsegmentator_device(device: str) -> str:
    """``Settings.device`` → TotalSegmentator's ``device``: ``cpu``, ``gpu``, ``gpu:X`` or ``mps``."""
    import torch

    if device == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if index >= (count := torch.cuda.device_count()):
            raise SystemExit(f"no device {device!r} here ({count} CUDA devices), set TUMORCHAIN_DEVICE=cpu")
        return device.replace("cuda", "gpu")
    return device


class Reporter:
    """Windows of several networks → one fraction."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.finished = channel, 0

    def begin(self, job: Job) -> None:
        self.job, self.models, self.finished = job.job, len(job.models), 0

    def __call__(self, done: int, total: int) -> None:
        fraction = min((self.finished + done / total) / self.models, 1.0)
        self.channel.send("progress", job=self.job, phase="predicting", fraction=fraction)
        if done == total:
            self.finished += 1


def _choose_models(mode: str, models: list[int]) -> None:
    """Narrow a task of several networks; ``roi_subset`` would crop the scan by one more network first."""
    from totalsegmentator.map_tasks_config import TASK_CONFIGS

    config = TASK_CONFIGS["total"]["sub_modes"][mode]
    if isinstance(config["task_id"], list):
        config["task_id"] = models


def run_job(job: Job, options: Options, totalsegmentator: Any, device: str) -> None:
    """One scan through TotalSegmentator's Python API, which finds it at its own spacing already."""
    import nibabel as nib

    _choose_models(options.mode, job.models)
    image = np.load(job.image)
    spacing = options.spacing_mm
    affine = np.diag([spacing, spacing, spacing, 1.0])
    scan = nib.Nifti1Image(image, affine)  # type: ignore[no-untyped-call]
    labels = totalsegmentator(
        scan,
        None,
        ml=True,
        fast=options.mode == "fast",
        fastest=options.mode == "fastest",
        task="total",
        nr_thr_resamp=1,
        nr_thr_saving=1,
        quiet=True,
        device=device,
        skip_saving=True,
    )
    np.save(job.result, np.asanyarray(labels.dataobj).astype(np.uint8))


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback, then the cause in one line, which is what the parent reads."""
    traceback.print_exception(kind, error, trace)
    print(f"{kind.__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Serve jobs until the parent is gone; ``arguments[0]`` holds the Options as JSON."""
    sys.excepthook = _last_words
    options = Options(**json.loads(arguments[0]))
    channel = Channel(options.socket, Path(options.folder))
    channel.send("progress", job=0, phase="loading TotalSegmentator", fraction=0.0)
    totalsegmentator = prepare_totalsegmentator(options)
    device = totalsegmentator_device(options.device)
    from tumorchain_agent.tools.warm_predictor import WarmPredictor

    reporter = Reporter(channel)
    WarmPredictor.report = staticmethod(reporter)
    channel.send("ready")
    while True:
        job = channel.jobs.get()
        sys.stdout.flush()
        os.ftruncate(sys.stdout.fileno(), 0)
        started = time.monotonic()
        reporter.begin(job)
        run_job(job, options, totalsegmentator, device)
        channel.send("done", job=job.job, seconds=round(time.monotonic() - started, 3))
