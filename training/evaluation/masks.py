"""Facts of a scan for measured answers: organs through the workbench, lesions and liver segments from mask files.

In the folder of masks, for an image ID: ``ID.nii.gz`` (TotalSegmentator v2 label map), ``ID_lesions.nii.gz`` (kinds as
in a phantom's ``lesions.nii.gz``), ``ID_liver_segments.nii.gz`` (1..8); or AbdomenAtlas's
``ID/segmentations/NAME.nii.gz`` with NAME like ``liver_tumor``, ``pancreatic_cyst``, ``liver_segment_4``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.tools.labels import LabelMap, load_label_map
from tumorchain_agent.tools.lesion_facts import KINDS, Lesion, lesions_of
from tumorchain_agent.tools.organs import ORGANS
from tumorchain_agent.tools.quantity_facts import Facts
from tumorchain_agent.tools.scan import CT, open_ct

_KIDNEYS: Final = ("kidney_left", "kidney_right")
_SEATS: Final[dict[str, tuple[str, ...]]] = {
    "liver": ("liver",), "hepatic": ("liver",), "pancreas": ("pancreas",), "pancreatic": ("pancreas",),
    "kidney": _KIDNEYS, "renal": _KIDNEYS, "colon": ("colorectum",), "stomach": ("stomach",), "gastric": ("stomach",),
    "esophagus": ("esophagus",), "spleen": ("spleen",),
}  # fmt: skip
_NAME: Final = re.compile(rf"({'|'.join(_SEATS)})_(lesion|tumor|cyst|pdac|pnet|metastasis)s?")
_SEGMENT: Final = re.compile(r"liver_segment_([1-8])")


def find_label_map(folder: Path | None, image: str) -> Path | None:
    """``ID.nii.gz``, where the folder has it. InputError when the folder itself is missing."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(
            f"the folder of masks {folder} does not exist; correct TUMORCHAIN_MASKS_DIR or --masks-dir"
        )
    path = folder / f"{image}.nii.gz"
    return path if path.is_file() else None


def gather(bench: Workbench, scan: Path, image: str, folder: Path | None, given: Path | None) -> Facts:
    """Everything that can be measured of a scan; segmented when no label map of it is given."""
    info = bench.open_scan(str(scan))
    segmented = bench.segment_organs(info.scan_id, masks=str(given) if given else None)
    measured = bench.measure_organs(info.scan_id, segmentation_id=segmented.segmentation_id)
    organs = {each.organ: each for each in measured.measurements}
    unknown = set(segmented.info.organs_unknown)
    known = {name: each for name, each in organs.items() if each.present or name not in unknown}
    if folder is None or given is None or not _has_more(folder, image):
        return Facts(known, measured.uris)
    ct = open_ct(scan)
    labels = load_label_map(given, ct)
    lesions, seats = _lesions(folder, image, ct, labels)
    segments, source = _segments(folder, image, ct)
    return Facts(
        measurements=known,
        uris=measured.uris,
        lesions=tuple(lesions),
        lesion_organs=frozenset(seats),
        lesion_kinds={organ: frozenset(kinds) for organ, kinds in seats.items()},
        segments=segments,
        segments_source=source,
        ct=ct,
        labels=labels.labels,
    )


class KnownFacts:
    """Facts of the scan asked about last: questions come scan by scan."""

    def __init__(
        self, bench: Workbench, folder: Path | None, given: Mapping[str, Path] | None = None
    ) -> None:
        """``given``: label maps that the questions' own file names, by image."""
        self.bench, self.folder, self._given = bench, folder, given or {}
        self._last: tuple[tuple[Path, str], Facts] | None = None

    def of(self, scan: Path, image: str) -> Facts:
        if self._last is None or self._last[0] != (scan, image):
            given = self.label_map(image)
            self._last = ((scan, image), gather(self.bench, scan, image, self.folder, given))
        return self._last[1]

    def files(self, image: str) -> list[Path]:
        """The label map and what is told beside it; none when the scan is to be segmented."""
        given = self.label_map(image)
        if given is None or self.folder is None:
            return [] if given is None else [given]
        beside = [*sorted(self.folder.glob(f"{image}_*.nii.gz")), self.folder / image]
        return [given, *(path for path in beside if path.exists())]

    def label_map(self, image: str) -> Path | None:
        """The scan's label map, ``None`` when it is to be segmented."""
        return find_label_map(self.folder, image) or self._given.get(image)


def _has_more(folder: Path, image: str) -> bool:
    return any(True for _ in folder.glob(f"{image}_*.nii.gz")) or (folder / image).is_dir()


def _lesions(folder: Path, image: str, ct: CT, labels: LabelMap) -> tuple[list[Lesion], dict[str, set[str]]]:
    """Lesions, and organ → kinds that the masks would show there."""
    found: list[Lesion] = []
    seats: dict[str, set[str]] = {}
    whole = folder / f"{image}_lesions.nii.gz"
    if whole.is_file():
        mask = load_label_map(whole, ct).labels
        for value in sorted(set(np.unique(mask).tolist()) & set(KINDS)):
            found += lesions_of(
                mask == value, ct, labels.labels, kind=KINDS[value], source=f"{whole.name}:{KINDS[value]}"
            )
        return found, {organ: set(KINDS.values()) for organ in ORGANS.values()}
    for path, organs, kind in _single(folder, image):
        organ = organs[0] if len(organs) == 1 else None
        mask = load_label_map(path, ct).labels
        found += lesions_of(mask, ct, labels.labels, kind=kind, source=f"{image}/{path.name}", organ=organ)
        for each in organs:
            seats.setdefault(each, set()).add(kind)
    return found, seats


def _single(folder: Path, image: str) -> Iterator[tuple[Path, tuple[str, ...], str]]:
    """Mask files of one organ and kind each; a general one only where no more particular one is there."""
    paths = sorted([*(folder / image).glob("segmentations/*.nii.gz"), *(folder / image).glob("*.nii.gz")])
    named = [(path, match) for path in paths if (match := _NAME.fullmatch(path.name.removesuffix(".nii.gz")))]
    kinds: dict[tuple[str, ...], set[str]] = {}
    for _, match in named:
        kinds.setdefault(_SEATS[match[1]], set()).add(match[2])
    for path, match in named:
        organs, kind = _SEATS[match[1]], match[2]
        barred = {"lesion": kinds[organs] - {"lesion"}, "tumor": kinds[organs] & {"pdac", "pnet"}}
        if not barred.get(kind):
            yield path, organs, kind


def _segments(folder: Path, image: str, ct: CT) -> tuple[NDArray[np.uint8] | None, str]:
    whole = folder / f"{image}_liver_segments.nii.gz"
    if whole.is_file():
        return load_label_map(whole, ct).labels, whole.name
    result: NDArray[np.uint8] | None = None
    for path in sorted((folder / image).glob("**/liver_segment_*.nii.gz")):
        match = _SEGMENT.fullmatch(path.name.removesuffix(".nii.gz"))
        if match:
            result = np.zeros(ct.shape, np.uint8) if result is None else result
            result[load_label_map(path, ct).labels != 0] = int(match[1])
    return result, f"{image}/liver_segment_*.nii.gz"
