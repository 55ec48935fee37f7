"""Held-out phantoms as the encoder sees them: rendered like a scanner's, then opened and preprocessed like a user's.

With them come their counterfactuals: the same anatomy, look and noise, without the tumor and what follows from it, or
with a tumor of another organ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.tools.labels import LabelMap, label_map
from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.preprocess import Preprocessing, preprocess
from tumorchain_agent.tools.roi import organ_coverage
from tumorchain_agent.tools.scan import CT, ct_from_array
from tumorchain_agent.training.phantom.anatomy import Painted
from tumorchain_agent.training.phantom.disease import sample_disease
from tumorchain_agent.training.phantom.export import SPACING
from tumorchain_agent.training.phantom.lesions import BENIGN, Lesion
from tumorchain_agent.training.phantom.patient import (
    ORGANS,
    Case,
    Truth,
    body_grid,
    realise,
    sample_plan,
)
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.phantom.shapes import Triple
from tumorchain_agent.training.workers import calm_worker, cores

Made = TypeVar("Made")
Variant = Literal["as drawn", "without tumor", "tumor moved"]
VARIANTS: Final[tuple[Variant, ...]] = ("as drawn", "without tumor", "tumor moved")
LARGE_MM: Final = 20.0
"""Tumors from this size on are compared with their counterfactuals."""
_TAG: Final = 20260508
_TRIES: Final = 8
"""Diseases drawn until one of the other organ, large enough, finds room."""
_AHEAD: Final = 3
"""Patients made before they are asked for."""


@dataclass(frozen=True, eq=False)
class View:
    """What the model is given of a phantom."""

    truth: Truth
    variant: Variant
    volume: NDArray[np.float32]
    """[1, 32, 256, 256] in [0, 1]."""
    coverage: NDArray[np.float32]
    """[57, 8, 16, 16], by the masks in use."""
    present: tuple[str, ...]
    """Table 10 organs with a voxel in them."""


@dataclass(frozen=True, eq=False)
class Scanned:
    """A phantom as a scan with its true label map, not yet seen by a model."""

    truth: Truth
    variant: Variant
    ct: CT
    labels: NDArray[np.uint8]

    def true_masks(self) -> LabelMap:
        return label_map(self.labels, self.ct, source="given", task="given", weights_id="", seconds=0.0)


@dataclass(frozen=True)
class Making:
    """How patients are made."""

    preprocessing: Preprocessing
    spacing: Triple = SPACING
    counterfactuals: bool = False


def scans_of(seed: int, making: Making) -> list[Scanned]:
    """The patient of a seed, and its counterfactuals where they are wanted and its tumor is large enough."""
    plan = sample_plan(seed)
    grid = body_grid(plan, making.spacing)
    healthy = plan.anatomy.paint(grid)
    case = realise(plan, grid, _copy(healthy))
    found = [_scanned(case, "as drawn")]
    if making.counterfactuals and case.truth.organ and case.truth.size_mm >= LARGE_MM:
        found += [_scanned(other, variant) for variant, other in counterfactuals(case, healthy)]
    return found


def views_of(seed: int, making: Making) -> list[View]:
    """``scans_of`` a seed with their true masks."""
    return [view(each, each.true_masks(), making.preprocessing) for each in scans_of(seed, making)]


def view(scanned: Scanned, masks: LabelMap, preprocessing: Preprocessing) -> View:
    """A scan as inference prepares it, with the organs of ``masks``."""
    model = preprocess(scanned.ct, preprocessing)
    coverage = organ_coverage(masks.labels, scanned.ct.affine, model)
    return View(scanned.truth, scanned.variant, model.volume, coverage, masks.info.organs_present)


def _scanned(case: Case, variant: Variant) -> Scanned:
    """A case as it would be read from its file."""
    ct = ct_from_array(to_stored(case.hu), case.grid.affine, file_name=f"{case.truth.seed}.nii.gz")
    return Scanned(case.truth, variant, ct, case.labels)


def counterfactuals(case: Case, healthy: Painted) -> Iterator[tuple[Variant, Case]]:
    """The patient without tumor, and with one of another organ; same grid, anatomy, look and noise.

    ``healthy`` is the anatomy on the case's grid. There is no moved one where no draw of a few finds room for 2 cm.
    """
    benign = tuple(lesion for lesion in case.lesions if lesion.kind in BENIGN)
    yield "without tumor", _with(case, healthy, benign)
    rng = np.random.default_rng([_TAG, case.plan.seed])
    organ = str(rng.choice([each for each in ORGANS if each not in case.truth.abnormal_organs]))
    for _ in range(_TRIES):
        disease = sample_disease(rng, case.plan.anatomy, organ, healthy, case.grid)
        moved = _with(case, healthy, (*benign, *disease))
        if moved.truth.organ == organ and moved.truth.size_mm >= LARGE_MM:
            yield "tumor moved", moved
            return


def _with(case: Case, healthy: Painted, lesions: tuple[Lesion, ...]) -> Case:
    return realise(replace(case.plan, lesions=lesions), case.grid, _copy(healthy))


def _copy(painted: Painted) -> Painted:
    return replace(painted, labels=painted.labels.copy(), tissue=painted.tissue.copy())


def ahead(
    make: Callable[[int, Making], Made], seeds: Sequence[int], making: Making, workers: int | None = None
) -> Iterator[Made]:
    """``make`` of each seed in order, a few ahead, in processes of their own; with 0 workers in this one."""
    count = max(1, cores() - 1) if workers is None else workers
    if count == 0 or len(seeds) < 2:
        yield from (make(seed, making) for seed in seeds)
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=calm_worker)
    try:
        rest = iter(seeds)
        waiting: deque[Future[Made]] = deque()
        while True:
            missing = count + _AHEAD - len(waiting)
            waiting.extend(pool.submit(make, seed, making) for seed in islice(rest, missing))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def intensity(view: View, organ: str) -> float:
    """Mean of an organ in the model volume, weighted by coverage: by it organs of different patients are matched."""
    number = next(key for key, name in TABLE.items() if name == organ)
    share = view.coverage[number]
    patches = view.volume[0].reshape(8, 4, 16, 16, 16, 16).mean((1, 3, 5))
    total = float(share.sum())
    return float((patches * share).sum() / total) if total > 0 else 0.0
