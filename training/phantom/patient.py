"""A phantom patient: anatomy, lesions, appearance and the truth about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom import lesions as L
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Anatomy, Painted
from tumorchain_agent.training.phantom.body import sample_anatomy
from tumorchain_agent.training.phantom.render import Appearance, Sampling, render
from tumorchain_agent.training.phantom.shapes import Array, Grid, Triple

ORGANS = ("liver", "pancreas", "stomach", "colorectum", "esophagus")
PLANNING_MM = (4.0, 4.0, 6.0)
"""Grid on which lesions look for room, whatever grid the patient is later laid onto."""
NODE_CUTS = {
    "liver": ((1, "N1"),),
    "pancreas": ((4, "N2"), (1, "N1")),
    "stomach": ((7, "N3a"), (3, "N2"), (1, "N1")),
    "colorectum": ((7, "N2b"), (4, "N2a"), (2, "N1b"), (1, "N1a")),
    "esophagus": ((7, "N3"), (3, "N2"), (1, "N1")),
}
"""Smallest number of nodes of each N category (AJCC 8)."""


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
    """Organs with a tumour or metastasis: the label of Cls."""
    z_range_mm: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """Everything drawn for a patient, independent of any grid."""

    seed: int
    anatomy: Anatomy
    look: Appearance
    lesions: tuple[L.Lesion, ...]
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
    lesions: tuple[L.Lesion, ...]
    """Those that found room, in the order they were laid in."""
    truth: Truth

    @property
    def lesion_mask(self) -> NDArray[np.uint8]:
        """0 none, 1 tumour, 2 metastasis, 3 node, 4 cyst."""
        return np.array([0, *(KINDS[lesion.kind] for lesion in self.lesions)], np.uint8)[self.lesion_index]


KINDS = {"tumor": 1, "metastasis": 2, "node": 3, "cyst": 4}


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
    found: list[L.Lesion] = []
    for _ in range(int(rng.choice(3, p=(0.6, 0.25, 0.15)))):
        found.append(L.sample_cyst(rng, anatomy))
    if organ is not None or rng.random() < tumor_share:
        primary = organ or str(rng.choice(ORGANS))
        grid = _grid_over(anatomy, scaled, PLANNING_MM, 0.0)
        found += sample_disease(rng, anatomy, primary, anatomy.paint(grid), grid)
    return Plan(seed, anatomy, look, tuple(found), scaled)


def _roomy(
    draw: Callable[[], L.Lesion], painted: Painted, grid: Grid, tries: int = 6, wanted: float = 0.62
) -> L.Lesion:
    """The first of a few draws that finds enough room where it lies, else the one that finds most."""
    best, most = draw(), -1.0
    for k in range(tries):
        lesion = best if k == 0 else draw()
        mark = L.stamp(lesion, painted, grid)
        share = mark.share if mark else 0.0
        if share > most:
            best, most = lesion, share
        if most >= wanted:
            break
    return best


def sample_disease(
    rng: np.random.Generator, anatomy: Anatomy, organ: str, painted: Painted, grid: Grid
) -> list[L.Lesion]:
    """A primary tumour with, sometimes, satellites, nodes and liver metastases; ``painted`` shows where room is."""
    size = L.sample_size(rng, 48.0 if organ == "esophagus" else 65.0)

    def place(where: str, size_mm: float, kind: str = "tumor") -> L.Lesion:
        return _roomy(lambda: L.sample_tumor(rng, anatomy, where, size_mm, kind), painted, grid)

    primary = place(organ, size)
    out = [primary]
    if organ == "liver" and rng.random() < 0.35:
        out += [place(organ, float(rng.uniform(10, min(size, 45)))) for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.45:
        count = int(rng.integers(1, 9))
        out += [_roomy(lambda: L.sample_node(rng, primary), painted, grid, 4, 0.7) for _ in range(count)]
    if organ != "liver" and rng.random() < 0.2:
        out += [
            place("liver", float(rng.uniform(10, 32)), "metastasis") for _ in range(int(rng.integers(1, 5)))
        ]
    return out


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
    """Lay a plan onto a grid: lesions that find too little room are left out of both image and truth."""
    painted = painted or plan.anatomy.paint(grid)
    index = np.zeros(grid.shape, np.uint8)
    kept: list[L.Stamp] = []
    primary_kept = True
    for lesion in plan.lesions:
        if not primary_kept and lesion.kind in ("node", "metastasis"):
            continue
        mark = L.stamp(lesion, painted, grid)
        wanted = 0.5 if lesion.kind == "tumor" else 0.6
        if mark is None or mark.share < wanted:
            primary_kept = primary_kept and not (lesion.kind == "tumor" and lesion.organ != "liver")
            continue
        L.apply_labels(mark, painted)
        kept.append(mark)
        index[mark.window][(mark.ratio < 1) & (mark.alpha > 0.5)] = len(kept)
    hu = render(painted, kept, plan.look, grid, sampling)
    return Case(plan, grid, hu, painted.labels, index, tuple(m.lesion for m in kept), _truth(plan, kept))


def _truth(plan: Plan, kept: list[L.Stamp]) -> Truth:
    tumors = [m for m in kept if m.lesion.kind == "tumor"]
    metastases = [m for m in kept if m.lesion.kind == "metastasis"]
    nodes = [m for m in kept if m.lesion.kind == "node"]
    blank = Truth(
        plan.seed,
        plan.look.phase,
        None,
        None,
        0.0,
        None,
        None,
        None,
        0,
        0,
        0,
        None,
        None,
        None,
        (),
        (),
        plan.z_range_mm,
    )
    if not tumors:
        return replace(blank, abnormal_organs=("liver",) if metastases else ())
    main = max(tumors, key=lambda m: m.lesion.size_mm)
    lesion, organ = main.lesion, main.lesion.organ
    n = next((name for least, name in NODE_CUTS[organ] if len(nodes) >= least), "N0")
    m = ("M1a" if organ == "colorectum" else "M1") if metastases else "M0"
    abnormal = {organ} | ({"liver"} if metastases else set())
    return replace(
        blank,
        organ=organ,
        substructure=lesion.substructure,
        size_mm=lesion.size_mm,
        shape=lesion.shape,
        boundary=lesion.boundary,
        density=lesion.density,
        count=len(tumors),
        nodes=len(nodes),
        metastases=len(metastases),
        t=t_category(organ, lesion, len(tumors), main.invaded),
        n=n,
        m=m,
        invaded=main.invaded,
        abnormal_organs=tuple(sorted(abnormal)),
    )


def t_category(organ: str, lesion: L.Lesion, count: int, invaded: tuple[int, ...]) -> str:
    """T by AJCC 8: size and count for liver and pancreas, depth of growth for the hollow organs."""
    cm = lesion.size_mm / 10
    if organ == "liver":
        if count > 1:
            return "T3" if cm > 5 else "T2"
        return "T1a" if cm <= 2 else "T1b"
    if organ == "pancreas":
        return "T1c" if cm <= 2 else "T2" if cm <= 4 else "T3"
    if invaded:
        return "T4b"
    if lesion.reach_mm >= 8:
        return "T4a"
    return "T3" if lesion.reach_mm >= 2 else "T2"


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
