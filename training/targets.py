"""What the vision stage learns from: a phantom in model space with everything its truth says per patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.phantom import lesions as L
from tumorchain_agent.training.phantom.categories import BEYOND_MM, THROUGH_MM
from tumorchain_agent.training.phantom.crops import PhantomCrop, crop_case
from tumorchain_agent.training.phantom.patient import KINDS, Case
from tumorchain_agent.training.phantom.shapes import Array
from tumorchain_agent.training.phantom.volume import Pool, cell_shares, merged_labels, to_model_axes, windowed
from tumorchain_agent.training.workers import calm_worker

CLS_ORGANS = (
    "liver", "pancreas", "stomach", "colorectum", "esophagus", "spleen",
    "kidney_right", "kidney_left", "gallbladder", "duodenum", "small_bowel", "heart",
)  # fmt: skip
"""Organs whose normal/abnormal label trains Cls: the five that bear tumours and normal neighbours."""
_IDS = {name: number for number, name in TABLE.items()}
_SICK = ("tumor", "metastasis")
_FINE_CHANNEL = np.array([0, 1, 1, 3, 2, 2, 2], np.uint8)
"""Lesion kind → channel of the fine cells: tumour and metastasis together, then benign mimic, then node."""
SECTION_NAMES = tuple(f"{organ}:{name}" for organ, parts in L.SECTIONS.items() for name, _, _ in parts)
ATTRIBUTES = {
    "kind": ("tumor", "metastasis"),
    "organ": tuple(L.SECTIONS),
    "section": SECTION_NAMES,
    "density": L.DENSITIES,
    "shape": L.SHAPES,
    "boundary": L.BOUNDARIES,
    "size": ("<2 cm", "2-4 cm", ">4 cm"),
    "reach": ("within the wall", "beyond the wall", "through the serosa"),
}
"""Per-patch properties of the lesion that a patch holds, each a small classification."""


def size_bin(size_mm: float) -> int:
    return int(size_mm >= 20) + int(size_mm > 40)


def lesion_classes(lesion: L.Lesion) -> dict[str, int]:
    """Class indices of a tumour or metastasis in the order of ``ATTRIBUTES``; −1 where it doesn't apply."""
    wall = lesion.organ in L.SECTIONS and lesion.organ not in L.SOLID
    named = {
        "kind": lesion.kind,
        "organ": lesion.organ,
        "section": f"{lesion.organ}:{lesion.substructure}",
        "density": lesion.density,
        "shape": lesion.shape,
        "boundary": lesion.boundary,
    }
    classes = {key: _class(ATTRIBUTES[key], value) for key, value in named.items()}
    return {
        **classes,
        "size": size_bin(lesion.size_mm),
        "reach": int(lesion.reach_mm >= BEYOND_MM) + int(lesion.reach_mm >= THROUGH_MM) if wall else -1,
    }


def _class(names: tuple[str, ...], value: str) -> int:
    return names.index(value) if value in names else -1


def abnormal_organs(case: Case) -> set[str]:
    """Those of the five organs that hold a tumour or metastasis."""
    ill = {lesion.organ for lesion in case.lesions if lesion.kind in _SICK}
    return ill & set(L.SECTIONS)


def case_targets(case: Case) -> dict[str, torch.Tensor]:
    """One sample of the vision stage; masks are shares of cells, classes −1 where nothing applies.

    ``volume`` [1, 32, 128, 128]; ``fine`` [3, 16, 32, 32] (tumour, benign mimic, node); ``patch`` [8, 16, 16];
    ``attributes`` [len(ATTRIBUTES), 8, 16, 16]; ``coverage`` [12, 8, 16, 16]; ``abnormal`` [12].
    """
    volume = windowed(to_model_axes(case.hu))
    coverage = cell_shares(merged_labels(case), len(TABLE) + 1)
    sick = abnormal_organs(case)
    known = {name: int(name in sick) for name in CLS_ORGANS}
    return _targets(volume, to_model_axes(case.lesion_index), case.lesions, coverage, known)


def crop_targets(crop: PhantomCrop) -> dict[str, torch.Tensor]:
    """The same of an organ's crop; an organ that is seen in part only has the label of what is seen of it."""
    return _targets(crop.volume, crop.lesion_index, crop.case.lesions, crop.coverage, abnormal_in_crop(crop))


def abnormal_in_crop(crop: PhantomCrop) -> dict[str, int]:
    """Organ → 1 where the middle of one of its tumours or metastases is in the crop, 0 where nothing of any is.

    An organ is left out when a tumour of it is only grazed: what is seen of it is neither. The crop's own organ is
    there as a whole, and so is its label.
    """
    seen = np.bincount(crop.lesion_index.ravel(), minlength=256)
    low, high = crop.box
    found = dict.fromkeys(CLS_ORGANS, 0)
    grazed = set()
    for number, lesion in enumerate(crop.case.lesions, 1):
        if lesion.kind not in _SICK or lesion.organ not in found or not seen[number]:
            continue
        middle = np.asarray(lesion.centre_mm)
        if ((middle >= low) & (middle <= high)).all():
            found[lesion.organ] = 1
        else:
            grazed.add(lesion.organ)
    return {organ: sick for organ, sick in found.items() if sick or organ not in grazed}


def _targets(
    volume: Array,
    index: NDArray[np.uint8],
    found: Sequence[L.Lesion],
    shares: Array,
    known: dict[str, int],
) -> dict[str, torch.Tensor]:
    """From [d, h, w] arrays: the volume, each voxel's lesion (0 none, i + 1 for ``found[i]``), organs' coverage."""
    lesions = cell_shares(index, len(found) + 1)
    kinds = _FINE_CHANNEL[[0, *(KINDS[lesion.kind] for lesion in found)]][index]
    fine = cell_shares(kinds, 4, (16, 32, 32))[1:]
    attributes = np.full((len(ATTRIBUTES), 8, 16, 16), -1, np.int8)
    best = np.full((8, 16, 16), 0.06, np.float32)
    tumor = np.zeros((8, 16, 16), np.float32)
    for i, lesion in enumerate(found):
        if lesion.kind not in _SICK:
            continue
        here = lesions[i + 1] > best
        best = np.maximum(best, lesions[i + 1])
        tumor += lesions[i + 1]
        classes = lesion_classes(lesion)
        for k, name in enumerate(ATTRIBUTES):
            attributes[k][here] = classes[name]
    coverage = shares[[_IDS[name] for name in CLS_ORGANS]]
    present = coverage.sum(axis=(1, 2, 3)) > 0.05
    abnormal = np.where(present, [known.get(name, -1) for name in CLS_ORGANS], -1)
    return {
        "volume": torch.from_numpy(volume[None]),
        "fine": torch.from_numpy(fine),
        "patch": torch.from_numpy(tumor),
        "attributes": torch.from_numpy(attributes).long(),
        "coverage": torch.from_numpy(coverage),
        "abnormal": torch.from_numpy(abnormal.astype(np.int64)),
    }


class PhantomStream(IterableDataset[dict[str, torch.Tensor]]):
    """An endless stream of patients over pooled anatomies; seeded per worker and start step.

    With ``replay`` > 1 each patient is rendered once and shown about ``replay`` times, spread over a memory of
    ``MEMORY`` patients. A share of ``zoom_share`` of them is not seen whole but as the crop of an organ.
    """

    MEMORY = 400

    def __init__(
        self,
        pool: Pool,
        seed: int,
        start: int = 0,
        diseases: tuple[float, ...] = (0.25, 0.4, 0.25, 0.1),
        replay: int = 1,
        zoom_share: float = 0.0,
        zoom: Zoom | None = None,
    ) -> None:
        self.pool, self.seed, self.start, self.diseases, self.replay = pool, seed, start, diseases, replay
        self.zoom_share, self.zoom = zoom_share, zoom or Zoom()

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = get_worker_info()
        worker = info.id if info else 0
        if info:
            calm_worker()
        rng = np.random.default_rng([self.seed, worker, self.start])
        memory: list[dict[str, torch.Tensor]] = []
        while True:
            fresh = self._sample(rng)
            yield fresh
            if self.replay > 1:
                yield from (memory[int(rng.integers(len(memory)))] for _ in range(self.replay - 1) if memory)
                if len(memory) < self.MEMORY:
                    memory.append(fresh)
                else:
                    memory[int(rng.integers(self.MEMORY))] = fresh

    def _sample(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """A patient's targets, whole or of an organ; whole where the scan doesn't hold the organ."""
        case = self.pool.draw(rng, diseases=self.diseases)
        if self.zoom_share and rng.random() < self.zoom_share:
            crop = crop_case(case, str(rng.choice(self.zoom.organs)), self.zoom, rng)
            if crop is not None:
                return crop_targets(crop)
        return case_targets(case)


def stack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}


def auc(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks; NaN when one class is missing."""
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    for value in np.unique(scores):
        same = scores == value
        ranks[same] = ranks[same].mean()
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))
