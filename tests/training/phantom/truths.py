"""Truths for tests: drawn field by field, or sampled from the generator's own lesions without any image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from tumorchain_agent.training.phantom.anatomy import Painted
from tumorchain_agent.training.phantom.categories import NODE_CUTS, m_category, n_category, t_category
from tumorchain_agent.training.phantom.disease import sample_disease
from tumorchain_agent.training.phantom.lesions import BOUNDARIES, DENSITIES, SECTIONS, SHAPES
from tumorchain_agent.training.phantom.mimics import sample_mimics
from tumorchain_agent.training.phantom.patient import (
    ORGANS,
    Plan,
    Truth,
    body_grid,
    lay,
    sample_plan,
    truth_of,
)
from tumorchain_agent.training.phantom.render import PHASES
from tumorchain_agent.training.phantom.shapes import Grid
from tumorchain_agent.training.phantom.stamps import Stamp
from tumorchain_agent.training.phantom.wording import MIMICS

PLANNING = (4.0, 4.0, 6.0)


@cache
def painted_patient(seed: int) -> tuple[Plan, Grid, Painted]:
    """An anatomy on a coarse grid; copy ``Painted`` before lesions are laid."""
    plan = sample_plan(seed, tumor_share=0.0)
    grid = body_grid(plan, PLANNING, 0.0)
    return plan, grid, plan.anatomy.paint(grid)


def laid(rng: np.random.Generator, organ: str, anatomies: int = 12) -> tuple[Truth, list[Stamp]]:
    """A disease of an organ in one of a few anatomies: its truth and what of it found room."""
    plan, grid, painted = painted_patient(70 + int(rng.integers(anatomies)))
    fresh = Painted(painted.labels.copy(), painted.tissue.copy())
    lesions = [*sample_mimics(rng, plan.anatomy), *sample_disease(rng, plan.anatomy, organ, fresh, grid)]
    marks, _ = lay(lesions, fresh, grid)
    return truth_of(plan, marks), marks


def sampled_truths(seed: int, count: int) -> Iterator[Truth]:
    """Truths of tumours of all organs in turn; without an image."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        yield laid(rng, ORGANS[k % len(ORGANS)])[0]


def random_truth(rng: np.random.Generator, organ: str | None) -> Truth:
    """A truth that says anything the generator can say, for tests of wording."""

    def one(choices: tuple[str, ...]) -> str:
        return str(rng.choice(choices))

    mimics = tuple(name for name in sorted(MIMICS) if rng.random() < 0.2)
    healthy = Truth(
        seed=int(rng.integers(10**6)), phase=one(PHASES), organ=None, substructure=None, size_mm=0.0,
        shape=None, boundary=None, density=None, count=0, nodes=0, metastases=0, t=None, n=None, m=None,
        invaded=(), abnormal_organs=(), z_range_mm=(0.0, 240.0), mimics=mimics,
    )  # fmt: skip
    if organ is None:
        return healthy
    wall = organ not in ("liver", "pancreas")
    reach = float(rng.choice((0.5, 4.0, 9.0))) if wall else 0.0
    invaded = (int(rng.choice((1, 18, 52))),) if reach >= 8 and rng.random() < 0.4 else ()
    pushed = (
        () if invaded else tuple(sorted(rng.choice((1, 3, 18, 19), int(rng.integers(3)), False).tolist()))
    )
    nodes = 0 if rng.random() < 0.4 else int(rng.integers(1, NODE_CUTS[organ][0][0] + 3))
    sites = tuple(s for s in ("liver", "lung", "peritoneum") if s != organ and rng.random() < 0.25)
    count = int(rng.integers(1, 4)) if organ == "liver" else 1
    size = float(rng.integers(10, 66))
    return Truth(
        **{
            **vars(healthy),
            "organ": organ,
            "substructure": one(tuple(name for name, _, _ in SECTIONS[organ])),
            "size_mm": size,
            "shape": one(SHAPES),
            "boundary": one(BOUNDARIES),
            "density": one(DENSITIES),
            "count": count,
            "nodes": nodes,
            "metastases": len(sites) * int(rng.integers(1, 5)),
            "t": t_category(organ, size, count, reach, invaded),
            "n": n_category(organ, nodes),
            "m": m_category(organ, sites),
            "invaded": invaded,
            "abnormal_organs": tuple(sorted({organ, *sites} & set(ORGANS))),
            "reach_mm": reach,
            "sites": sites,
            "compresses": pushed,
        }
    )
