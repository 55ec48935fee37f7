"""Label maps of a scan: from TotalSegmentator or from the user, each kept on disk under its own id."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import LabelMapError, SegmentationError
from tumorchain_agent.mcp_server.guard import Guard
from tumorchain_agent.mcp_server.index import Index, file_signature
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.results import SegmentationChoice
from tumorchain_agent.mcp_server.scans import Memory, Scans
from tumorchain_agent.mcp_server.store import Entry, Store
from tumorchain_agent.records import SegmentationInfo
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.segment_parts import organs_looked_for, together

if TYPE_CHECKING:
    from tumorchain_agent.tools.labels import LabelMap
    from tumorchain_agent.tools.segment import Segmenter
    from tumorchain_agent.tools.segment_weights import Weights

T = TypeVar("T")

LABELS = "labels.nii.gz"
INFO = "info.json"
LABEL_MEMORY_BYTES = 400_000_000


class Segmentations:
    """``segmentation_id`` is the record's ``weights_id``: what made the label map, or a given map's hash."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        index: Index,
        scans: Scans,
        segmenter: Segmenter,
        guard: Guard,
        memory_bytes: int = LABEL_MEMORY_BYTES,
    ) -> None:
        """``memory_bytes`` bounds the label maps that are kept in memory, where the default doesn't."""
        self._settings = settings
        self._guard = guard
        self._store = store
        self._index = index
        self._scans = scans
        self._segmenter = segmenter
        self._memory: Memory[LabelMap] = Memory(
            min(memory_bytes, LABEL_MEMORY_BYTES), lambda label_map: int(label_map.labels.nbytes)
        )

    def make(
        self, scan_id: str, masks: str | None, job: Job, organs: Collection[str] | None = None
    ) -> SegmentationInfo:
        """Segment the scan, or take over the user's label map; from then on it is the scan's current one.

        Of weights that are several networks those run that find ``organs``, and that have not run yet.
        Raises LabelMapError, SegmentationError, Cancelled.
        """
        if masks is not None:
            info = self._given(scan_id, masks, job)
        else:
            weights = self._segmenter.weights()
            info = self._predicted(scan_id, weights.needed_for(organs) if organs else weights, job)
        if self.current_id(scan_id) != info.weights_id:
            self._index.write("segmentations", scan_id, {"segmentation_id": info.weights_id})
        return info

    def current_id(self, scan_id: str) -> str | None:
        """The label map that ``make`` returned last for this scan, also in an earlier process."""
        fact = self._index.read("segmentations", scan_id)
        return None if fact is None else str(fact["segmentation_id"])

    def resolve(
        self, scan_id: str, segmentation_id: str | None, job: Job, organs: Collection[str] | None = None
    ) -> SegmentationInfo:
        """The named label map, else the scan's current one with ``organs`` (default all) in it, else a new one."""
        wanted = segmentation_id or self.current_id(scan_id)
        if wanted is None:
            return self.make(scan_id, None, job, organs)
        info = self.info(scan_id, wanted, job)
        missing = info.organs_deferred if organs is None else set(organs).intersection(info.organs_deferred)
        if segmentation_id is not None or not missing:
            return info
        return self.make(scan_id, None, job, [*(organs_looked_for(info) or ()), *missing])

    def info(self, scan_id: str, segmentation_id: str, job: Job) -> SegmentationInfo:
        """Raises LabelMapError for an id that isn't known for this scan and can't be made again."""
        found = self._store.get(_entry(scan_id, segmentation_id, _read_info))
        if found is not None:
            return found
        in_use = self._weights_in_use()
        for weights in in_use.subsets() if in_use is not None else ():
            if weights.weights_id == segmentation_id:
                return self._predicted(scan_id, weights, job)
        raise LabelMapError(
            f"segmentation {segmentation_id[:60]!r} of scan {scan_id} is not known here (or no longer in "
            "the cache); call segment_organs again"
        )

    def label_map(self, scan_id: str, segmentation_id: str, job: Job) -> LabelMap:
        """The voxels, from memory or disk. Raises like ``info``."""
        found = self._kept(scan_id, segmentation_id)
        if found is None:
            self.info(scan_id, segmentation_id, job)
            found = self._read(scan_id, segmentation_id, _read_label_map)
        return found

    def _kept(self, scan_id: str, segmentation_id: str) -> LabelMap | None:
        """The voxels, if they are in memory or on disk."""
        key = _memory_key(scan_id, segmentation_id)
        found = self._memory.get(key) or self._store.get(_entry(scan_id, segmentation_id, _read_label_map))
        if found is not None:
            self._memory.put(key, found)
        return found

    def file(self, scan_id: str, segmentation_id: str, job: Job) -> bytes:
        """The label map as ``.nii.gz`` on the CT's RAS+ grid."""
        self.info(scan_id, segmentation_id, job)
        return self._read(scan_id, segmentation_id, lambda folder: (folder / LABELS).read_bytes())

    def forget(self) -> None:
        """Free the memory."""
        self._memory.clear()

    def _read(self, scan_id: str, segmentation_id: str, load: Callable[[Path], T]) -> T:
        found = self._store.get(_entry(scan_id, segmentation_id, load))
        if found is None:
            raise LabelMapError(
                f"segmentation {segmentation_id} is no longer in the cache (TUMORCHAIN_CACHE_MAX_GB is "
                f"{self._settings.cache_max_gb:g}); call segment_organs again"
            )
        return found

    def choices(self) -> tuple[SegmentationChoice, ...]:
        """How a label map can be had on this machine; marked is what ``make`` takes without ``masks``."""
        used = self._weights_in_use()
        found = [self._choice("official", used), self._choice("nano", used)]
        detail = "pass masks=<.nii.gz with TotalSegmentator v2 ids on the scan's grid> to segment_organs"
        return (*found, SegmentationChoice(source="given", available=True, detail=detail))

    def organs_unknown(self) -> tuple[str, ...]:
        """Organs that the weights in use were never trained to find."""
        weights = self._weights_in_use()
        return () if weights is None else weights.organs_unknown

    def _choice(self, source: Literal["official", "nano"], used: Weights | None) -> SegmentationChoice:
        from tumorchain_agent.tools.segment_weights import find_weights

        settings = self._settings.model_copy(update={"segmentation": source})
        try:
            weights = find_weights(settings, self._segmenter.nano_folder)
        except SegmentationError as error:
            return SegmentationChoice(source=source, available=False, detail=str(error))
        return SegmentationChoice(
            source=source,
            available=True,
            would_be_used=used is not None and used.source == source,
            detail=f"TotalSegmentator's task {weights.task} at {weights.spacing_mm:g} mm",
        )

    def _weights_in_use(self) -> Weights | None:
        try:
            return self._segmenter.weights()
        except SegmentationError:
            return None

    def _predicted(self, scan_id: str, weights: Weights, job: Job) -> SegmentationInfo:
        """These networks' label map: made, or put together with what some of them have found already."""
        entry = _entry(scan_id, weights.weights_id, _read_info)

        def make(target: Path, held: Job) -> None:
            ct = self._scans.ct(scan_id, held)
            begun = self._largest_part(scan_id, weights)
            missing = weights.without(begun[0]) if begun else weights
            found = self._segmenter.segment(ct, held.progress, held.cancelled, missing)
            self._write(target, together(ct, begun[1], found, weights) if begun else found, held)

        info, from_cache = self._store.get_or_make(entry, make, job, work="segment")
        return info.model_copy(update={"from_cache": from_cache})

    def _largest_part(self, scan_id: str, weights: Weights) -> tuple[Weights, LabelMap] | None:
        """Some of the networks, as many as can be, whose label map is in the cache."""
        for part in weights.subsets()[1:]:
            if (found := self._kept(scan_id, part.weights_id)) is not None:
                return part, found
        return None

    def _given(self, scan_id: str, masks: str, job: Job) -> SegmentationInfo:
        from tumorchain_agent.tools.labels import load_label_map

        path = self._guard.read(masks, LabelMapError)
        signature = file_signature(path, scan_id)
        known = self._index.read("masks", signature) if signature else None
        if known and (info := self._store.get(_entry(scan_id, str(known["segmentation_id"]), _read_info))):
            return info
        job.progress("reading the label map", 0.0)
        label_map = load_label_map(path, self._scans.ct(scan_id, job))
        entry = _entry(scan_id, label_map.info.weights_id, _read_info)

        def make(target: Path, held: Job) -> None:
            self._write(target, label_map, held)

        taken, from_cache = self._store.get_or_make(entry, make, job, work="take over masks")
        if signature:
            self._index.write("masks", signature, {"segmentation_id": taken.weights_id})
        return taken.model_copy(update={"from_cache": from_cache})

    def _write(self, target: Path, label_map: LabelMap, job: Job) -> None:
        job.progress("storing the label map", 0.99)
        target.mkdir()
        affine = np.array(self._scans.info(label_map.info.scan_id).affine)
        write_mask(target / LABELS, label_map.labels, affine)
        (target / INFO).write_text(label_map.info.model_dump_json(), encoding="utf-8")
        self._memory.put(_memory_key(label_map.info.scan_id, label_map.info.weights_id), label_map)


def write_mask(path: Path, labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    """NIfTI, uint8, millimetres, RAS+; the same labels give the same bytes.

    A qform can't hold the shear of a gantry tilt: then there is none, so that no reader takes a wrong one.
    """
    import nibabel

    nifti: Any = nibabel.Nifti1Image
    image = nifti(labels, affine, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="unknown" if is_sheared(affine) else "scanner")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def is_sheared(affine: NDArray[np.float64]) -> bool:
    """Whether a grid's axes don't stand at right angles, by more than a header's rounding."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)


def _memory_key(scan_id: str, segmentation_id: str) -> str:
    return f"{scan_id}/{segmentation_id}"


def _entry(scan_id: str, segmentation_id: str, load: Callable[[Path], T]) -> Entry[T]:
    return Entry("label map", (scan_id, segmentation_id), load, version="")


def _read_info(folder: Path) -> SegmentationInfo:
    info = SegmentationInfo.model_validate_json((folder / INFO).read_text(encoding="utf-8"))
    return info.model_copy(update={"from_cache": True})


def _read_label_map(folder: Path) -> LabelMap:
    import nibabel

    from tumorchain_agent.tools.labels import LabelMap

    image: Any = nibabel.load(folder / LABELS)
    return LabelMap(np.asarray(image.dataobj, np.uint8), _read_info(folder))
