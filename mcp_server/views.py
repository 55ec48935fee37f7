"""A scan as the checkpoint sees it: the model volume, organs on its patches, what it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.mcp_server import notices
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.scans import Scans
from tumorchain_agent.mcp_server.segmentations import Segmentations
from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.mcp_server.store import Entry, Store
from tumorchain_agent.records import Notice
from tumorchain_agent.tools import distribution
from tumorchain_agent.tools.preprocess import ModelVolume, preprocess
from tumorchain_agent.tools.zoom import Crop, Zoom, zoom_in


class Views:
    """By scan, label map and the checkpoint's preprocessing: checkpoints that prepare alike share them."""

    def __init__(
        self, store: Store, scans: Scans, segmentations: Segmentations, served: ServedCheckpoint
    ) -> None:
        self._store = store
        self._scans = scans
        self._segmentations = segmentations
        self._served = served

    def volume(self, scan_id: str, job: Job) -> ModelVolume:
        """The model volume (paper 10.1)."""
        config = self._served.preprocessing
        entry = Entry("model volume", (scan_id, self._served.preprocessing_key), _load_volume, ".npz")

        def make(target: Path, held: Job) -> None:
            held.progress("preprocessing the scan", 0.0)
            found = preprocess(self._scans.ct(scan_id, held), config)
            np.savez(target, volume=found.volume, affine=found.affine, scan_affine=found.scan_affine)

        return self._store.get_or_make(entry, make, job)[0]

    def coverage(self, scan_id: str, segmentation_id: str, job: Job) -> NDArray[np.float32]:
        """[57, 8, 16, 16]: how much of each patch each organ covers."""
        parts = (scan_id, segmentation_id, self._served.preprocessing_key)
        entry = Entry("coverage", parts, _load_array, ".npy")

        def make(target: Path, held: Job) -> None:
            from tumorchain_agent.tools.roi import organ_coverage

            volume = self.volume(scan_id, held.part(0.0, 0.5))
            label_map = self._segmentations.label_map(scan_id, segmentation_id, held)
            held.progress("mapping organs to patches", 0.5)
            np.save(target, organ_coverage(label_map.labels, volume.scan_affine, volume))

        return self._store.get_or_make(entry, make, job)[0]

    def crop(self, scan_id: str, segmentation_id: str, organ: str, zoom: Zoom, job: Job) -> Crop | None:
        """An organ at higher resolution; ``None`` when there is nothing of it. Not kept: its tokens are."""
        whole = self.volume(scan_id, job.part(0.0, 0.4))
        labels = self._segmentations.label_map(scan_id, segmentation_id, job).labels
        ct = self._scans.ct(scan_id, job)
        job.progress("cropping the organ", 0.5)
        return zoom_in(ct, labels, organ, whole, zoom, self._served.preprocessing)

    def notices(self, scan_id: str, job: Job) -> tuple[Notice, ...]:
        """What limits the worth of anything that the checkpoint says about this scan."""
        info = self._served.info
        always = (
            *((notices.DEMONSTRATION,) if info.is_demonstration else ()),
            *((notices.untrained(info.untrained),) if info.untrained else ()),
        )
        ranges = distribution.parse_ranges(info.training_distribution)
        if not ranges:
            return (*always, notices.UNKNOWN_DISTRIBUTION)
        found = distribution.departures(self._statistics(scan_id, job), ranges)
        return (*always, notices.out_of_distribution(found)) if found else always

    def _statistics(self, scan_id: str, job: Job) -> distribution.Statistics:
        config = self._served.preprocessing
        parts = (scan_id, self._served.preprocessing_key, distribution.VERSION)
        entry = Entry("statistics", parts, _load_statistics, ".json")

        def make(target: Path, held: Job) -> None:
            volume = self.volume(scan_id, held).volume
            found = distribution.volume_statistics(
                volume, window_hu=config.window_hu, level_hu=config.level_hu
            )
            target.write_text(json.dumps(found), encoding="utf-8")

        return self._store.get_or_make(entry, make, job)[0]


def _load_volume(path: Path) -> ModelVolume:
    with np.load(path) as arrays:
        return ModelVolume(arrays["volume"], arrays["affine"], arrays["scan_affine"])


def _load_array(path: Path) -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.load(path)
    return array


def _load_statistics(path: Path) -> distribution.Statistics:
    values: distribution.Statistics = json.loads(path.read_text(encoding="utf-8"))
    return values
