"""A phantom patient: anatomy, lesions, appearance and the truth about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Anatomy, Painted
from tumorchain_agent.training.phantom.body import sample_anatomy
from tumorchain_agent.training.phantom.categories import m_category, n_category, t_category
from tumorchain_agent.training.phantom.compression import push
from tumorchain_agent.training.phantom.disease import sample_disease
from tumorchain_agent.training.phantom.lesions import BENIGN, Lesion
from tumorchain_agent.training.phantom.mimics import sample_mimics
from tumorchain_agent.training.phantom.render import Appearance, Sampling, render
from tumorchain_agent.training.phantom.shapes import Array, Grid, Triple
from tumorchain_agent.training.phantom.stamps import Stamp, apply_labels, marked, stamp

ORGANS = ("liver", "pancreas", "stomach", "colorectum", "esophagus")
PLANNING_MM = (4.0, 4.0, 6.0)
"""Grid on which lesions look for room, whatever grid the patient is later laid onto."""


@dataclass(frozen=True)
class Truth:
    """What is true of a phantom. ``organ`` is ``None`` when there is no tumour."""

    seed: int
    phase: str
    organ: str | None
    substructure: str | None
    size_mm: float
    shape: str | None
    boundary: str | None
    density: str | None
    count: int
    nodes: int
    metastases: int
    t: str | None
    n: str | None
    m: str | None
    invaded: tuple[int, ...]
    abnormal_organs: tuple[str, ...]
    """Those of the five organs with a tumour or metastasis: the label of Cls."""
    z_range_mm: tuple[float, float]
    reach_mm: float = 0.0
    """Wall tumours: how far the deepest one grows beyond the outer wall, which decides T."""
    sites: tuple[str, ...] = ()
    """Of metastases: ``liver``, ``lung``, ``peritoneum``."""
    edge: bool = False
    """Under 2 cm and at its organ's surface (``EDGE_MM``): easily missed."""
    compresses: tuple[int, ...] = ()
    """TotalSegmentator ids of healthy organs that it pushes aside."""
    mimics: tuple[str, ...] = ()
    """Benign findings as ``organ:kind``, e.g. ``pancreas:pseudocyst``."""


@dataclass(frozen=True)
class Plan:
    """Everything drawn for a patient, independent of any grid."""

    seed: int
    anatomy: Anatomy
    look: Appearance
    lesions: tuple[Lesion, ...]
    z_range_mm: tuple[float, float]


@dataclass(frozen=True)
class Case:
    """A patient on a grid; arrays [x, y, z], RAS+."""

    plan: Plan
    grid: Grid
    hu: Array
    labels: NDArray[np.uint8]
    lesion_index: NDArray[np.uint8]
    """0 none, i + 1 for ``lesions[i]``."""
    lesions: tuple[Lesion, ...]
    """Those that found room, in the order they were laid in."""
    truth: Truth

    @property
    def lesion_mask(self) -> NDArray[np.uint8]:
        """0 none, else ``KINDS`` of the lesion there."""
        return np.array([0, *(KINDS[lesion.kind] for lesion in self.lesions)], np.uint8)[self.lesion_index]


KINDS = {"tumor": 1, "metastasis": 2, "node": 3, "cyst": 4, "pseudocyst": 5, "pancreatitis": 6}
"""Kind of a lesion → its number in ``lesions.nii.gz``."""


def _z_range(rng: np.random.Generator) -> tuple[float, float]:
    """Field of view in canonical mm: pelvic brim or L5 up to the lung bases."""
    low = rng.uniform(20, 66) if rng.random() < 0.15 else rng.uniform(-40, 12)
    return float(low), float(rng.uniform(218, 262))


def sample_plan(seed: int, *, tumor_share: float = 0.6, organ: str | None = None) -> Plan:
    """Draw a patient. ``organ`` forces the primary; otherwise a tumour occurs with ``tumor_share``."""
    rng = np.random.default_rng([20260305, seed])
    anatomy = sample_anatomy(rng)
    look = Appearance.sample(rng)
    z_range = _z_range(rng)
    scaled = (z_range[0] * anatomy.scale[2], z_range[1] * anatomy.scale[2])
    found = sample_mimics(rng, anatomy)
    if organ is not None or rng.random() < tumor_share:
        primary = organ or str(rng.choice(ORGANS))
        grid = _grid_over(anatomy, scaled, PLANNING_MM, 0.0)
        found += sample_disease(rng, anatomy, primary, anatomy.paint(grid), grid)
    return Plan(seed, anatomy, look, tuple(found), scaled)


def body_grid(plan: Plan, spacing: tuple[float, float, float], margin_mm: float = 12.0) -> Grid:
    """The scanner's field of view around a patient."""
    return _grid_over(plan.anatomy, plan.z_range_mm, spacing, margin_mm)


def _grid_over(
    anatomy: Anatomy, z_range: tuple[float, float], spacing: tuple[float, float, float], margin_mm: float
) -> Grid:
    trunk, scale = anatomy.trunk, anatomy.scale
    reach = [trunk.radii[k] * scale[k] + 14.0 + margin_mm for k in (0, 1)]
    z0, z1 = z_range
    low = (-reach[0], trunk.centre[1] * scale[1] - reach[1], z0 + spacing[2] / 2)
    size = (2 * reach[0], 2 * reach[1], z1 - z0)
    nx, ny, nz = (int(np.ceil(size[k] / spacing[k])) for k in range(3))
    return Grid((nx, ny, nz), spacing, low)


def realise(plan: Plan, grid: Grid, painted: Painted | None = None, sampling: Sampling | None = None) -> Case:
    """Lay a plan onto a grid, changing ``painted``; what finds no room is left out of image and truth alike."""
    painted = painted or plan.anatomy.paint(grid)
    marks, index = lay(plan.lesions, painted, grid)
    hu = render(painted, marks, plan.look, grid, sampling)
    return Case(plan, grid, hu, painted.labels, index, tuple(m.lesion for m in marks), truth_of(plan, marks))


def lay(lesions: Sequence[Lesion], painted: Painted, grid: Grid) -> tuple[list[Stamp], NDArray[np.uint8]]:
    """Lay lesions into labels and tissue, in place: those that found room, and [x, y, z] the number of each + 1.

    Neighbours are pushed aside first. Nodes and metastases are left out where their tumour is.
    """
    index = np.zeros(grid.shape, np.uint8)
    kept: list[Stamp] = []
    ill: set[str] = set()
    for lesion, pushed in _pushed(lesions, painted, grid):
        if lesion.kind in ("node", "metastasis") and lesion.primary not in ill:
            continue
        mark = stamp(lesion, painted, grid)
        if mark is None or not mark.roomy:
            continue
        mark.compressed = pushed
        apply_labels(mark, painted)
        kept.append(mark)
        index[mark.window][marked(mark)] = len(kept)
        if lesion.kind == "tumor":
            ill.add(lesion.organ)
    return _unhidden(kept, index)


def _unhidden(kept: list[Stamp], index: NDArray[np.uint8]) -> tuple[list[Stamp], NDArray[np.uint8]]:
    """Without benign findings that later lesions cover for the most part."""
    left = np.bincount(index.ravel(), minlength=len(kept) + 1)[1:]
    shown = [
        mark.lesion.kind not in BENIGN or 2 * count >= marked(mark).sum()
        for mark, count in zip(kept, left, strict=True)
    ]
    if all(shown):
        return kept, index
    numbers = np.cumsum([0, *shown]) * [0, *shown]
    return [mark for mark, seen in zip(kept, shown, strict=True) if seen], numbers.astype(np.uint8)[index]


def _pushed(lesions: Sequence[Lesion], painted: Painted, grid: Grid) -> list[tuple[Lesion, tuple[int, ...]]]:
    """Lesions with what they pushed aside; one that nothing gives way to is no compressing one."""
    out = []
    for lesion in lesions:
        pushed = push(lesion, painted, grid) if lesion.compressing else ()
        out.append((lesion if pushed else replace(lesion, compressing=False), pushed))
    return out


def truth_of(plan: Plan, kept: Sequence[Stamp]) -> Truth:
    """What is true of a plan whose ``kept`` lesions found room.

    Of several tumours the largest one's organ counts, and it is described; T is that of the organ's deepest growth.
    """
    tumors = [m for m in kept if m.lesion.kind == "tumor"]
    benign = [m.lesion for m in kept if m.lesion.kind in BENIGN]
    healthy = Truth(
        seed=plan.seed,
        phase=plan.look.phase,
        organ=None,
        substructure=None,
        size_mm=0.0,
        shape=None,
        boundary=None,
        density=None,
        count=0,
        nodes=0,
        metastases=0,
        t=None,
        n=None,
        m=None,
        invaded=(),
        abnormal_organs=(),
        z_range_mm=plan.z_range_mm,
        mimics=tuple(sorted({f"{lesion.organ}:{lesion.kind}" for lesion in benign})),
    )
    if not tumors:
        return healthy
    main = max(tumors, key=lambda m: m.lesion.size_mm)
    lesion, organ = main.lesion, main.lesion.organ
    same = [m for m in tumors if m.lesion.organ == organ]
    reach = max(m.lesion.reach_mm for m in same)
    invaded = tuple(sorted({number for m in same for number in m.invaded}))
    spread = [m.lesion for m in kept if m.lesion.primary == organ]
    nodes = sum(each.kind == "node" for each in spread)
    metastases = [each.organ for each in spread if each.kind == "metastasis"]
    sites = tuple(sorted(set(metastases)))
    ill = {m.lesion.organ for m in kept if m.lesion.kind in ("tumor", "metastasis")}
    return replace(
        healthy,
        organ=organ,
        substructure=lesion.substructure,
        size_mm=lesion.size_mm,
        shape=lesion.shape,
        boundary=lesion.boundary,
        density=lesion.density,
        count=len(same),
        nodes=nodes,
        metastases=len(metastases),
        t=t_category(organ, lesion.size_mm, len(same), reach, invaded),
        n=n_category(organ, nodes),
        m=m_category(organ, sites),
        invaded=invaded,
        abnormal_organs=tuple(sorted(ill & set(ORGANS))),
        reach_mm=reach,
        sites=sites,
        edge=lesion.at_edge,
        compresses=main.compressed,
    )


def generate(
    seed: int,
    spacing: Triple = (1.5, 1.5, 5.0),
    *,
    tumor_share: float = 0.6,
    organ: str | None = None,
) -> Case:
    """A phantom patient on a scanner-like grid. Same seed, same voxels."""
    plan = sample_plan(seed, tumor_share=tumor_share, organ=organ)
    return realise(plan, body_grid(plan, spacing))


def organ_voxels(case: Case) -> dict[str, int]:
    counts = np.bincount(case.labels.ravel(), minlength=256)
    return {organ: int(counts[ORGAN_IDS[organ]]) for organ in ORGANS}
