"""Held-out phantoms as the encoder sees them: rendered like a scanner's, then opened and preprocessed like a user's.

With them come their counterfactuals: the same anatomy, look and noise, without the tumor and what follows from it, or
with a tumor of another organ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
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
from tumorchain_agent.training.workers import worker_pool

Made = TypeVar("Made")
Variant = Literal["as drawn", "without tumor", "tumor moved"]
VARIANTS: Final[tuple[Variant, ...]] = ("as drawn", "without tumor", "tumor moved")
LARGE_MM: Final = 20.0
"""Tumors from this size on are compared with their counterfactuals."""
_TAG: Final = 20260508
_NUMBER: Final = {name: number for number, name in TABLE.items()}
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
    organs: tuple[str, ...]
    """Those that the scan truly holds."""


@dataclass(frozen=True, eq=False)
class Scanned:
    """A phantom as a scan with its true label map, not yet seen by a model."""

    truth: Truth
    variant: Variant
    ct: CT
    labels: NDArray[np.uint8]


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
    return [view(each, making.preprocessing) for each in scans_of(seed, making)]


def view(scanned: Scanned, preprocessing: Preprocessing, masks: LabelMap | None = None) -> View:
    """A scan as inference prepares it, with its true masks or with others."""
    model = preprocess(scanned.ct, preprocessing)
    true_masks = label_map(
        scanned.labels, scanned.ct, source="given", task="given", weights_id="", seconds=0.0
    )
    used = masks or true_masks
    return View(
        truth=scanned.truth,
        variant=scanned.variant,
        volume=model.volume,
        coverage=organ_coverage(used.labels, scanned.ct.affine, model),
        present=used.info.organs_present,
        organs=true_masks.info.organs_present,
    )


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
    make: Callable[[int, Making], Made], seeds: Sequence[int], making: Making, workers: int
) -> Iterator[Made]:
    """``make`` of each seed in order, a few ahead, in processes of their own; with 0 workers in this one."""
    if workers == 0 or len(seeds) < 2:
        yield from (make(seed, making) for seed in seeds)
        return
    pool = worker_pool(workers)
    try:
        rest = iter(seeds)
        waiting: deque[Future[Made]] = deque()
        while True:
            missing = workers + _AHEAD - len(waiting)
            waiting.extend(pool.submit(make, seed, making) for seed in islice(rest, missing))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def intensities(view: View) -> dict[str, float]:
    """Mean of each of the five organs in the model volume, weighted by coverage; of those that it holds.

    By it organs of different patients are matched.
    """
    patches = view.volume[0].reshape(8, 4, 16, 16, 16, 16).mean((1, 3, 5))
    shares = {organ: view.coverage[_NUMBER[organ]] for organ in ORGANS}
    return {o: float((patches * share).sum() / share.sum()) for o, share in shares.items() if share.any()}
