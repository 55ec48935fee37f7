"""Organ segmentation by TotalSegmentator in one warm worker process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import Cancelled, SegmentationError
from tumorchain_agent.records import Notice
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.islands import without_islands
from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.segment_process import WorkerProcess
from tumorchain_agent.tools.segment_weights import NANO_WEIGHTS, Weights, find_weights

if TYPE_CHECKING:
    from tumorchain_agent.tools.labels import LabelMap
    from tumorchain_agent.tools.scan import CT

POLL_S = 0.1
SLAB_VOXELS = 32 << 20
Progress = Callable[[str, float], None]
Poll = Callable[[], bool]

NANO_NOTICE = Notice(
    code="nano_segmentation",
    message="Organs were segmented by the nano weights, a demonstration network trained on phantoms only; "
    "on a real scan its masks are unreliable. Install TotalSegmentator's weights (totalseg_download_weights) "
    "or pass a label map.",
)


class Segmenter:
    """Owns one worker process, started with the first scan and kept warm.

    One scan at a time, from any thread. A worker that fails, is cancelled or runs out of time is replaced at
    the next scan.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        timeout_s: float = 3600.0,
        start_timeout_s: float = 300.0,
        nano_folder: Path = NANO_WEIGHTS,
    ) -> None:
        """``timeout_s`` bounds one scan, ``start_timeout_s`` the start of the worker."""
        self.settings = settings
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self.nano_folder = nano_folder
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._worker: WorkerProcess | None = None
        self._worker_key: tuple[Path, str] | None = None
        self._ready = False
        self._jobs = 0
        self._image: tuple[WorkerProcess, str, Path] | None = None

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def weights(self) -> Weights:
        """The weights that the next scan will use. Raises SegmentationError when there are none."""
        return find_weights(self.settings, self.nano_folder)

    def weights_id(self) -> str:
        """Hash of the task and its weights, for cache keys. Raises SegmentationError when there are none."""
        return self.weights().weights_id

    @property
    def worker_pid(self) -> int | None:
        """Process id of the running worker."""
        worker = self._worker
        return worker.process.pid if worker is not None and worker.alive else None

    def close(self) -> None:
        """End the worker; a scan that it is at is cancelled."""
        self._closing.set()
        with self._turn:
            self._discard()
            self._closing.clear()

    def warm_up(self) -> None:
        """Start the worker without waiting for it, so that it loads while something else is done."""
        with self._turn:
            self._started(self.weights())

    def segment(
        self,
        ct: CT,
        progress: Progress | None = None,
        cancelled: Poll | None = None,
        weights: Weights | None = None,
    ) -> LabelMap:
        """Segment the 117 structures; the label map is on the CT's RAS+ grid.

        ``weights`` may be a choice among the networks of ``self.weights()``, which then are the ones that run.
        ``progress`` is called with a phase and the fraction of the whole that is done, which never falls.
        ``cancelled`` is polled ten times a second; when it is true the worker is killed within two seconds.
        Raises Cancelled, or SegmentationError naming the cause.
        """
        from tumorchain_agent.tools.labels import label_map

        started = time.monotonic()
        cancelled = cancelled or (lambda: False)
        report = _rising(progress)
        with self._own_turn(cancelled):
            weights = weights or self.weights()
            self._started(weights)
            report("resampling", 0.0)
            low = self._predict(ct, weights, report, cancelled)
        if weights.source == "nano":
            low = without_islands(low)
        report("finishing", 0.95)
        labels = _to_grid(low, ct.shape, cancelled)
        result = label_map(
            labels,
            ct,
            source=weights.source,
            task=weights.task,
            weights_id=weights.weights_id,
            seconds=round(time.monotonic() - started, 3),
            organs_unknown=weights.organs_unknown,
            organs_deferred=weights.organs_deferred,
            notices=(NANO_NOTICE,) if weights.source == "nano" else (),
        )
        report("finished", 1.0)
        return result

    @contextmanager
    def _own_turn(self, cancelled: Poll) -> Iterator[None]:
        while not self._turn.acquire(timeout=POLL_S):
            if cancelled():
                raise Cancelled("segmentation was cancelled before it began")
        try:
            yield
        finally:
            self._turn.release()

    def _predict(self, ct: CT, weights: Weights, report: Progress, cancelled: Poll) -> NDArray[np.uint8]:
        finished = False
        try:
            worker = self._started(weights)
            self._jobs += 1
            image = self._resampled(worker, ct, weights)
            shape = np.load(image, mmap_mode="r").shape
            result = worker.folder / f"result-{self._jobs}.npy"
            self._wait_ready(worker, report, cancelled)
            files = {"image": str(image), "result": str(result)}
            worker.send({"job": self._jobs, "models": weights.model_ids, **files})
            self._wait_done(worker, report, cancelled)
            labels: NDArray[np.uint8] = np.load(result)
            result.unlink()
            _check_result(labels, shape)
            finished = True
            return labels
        finally:
            if not finished:
                self._discard()

    def _resampled(self, worker: WorkerProcess, ct: CT, weights: Weights) -> Path:
        """The scan at the networks' spacing, in a file; kept for its other networks until another scan comes."""
        if self._image is not None and self._image[:2] == (worker, ct.scan_id):
            return self._image[2]
        if self._image is not None:
            self._image[2].unlink(missing_ok=True)
        file = worker.folder / f"image-{self._jobs}.npy"
        np.save(file, to_spacing(ct.hu, ct.spacing_mm, weights.spacing_mm))
        self._image = worker, ct.scan_id, file
        return file

    def _started(self, weights: Weights) -> WorkerProcess:
        key = (weights.folder, weights.mode)
        if self._worker is not None and (not self._worker.alive or self._worker_key != key):
            self._discard()
        if self._worker is None:
            self._worker = WorkerProcess(weights, self.settings.device)
            self._worker_key = key
            self._ready = False
        return self._worker

    def _discard(self) -> None:
        worker, self._worker, self._image = self._worker, None, None
        if worker is not None:
            worker.kill()

    def _wait_ready(self, worker: WorkerProcess, report: Progress, cancelled: Poll) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        report("loading TotalSegmentator", 0.02)
        while not self._ready:
            self._check(deadline, f"did not start within {self.start_timeout_s:g} s", cancelled)
            self._ready = any(event["event"] == "ready" for event in worker.events(POLL_S))

    def _wait_done(self, worker: WorkerProcess, report: Progress, cancelled: Poll) -> None:
        deadline = time.monotonic() + self.timeout_s
        report("predicting", 0.1)
        while True:
            self._check(deadline, f"did not finish within {self.timeout_s:g} s", cancelled)
            for event in worker.events(POLL_S):
                if event.get("job") != self._jobs:
                    continue
                if event["event"] == "done":
                    return
                report(event["phase"], 0.1 + 0.8 * event["fraction"])

    def _check(self, deadline: float, problem: str, cancelled: Poll) -> None:
        if cancelled() or self._closing.is_set():
            raise Cancelled("segmentation was cancelled; nothing was kept")
        if time.monotonic() > deadline:
            raise SegmentationError(
                f"the segmentation worker {problem} and was stopped; use a machine with a GPU, "
                "TUMORCHAIN_SEGMENTATION=nano, or pass a label map"
            )


def _rising(progress: Progress | None) -> Progress:
    highest = 0.0

    def report(phase: str, fraction: float) -> None:
        nonlocal highest
        highest = max(highest, min(fraction, 1.0))
        if progress is not None:
            progress(phase, highest)

    return report


def _check_result(labels: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    largest = int(labels.max(initial=0))
    if labels.shape != shape or labels.dtype != np.uint8 or largest > max(STRUCTURES):
        raise SegmentationError(
            f"TotalSegmentator returned {labels.dtype} {labels.shape} with ids up to {largest} for a grid of "
            f"{shape}; install the totalsegmentator version that this package asks for"
        )


def _slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        yield slice(start, min(start + step, shape[2]))


def to_spacing(
    hu: NDArray[np.float32], spacing_mm: tuple[float, ...] | NDArray[np.float64], target_mm: float
) -> NDArray[np.int32] | NDArray[np.float32]:
    """The CT at the network's isotropic spacing, as ``totalsegmentator.resampling.change_spacing`` makes it.

    Linear, corner voxels kept, HU cut to integers. Done here, from float32, because TotalSegmentator's own
    way holds several float64 copies of the whole scan.
    """
    from scipy.ndimage import zoom

    spacing = np.asarray(spacing_mm, np.float32).astype(np.float64)
    if np.array_equal(spacing, [target_mm] * 3):
        return hu
    factors = spacing / target_mm
    factors = np.maximum(factors, 1.0 / np.asarray(hu.shape))
    resampled: NDArray[np.float64] = zoom(hu, factors, output=np.float64, order=1, mode="nearest")
    return resampled.astype(np.int32)


def to_grid(labels: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Label ids back on the CT's grid: nearest neighbour, corner voxels kept; undoes ``to_spacing``."""
    return _to_grid(labels, shape, lambda: False)


def _to_grid(labels: NDArray[np.uint8], shape: tuple[int, int, int], cancelled: Poll) -> NDArray[np.uint8]:
    if labels.shape == tuple(shape):
        return labels
    x, y, z = (_nearest(old, new) for old, new in zip(labels.shape, shape, strict=True))
    out = np.empty(shape, np.uint8, order="F")
    for slab in _slabs(shape):
        if cancelled():
            raise Cancelled("segmentation was cancelled; nothing was kept")
        out[:, :, slab] = labels[:, :, z[slab]][:, y][x]
    return out


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    step = (old - 1) / (new - 1) if new > 1 else 0.0
    index: NDArray[np.intp] = np.minimum(np.floor(np.arange(new) * step + 0.5).astype(np.intp), old - 1)
    return index
