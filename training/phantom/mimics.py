"""What looks like a tumour and isn't: cysts, pancreatic pseudocysts, pancreatitis.

The paper's first error type (13.2) is a false positive from such findings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tumorchain_agent.training.phantom.anatomy import Anatomy
from tumorchain_agent.training.phantom.lesions import (
    SECTIONS,
    Lesion,
    frame_rotation,
    perpendicular,
    sample_tumor,
    tube_frame,
)
from tumorchain_agent.training.phantom.shapes import triple

CYSTS = (0.6, 0.25, 0.15)
"""Odds of no, one and two simple cysts in a patient."""
PSEUDOCYST_SHARE, PANCREATITIS_SHARE = 0.05, 0.06
"""Share of patients, with or without a tumour, that have one; drawn apart, never both."""


def sample_mimics(rng: np.random.Generator, anatomy: Anatomy) -> list[Lesion]:
    """The benign findings of a patient."""
    found = [sample_cyst(rng, anatomy) for _ in range(int(rng.choice(3, p=CYSTS)))]
    own = rng.spawn(1)[0]
    chance = own.random()
    if chance < PSEUDOCYST_SHARE:
        found.append(sample_pseudocyst(own, anatomy))
    elif chance < PSEUDOCYST_SHARE + PANCREATITIS_SHARE:
        found.append(sample_pancreatitis(own, anatomy))
    return found


def sample_cyst(rng: np.random.Generator, anatomy: Anatomy) -> Lesion:
    """A simple cyst: round, sharp, 0–15 HU."""
    organ = "liver" if rng.random() < 0.75 else "pancreas"
    base = sample_tumor(rng, anatomy, organ, float(rng.uniform(8, 34)), kind="cyst")
    radius = max(base.radii_mm)
    return replace(
        base,
        radii_mm=(radius, radius, radius),
        shape="round",
        boundary="well-defined",
        density="fluid",
        delta_hu=float(rng.uniform(0, 15)),
    )


def sample_pseudocyst(rng: np.random.Generator, anatomy: Anatomy) -> Lesion:
    """A collection of fluid (5–25 HU) at the surface of the pancreas, in a thin enhancing wall."""
    base = sample_tumor(rng, anatomy, "pancreas", float(rng.uniform(20, 50)), kind="pseudocyst", edge=True)
    radius = max(base.radii_mm)
    return replace(
        base,
        radii_mm=(radius, radius * float(rng.uniform(0.85, 1)), radius * float(rng.uniform(0.8, 1))),
        shape="round",
        boundary="well-defined",
        density="fluid",
        delta_hu=float(rng.uniform(5, 25)),
    )


def sample_pancreatitis(rng: np.random.Generator, anatomy: Anatomy) -> Lesion:
    """A stretch of the gland, 10–24 HU darker without an edge, in fat that it soaks; there is no mass."""
    sections = SECTIONS["pancreas"]
    name, first, last = sections[rng.integers(len(sections))]
    centre, radius, tangent = tube_frame(anatomy.tubes["pancreas"], float(rng.uniform(first, last)))
    across = radius * float(rng.uniform(1.0, 1.15))
    return Lesion(
        kind="pancreatitis",
        organ="pancreas",
        substructure=name,
        centre_mm=triple(anatomy.patient(centre[None])[0]),
        radii_mm=(across, float(rng.uniform(24, 42)), across),
        rotation=frame_rotation(perpendicular(rng, tangent), tangent),
        shape="round",
        boundary="diffuse",
        density="hypodense",
        delta_hu=-float(rng.uniform(10, 24)),
        phase=triple(rng.uniform(0, 2 * np.pi, 3)),
    )
