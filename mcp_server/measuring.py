"""Measurements, pictures and masks of organs: numbers and images that no model has a hand in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server import uris
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.scans import Memory, Scans
from tumorchain_agent.mcp_server.segmentations import Segmentations, write_mask
from tumorchain_agent.mcp_server.store import Entry, Store
from tumorchain_agent.records import Measurement, Picture
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.organs import organ_ids

if TYPE_CHECKING:
    from tumorchain_agent.tools.picture import PictureInfo, Plane

KEPT_SCANS: Final = 32
"""Measurements kept in memory, of so many label maps: reading them takes longer than all else."""
PLANES: Final[tuple[Plane, ...]] = ("axial", "coronal", "sagittal")
_WINDOW = re.compile(r"w(\d{1,5}(?:\.\d+)?)l(-?\d{1,5}(?:\.\d+)?)")


@dataclass(frozen=True)
class Window:
    """What a picture shows of the HU scale."""

    width_hu: float
    level_hu: float

    @classmethod
    def parse(cls, text: str) -> Window:
        """From its form in a URI, ``w400l40``. Raises InputError."""
        match = _WINDOW.fullmatch(text)
        if match is None or float(match[1]) <= 0:
            raise InputError(f"{text[:40]!r} is not a window; write e.g. w400l40 (width 400, level 40 HU)")
        return cls(float(match[1]), float(match[2]))

    def __str__(self) -> str:
        return f"w{self.width_hu:g}l{self.level_hu:g}"


class Measuring:
    """Everything about a scan and its label map."""

    def __init__(self, settings: Settings, store: Store, scans: Scans, segmentations: Segmentations) -> None:
        self._store = store
        self._scans = scans
        self._segmentations = segmentations
        self._window = Window(settings.window_hu, settings.level_hu)
        self._known: Memory[dict[str, Measurement]] = Memory(KEPT_SCANS, lambda _: 1)

    def measurements(
        self, scan_id: str, segmentation_id: str, job: Job
    ) -> tuple[dict[str, Measurement], bool]:
        """All organs, then all structures, by name; and whether they were known."""
        key = f"{scan_id}/{segmentation_id}"
        known = self._known.get(key)
        if known is not None:
            return known, True
        entry = Entry("measurements", (scan_id, segmentation_id), _load_measurements, ".json")

        def make(target: Path, held: Job) -> None:
            from tumorchain_agent.tools.measure import measure_all

            label_map = self._segmentations.label_map(scan_id, segmentation_id, held)
            ct = self._scans.ct(scan_id, held)
            held.progress("measuring", 0.3)
            found = measure_all(ct, label_map)
            target.write_text(
                json.dumps([m.model_dump(mode="json") for m in found.values()]), encoding="utf-8"
            )

        measured, from_cache = self._store.get_or_make(entry, make, job, work="measure")
        self._known.put(key, measured)
        return measured, from_cache

    def pictures(
        self, scan_id: str, segmentation_id: str, organ: str, planes: Sequence[Plane], job: Job
    ) -> tuple[tuple[Picture, ...], bool]:
        """The organ's slices in the given planes, none for an absent organ; and whether they were known."""
        metas, from_cache = self._pictures(scan_id, segmentation_id, organ, self._window, job)
        ids = {"scan_id": scan_id, "segmentation_id": segmentation_id, "organ": organ}
        records = [
            metas[plane].record(uris.fill(uris.PICTURE, **ids, plane=plane, window=str(self._window)))
            for plane in planes
            if plane in metas
        ]
        return tuple(records), from_cache

    def png(
        self, scan_id: str, segmentation_id: str, organ: str, plane: str, window: Window, job: Job
    ) -> bytes | None:
        """One picture, ``None`` when the organ is absent or there is no such plane."""
        metas, _ = self._pictures(scan_id, segmentation_id, organ, window, job)
        if plane not in metas:
            return None
        return self._store.get(
            _picture_entry(
                scan_id, segmentation_id, organ, window, lambda folder: (folder / f"{plane}.png").read_bytes()
            )
        )

    def drawn(self, scan_id: str, segmentation_id: str, organ: str, job: Job) -> list[tuple[Picture, bytes]]:
        """All pictures of an organ with their PNG."""
        found, _ = self.pictures(scan_id, segmentation_id, organ, PLANES, job)
        pngs = [self.png(scan_id, segmentation_id, organ, each.plane, self._window, job) for each in found]
        return [(each, png) for each, png in zip(found, pngs, strict=True) if png is not None]

    def mask(self, scan_id: str, segmentation_id: str, organ: str, job: Job) -> bytes:
        """The organ's binary mask as ``.nii.gz`` on the CT's RAS+ grid."""
        entry = Entry("mask", (scan_id, segmentation_id, organ), Path.read_bytes, ".nii.gz")

        def make(target: Path, held: Job) -> None:
            label_map = self._segmentations.label_map(scan_id, segmentation_id, held)
            chosen = np.zeros(256, np.uint8)
            chosen[list(organ_ids(organ))] = 1
            write_mask(target, chosen[label_map.labels], np.array(self._scans.info(scan_id).affine))

        return self._store.get_or_make(entry, make, job)[0]

    def _pictures(
        self, scan_id: str, segmentation_id: str, organ: str, window: Window, job: Job
    ) -> tuple[dict[str, PictureInfo], bool]:
        entry = _picture_entry(scan_id, segmentation_id, organ, window, _load_metas)

        def make(target: Path, held: Job) -> None:
            from tumorchain_agent.tools.picture import organ_pictures

            label_map = self._segmentations.label_map(scan_id, segmentation_id, held)
            ct = self._scans.ct(scan_id, held)
            held.progress("drawing", 0.3)
            found = organ_pictures(ct, label_map, organ, window_hu=window.width_hu, level_hu=window.level_hu)
            target.mkdir()
            for info, png in found:
                (target / f"{info.plane}.png").write_bytes(png)
            (target / "pictures.json").write_text(
                json.dumps([vars(info) for info, _ in found]), encoding="utf-8"
            )

        return self._store.get_or_make(entry, make, job, work="draw")


def _picture_entry(scan_id: str, segmentation_id: str, organ: str, window: Window, load: Any) -> Entry[Any]:
    return Entry("pictures", (scan_id, segmentation_id, organ, str(window)), load)


def _load_metas(folder: Path) -> dict[str, PictureInfo]:
    from tumorchain_agent.tools.picture import PictureInfo

    metas = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
    return {meta["plane"]: PictureInfo(**meta) for meta in metas}


def _load_measurements(path: Path) -> dict[str, Measurement]:
    records = [Measurement.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8"))]
    return {record.organ: record for record in records}
