"""Tumours, metastases, lymph nodes and benign mimics: where they sit, what they look like, how they are laid in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Anatomy, Painted, Tissue
from tumorchain_agent.training.phantom.shapes import (
    Array,
    Ellipsoid,
    Grid,
    Rotation,
    Triple,
    Tube,
    random_rotation,
    triple,
)

SHAPES = ("round", "lobulated", "irregular")
BOUNDARIES = ("well-defined", "ill-defined")
DENSITIES = ("hypodense", "hyperdense", "heterogeneous")
SOLID = ("liver", "pancreas")

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
    """``tumor``, ``metastasis``, ``node`` or ``cyst``."""
    organ: str
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

    @property
    def size_mm(self) -> float:
        """Largest diameter."""
        return 2 * max(self.radii_mm)


@dataclass
class Stamp:
    """A lesion on a grid: ``alpha`` in 0..1 over ``window``, ``core`` where its centre may be necrotic."""

    lesion: Lesion
    window: tuple[slice, slice, slice]
    alpha: Array
    ratio: Array
    invaded: tuple[int, ...]
    """TotalSegmentator ids of other organs that it grows into."""
    share: float
    """Part of its volume that found room."""


def sample_size(rng: np.random.Generator, largest_mm: float = 65.0) -> float:
    """Largest diameter in mm: 15 % under 2 cm, 45 % 2–4 cm, 40 % above."""
    low, high = ((10.0, 20.0), (20.0, 40.0), (40.0, largest_mm))[rng.choice(3, p=(0.15, 0.45, 0.40))]
    return float(rng.uniform(low, high))


def _tube_frame(tube: Tube, t: float) -> tuple[Array, float, Array]:
    """Centre, radius and unit tangent at path parameter ``t`` (canonical mm)."""
    here, ahead = tube.along(np.array([t, min(t + 0.01, 1.0)])), tube.along(np.array([max(t - 0.01, 0.0)]))
    tangent = here[1, :3] - ahead[0, :3]
    return here[0, :3], float(here[0, 3]), tangent / (np.linalg.norm(tangent) + 1e-6)


def _perpendicular(rng: np.random.Generator, tangent: Array) -> Array:
    v = rng.standard_normal(3).astype(np.float32)
    v -= tangent * float(v @ tangent)
    return v / (np.linalg.norm(v) + 1e-6)


def _place_liver(rng: np.random.Generator, anatomy: Anatomy, lobe: str) -> Array:
    blobs = [p.shape for p in anatomy.parts if p.label == 5 and isinstance(p.shape, Ellipsoid)]
    blob = blobs[0] if lobe == "right lobe" else blobs[1]
    direction = rng.standard_normal(3)
    direction *= rng.uniform(0.1, 0.8) ** (1 / 2) / np.linalg.norm(direction)
    local = direction * np.asarray(blob.radii)
    turned = local if blob.rotation is None else np.asarray(blob.rotation) @ local
    centre: Array = (np.asarray(blob.centre) + turned).astype(np.float32)
    return centre


def _frame_rotation(normal: Array, tangent: Array) -> Rotation:
    matrix = np.stack([normal, tangent, np.cross(normal, tangent)], axis=1)
    return tuple(triple(row) for row in matrix)


def _wall_geometry(
    rng: np.random.Generator, tube: Tube, t: float, size: float, reach: float
) -> tuple[Array, Triple, Rotation]:
    """A plaque on the wall: centre (canonical), radii and rotation; it reaches ``reach`` mm beyond the wall."""
    centre, radius, tangent = _tube_frame(tube, t)
    normal = _perpendicular(rng, tangent)
    depth = float(np.clip(size * rng.uniform(0.24, 0.34), 4.5, 17.0))
    along = size / 2
    across = float(min(along, max(1.15 * radius, depth)) * rng.uniform(0.8, 1.0))
    position = centre + normal * (radius + reach - depth)
    return position.astype(np.float32), (depth, along, across), _frame_rotation(normal, tangent)


def sample_tumor(
    rng: np.random.Generator, anatomy: Anatomy, organ: str, size: float, kind: str = "tumor"
) -> Lesion:
    """A malignant lesion of an organ; size is the largest diameter in mm."""
    sections = SECTIONS[organ]
    name, first, last = sections[rng.integers(len(sections))]
    reach, turned = 0.0, random_rotation(rng, 40)
    if organ == "liver":
        canonical = _place_liver(rng, anatomy, name)
        radii = triple(size / 2 * np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)]))
    elif organ == "pancreas":
        centre, radius, tangent = _tube_frame(anatomy.tubes[organ], float(rng.uniform(first, last)))
        canonical = centre + _perpendicular(rng, tangent) * radius * rng.uniform(0, 0.5)
        radii = triple(size / 2 * np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)]))
    else:
        reach = float(rng.choice((0.5, rng.uniform(3, 5), rng.uniform(8, 11)), p=(0.4, 0.35, 0.25)))
        canonical, radii, turned = _wall_geometry(
            rng, anatomy.tubes[organ], float(rng.uniform(first, last)), size, reach
        )
    density = str(rng.choice(DENSITIES, p=(0.5, 0.25, 0.25)))
    sign = 1.0 if density == "hyperdense" else -1.0
    return Lesion(
        kind=kind,
        organ=organ,
        substructure=name,
        centre_mm=triple(anatomy.patient(canonical[None])[0]),
        radii_mm=radii,
        rotation=turned,
        shape=str(rng.choice(SHAPES, p=(0.4, 0.35, 0.25))),
        boundary=str(rng.choice(BOUNDARIES, p=(0.55, 0.45))),
        density=density,
        delta_hu=float(sign * rng.uniform(25, 60)),
        reach_mm=reach,
        phase=triple(rng.uniform(0, 2 * np.pi, 3)),
    )


def sample_cyst(rng: np.random.Generator, anatomy: Anatomy) -> Lesion:
    """A benign fluid-filled mimic: round, sharp, 0–15 HU."""
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


def sample_node(rng: np.random.Generator, near: Lesion) -> Lesion:
    """An enlarged lymph node in the fat around a tumour."""
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    centre = np.asarray(near.centre_mm) + direction * (max(near.radii_mm) + rng.uniform(8, 26))
    radius = float(rng.uniform(4.5, 8.5))
    return replace(
        near,
        kind="node",
        centre_mm=triple(centre),
        radii_mm=(radius, radius * 0.85, radius * 0.85),
        rotation=random_rotation(rng, 90),
        shape="round",
        boundary="well-defined",
        density="soft tissue",
        delta_hu=float(rng.uniform(-5, 20)),
        reach_mm=0.0,
    )


def _surface(lesion: Lesion, x: Array, y: Array, z: Array) -> Array:
    """Waves on the surface; zero for a round lesion."""
    if lesion.shape == "round":
        return np.zeros((1, 1, 1), np.float32)
    waves, height = (1.9, 0.13) if lesion.shape == "lobulated" else (3.4, 0.2)
    k = waves * 2 * np.pi / (2 * max(lesion.radii_mm))
    a, b, c = lesion.phase
    wave: Array = (
        np.sin(k * x + a) * np.sin(k * y + b)
        + np.sin(k * y + c) * np.sin(k * z + a)
        + np.sin(k * z + b) * np.sin(k * x + c)
    )
    scaled: Array = (height * wave).astype(np.float32)
    return scaled


def _allowed(lesion: Lesion, labels: NDArray[np.uint8], tissue: NDArray[np.uint8]) -> NDArray[np.bool_]:
    fat: NDArray[np.bool_] = (labels == 0) & (tissue == Tissue.FAT)
    if lesion.kind == "node":
        return fat
    host: NDArray[np.bool_] = labels == ORGAN_IDS[lesion.organ]
    if lesion.kind == "cyst":
        return host
    if lesion.reach_mm >= 8 and lesion.organ not in SOLID:
        return host | fat | np.isin(labels, (1, 5, 6, 7, 18, 19, 20, 52))
    return host | fat


def stamp(lesion: Lesion, painted: Painted, grid: Grid) -> Stamp | None:
    """Lay a lesion onto a grid without changing it; ``None`` when its centre is outside."""
    reach = max(lesion.radii_mm) * 1.5
    cx, cy, cz = lesion.centre_mm
    window = grid.window(((cx - reach, cx + reach), (cy - reach, cy + reach), (cz - reach, cz + reach)))
    if window is None:
        return None
    x, y, z = (grid.axis(k)[window[k]] for k in range(3))
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    ratio = Ellipsoid(lesion.centre_mm, lesion.radii_mm, lesion.rotation).ratio(x, y, z)
    ratio = ratio + _surface(lesion, x, y, z)
    labels = painted.labels[window]
    allowed = _allowed(lesion, labels, painted.tissue[window])
    full = ratio < 1
    expected = max(float(full.sum()), 4 / 3 * np.pi * float(np.prod(lesion.radii_mm)) / grid.voxel_mm3)
    share = float((full & allowed).sum()) / max(expected, 1.0)
    softness = 0.03 if lesion.boundary == "well-defined" else 0.14
    alpha = 1 / (1 + np.exp(np.clip((ratio - 1) / softness, -30, 30)))
    alpha = np.where(allowed, alpha, 0).astype(np.float32)
    host = ORGAN_IDS.get(lesion.organ, 0)
    inside = np.unique(labels[full & allowed])
    invaded = tuple(int(v) for v in inside if v not in (0, host)) if lesion.kind == "tumor" else ()
    return Stamp(lesion, window, alpha, ratio.astype(np.float32), invaded, share)


def apply_labels(mark: Stamp, painted: Painted) -> None:
    """A tumour belongs to its organ's mask, as in TotalSegmentator; nodes stay unlabelled."""
    if mark.lesion.kind == "node":
        return
    labels = painted.labels[mark.window]
    inside = (mark.ratio < 1) & (mark.alpha > 0.5) & np.isin(labels, (0, ORGAN_IDS[mark.lesion.organ]))
    labels[inside] = ORGAN_IDS[mark.lesion.organ]
