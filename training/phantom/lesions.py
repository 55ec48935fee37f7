"""Tumours as drawn: where they sit in their organ, what they look like; their place on a grid is in ``stamps``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Anatomy
from tumorchain_agent.training.phantom.shapes import (
    Array,
    Ellipsoid,
    Rotation,
    Triple,
    Tube,
    random_rotation,
    triple,
)
from tumorchain_agent.training.phantom.surface import Surface, rays

SHAPES = ("round", "lobulated", "irregular")
BOUNDARIES = ("well-defined", "ill-defined")
DENSITIES = ("hypodense", "hyperdense", "heterogeneous")
SOLID = ("liver", "pancreas")
BENIGN = ("cyst", "pseudocyst", "pancreatitis")
"""Kinds of mimics."""
_WALL_MM = 5.0
"""What a wall tumour takes of the wall: one that grows far beyond it still starts there."""
SMALL_MM, EDGE_MM = 20.0, 5.0
"""A lesion under ``SMALL_MM`` whose surface is at most ``EDGE_MM`` from the organ's is one at the organ's edge."""

_RAYS = rays(26)

SECTIONS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "pancreas": (("head", 0.05, 0.36), ("body", 0.46, 0.76), ("tail", 0.8, 0.98)),
    "stomach": (("fundus", 0.12, 0.3), ("body", 0.36, 0.62), ("antrum", 0.7, 0.94)),
    "colorectum": (
        ("ascending colon", 0.05, 0.24),
        ("transverse colon", 0.34, 0.57),
        ("descending colon", 0.66, 0.84),
        ("sigmoid colon", 0.88, 0.98),
    ),
    "esophagus": (("lower thoracic", 0.42, 0.8), ("abdominal", 0.83, 0.97)),
    "liver": (("right lobe", 0.0, 1.0), ("left lobe", 0.0, 1.0)),
}
"""Organ → (sub-structure, first and last path parameter of its centre line); the liver goes by lobe."""


@dataclass(frozen=True)
class Lesion:
    """One lesion in patient millimetres."""

    kind: str
    """``tumor``, ``metastasis``, ``node``, or a benign mimic: ``cyst``, ``pseudocyst``, ``pancreatitis``."""
    organ: str
    """Where it sits; a node has its tumour's, a metastasis ``liver``, ``lung`` or ``peritoneum``."""
    substructure: str
    centre_mm: Triple
    radii_mm: Triple
    rotation: Rotation
    shape: str
    boundary: str
    density: str
    delta_hu: float
    """Difference to the host tissue (solid organs), or the enhancement offset (wall tumours)."""
    reach_mm: float = 0.0
    """Wall tumours: how far it grows beyond the outer wall."""
    phase: Triple = (0.0, 0.0, 0.0)
    """Offsets of the surface waves that make it lobulated or irregular."""
    primary: str = ""
    """Nodes and metastases: the organ whose tumour they come from."""
    edge_mm: float | None = None
    """Under ``SMALL_MM``, in one of the five organs: how far its surface is from the organ's; 0 where it touches."""
    compressing: bool = False
    """Pushes neighbouring organs aside where it would otherwise stop at them or grow into them."""

    @property
    def size_mm(self) -> float:
        """Largest diameter."""
        return 2 * max(self.radii_mm)

    @property
    def surface(self) -> Surface:
        """Around its centre."""
        return Surface(self.radii_mm, self.rotation, self.shape, self.phase)

    @property
    def at_edge(self) -> bool:
        """Small, and at its organ's surface."""
        return self.edge_mm is not None and self.edge_mm <= EDGE_MM


def sample_size(rng: np.random.Generator, largest_mm: float = 65.0) -> float:
    """Largest diameter in whole mm: 15 % under 2 cm, 45 % 2–4 cm, 40 % above."""
    low, high = ((10.0, 20.0), (20.0, 40.0), (40.0, largest_mm))[rng.choice(3, p=(0.15, 0.45, 0.40))]
    return float(round(rng.uniform(low, high)))


def tube_frame(tube: Tube, t: float) -> tuple[Array, float, Array]:
    """Centre, radius and unit tangent at path parameter ``t`` (canonical mm)."""
    here, ahead = tube.along(np.array([t, min(t + 0.01, 1.0)])), tube.along(np.array([max(t - 0.01, 0.0)]))
    tangent = here[1, :3] - ahead[0, :3]
    return here[0, :3], float(here[0, 3]), tangent / (np.linalg.norm(tangent) + 1e-6)


def perpendicular(rng: np.random.Generator, tangent: Array) -> Array:
    v = rng.standard_normal(3).astype(np.float32)
    v -= tangent * float(v @ tangent)
    return v / (np.linalg.norm(v) + 1e-6)


def _lobes(anatomy: Anatomy) -> list[Ellipsoid]:
    """Right and left lobe of the liver."""
    liver = ORGAN_IDS["liver"]
    return [part.shape for part in anatomy.parts if part.label == liver and isinstance(part.shape, Ellipsoid)]


def _in_lobe(rng: np.random.Generator, lesion: Lesion, anatomy: Anatomy) -> Lesion:
    """The lesion anywhere in its lobe of the liver."""
    lobe = _lobes(anatomy)[0 if lesion.substructure == "right lobe" else 1]
    direction = rng.standard_normal(3)
    direction *= rng.uniform(0.1, 0.8) ** (1 / 2) / np.linalg.norm(direction)
    local = direction * np.asarray(lobe.radii)
    turned = local if lobe.rotation is None else np.asarray(lobe.rotation) @ local
    centre = (np.asarray(lobe.centre) + turned).astype(np.float32)
    return replace(lesion, centre_mm=triple(anatomy.patient(centre[None])[0]))


def _under_surface(rng: np.random.Generator, lesion: Lesion, anatomy: Anatomy) -> Lesion:
    """The lesion where it lies under, or bulges through, the free surface of its lobe of the liver."""
    own, other = _lobes(anatomy)[:: 1 if lesion.substructure == "right lobe" else -1]
    middle = np.asarray(own.centre, np.float32)
    surface = middle
    for _ in range(12):
        ray = rng.standard_normal(3).astype(np.float32) * np.asarray(own.radii, np.float32)
        surface = middle + ray / float(own.ratio(*(middle + ray)))
        if float(other.ratio(*surface)) > 1.05:
            break
    inward = (middle - surface) / np.linalg.norm(middle - surface)
    ends = np.stack([surface, surface + 5 * inward]).astype(np.float32)
    here, deeper = anatomy.patient(ends).astype(np.float64)
    way = (deeper - here) / np.linalg.norm(deeper - here)
    depth = float(lesion.surface.along(-way[None])[0]) * rng.uniform(0.7, 1.0) + rng.uniform(0, 2)
    return replace(lesion, centre_mm=triple(here + way * depth))


def surface_gap_mm(lesion: Lesion, anatomy: Anatomy) -> float:
    """How far a lesion's surface is from its organ's, by rays from its centre; 0 where it touches or bulges out.

    Both surfaces are taken without their roughness.
    """
    shapes: list[Ellipsoid | Tube] = [anatomy.tubes[lesion.organ]] if lesion.organ in anatomy.tubes else []
    shapes += _lobes(anatomy) if lesion.organ == "liver" else []
    reach = np.arange(0.0, max(lesion.radii_mm) + EDGE_MM + 3.0, 1.5)
    points = np.asarray(lesion.centre_mm) + (reach[:, None, None] * _RAYS[None]).reshape(-1, 3)
    x, y, z = anatomy.canonical(points.astype(np.float32)).T
    ratios = [s.ratio(x, y, z)[0] if isinstance(s, Tube) else s.ratio(x, y, z) for s in shapes]
    outside = (np.min(ratios, axis=0) >= 1).reshape(len(reach), len(_RAYS))
    first = np.where(outside.any(axis=0), reach[outside.argmax(axis=0)], np.inf)
    return float(np.clip((first - lesion.surface.along(_RAYS)).min(), 0.0, 99.0))


def frame_rotation(normal: Array, tangent: Array) -> Rotation:
    matrix = np.stack([normal, tangent, np.cross(normal, tangent)], axis=1)
    return tuple(triple(row) for row in matrix)


def _plaque(rng: np.random.Generator, size: float, radius: float, reach: float) -> Triple:
    """Radii of a wall tumour: through the wall, along the tube, and around it, whose radius is ``radius``."""
    depth = float(np.clip(size * rng.uniform(0.24, 0.34), 4.5, 17.0))
    depth = max(depth, (reach + _WALL_MM) / 2)
    along = size / 2
    return depth, along, float(min(along, max(1.15 * radius, depth)) * rng.uniform(0.8, 1.0))


def _through_wall(lesion: Lesion, anatomy: Anatomy, centre: Array, normal: Array, tangent: Array) -> Lesion:
    """The lesion on the wall that lies ``normal`` of a tube's centre line (canonical mm): ``reach_mm`` beyond it."""
    ends = np.stack([centre, centre + 5 * normal, centre - 5 * tangent, centre + 5 * tangent])
    middle, above, behind, ahead = anatomy.patient(ends.astype(np.float32)).astype(np.float64)
    outward = (above - middle) / np.linalg.norm(above - middle)
    along = (ahead - behind) - outward * float((ahead - behind) @ outward)
    turned = replace(lesion, rotation=frame_rotation(outward, along / np.linalg.norm(along)))
    depth, *rest = turned.radii_mm
    turned = replace(turned, radii_mm=triple((min(depth / turned.surface.fit, max(rest)), *rest)))
    far = np.arange(0.0, 60.0, 0.5)
    way = (middle + far[:, None] * outward).astype(np.float32)
    wall = far[(anatomy.tube_ratio(anatomy.tubes[lesion.organ], way) >= 1).argmax()] - 0.25
    tip = float(turned.surface.along(outward[None])[0])
    return replace(turned, centre_mm=triple(middle + outward * (wall + lesion.reach_mm - tip)))


def sample_tumor(
    rng: np.random.Generator,
    anatomy: Anatomy,
    organ: str,
    size: float,
    kind: str = "tumor",
    *,
    edge: bool = False,
) -> Lesion:
    """A malignant lesion of an organ; ``size`` is the largest diameter in mm, ``edge`` puts it at the surface.

    Wall tumours always are at their organ's surface.
    """
    sections = SECTIONS[organ]
    name, first, last = sections[rng.integers(len(sections))]
    density = str(rng.choice(DENSITIES, p=(0.5, 0.25, 0.25)))
    lesion = Lesion(
        kind=kind,
        organ=organ,
        substructure=name,
        centre_mm=(0.0, 0.0, 0.0),
        radii_mm=triple(size / 2 * np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)])),
        rotation=random_rotation(rng, 40),
        shape=str(rng.choice(SHAPES, p=(0.4, 0.35, 0.25))),
        boundary=str(rng.choice(BOUNDARIES, p=(0.55, 0.45))),
        density=density,
        delta_hu=float((1.0 if density == "hyperdense" else -1.0) * rng.uniform(25, 60)),
        phase=triple(rng.uniform(0, 2 * np.pi, 3)),
    )
    if organ == "liver":
        return _under_surface(rng, lesion, anatomy) if edge else _in_lobe(rng, lesion, anatomy)
    centre, radius, tangent = tube_frame(anatomy.tubes[organ], float(rng.uniform(first, last)))
    normal = perpendicular(rng, tangent)
    if organ in SOLID:
        chance = rng.uniform(0, 0.5)
        off = max(radius - size / 2 * (0.7 + 0.6 * chance), 0.5 * radius) if edge else radius * chance
        return replace(lesion, centre_mm=triple(anatomy.patient((centre + normal * off)[None])[0]))
    reach = float(rng.choice((0.5, rng.uniform(3, 5), rng.uniform(8, 11)), p=(0.4, 0.35, 0.25)))
    if size < reach + _WALL_MM + 1:
        reach = min(reach, 5.0)
    plaque = replace(lesion, radii_mm=_plaque(rng, size, radius, reach), reach_mm=reach)
    return _through_wall(plaque, anatomy, centre, normal, tangent)
