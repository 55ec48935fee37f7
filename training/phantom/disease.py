"""A primary tumour with all that belongs to it: satellites, regional nodes, distant metastases, mass effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS, Anatomy, Painted, Tissue
from tumorchain_agent.training.phantom.categories import BEYOND_MM, NODE_CUTS, THROUGH_MM
from tumorchain_agent.training.phantom.compression import contact
from tumorchain_agent.training.phantom.lesions import (
    SMALL_MM,
    SOLID,
    Lesion,
    frame_rotation,
    sample_size,
    sample_tumor,
    surface_gap_mm,
)
from tumorchain_agent.training.phantom.shapes import Array, Ellipsoid, Grid, random_rotation, triple
from tumorchain_agent.training.phantom.stamps import INVADABLE, stamp

EDGE_SHARE = 0.45
"""Share of lesions under 2 cm in liver and pancreas that are put at the organ's surface (paper 13.2, second error).

Wall tumours always are there, and in a gland as slim as the pancreas most others are as well."""
COMPRESSION_SHARE, COMPRESSION_MM = 0.4, 25.0
"""Share of tumours from this size on that push a neighbour aside (paper 13.2, third error), where one is in reach:

any of liver and pancreas, and of the wall tumours those that grow through the serosa, which then don't invade."""
NODAL_SHARE = 0.45
"""Share of tumours with regional nodes; the N category is drawn evenly, then the count within it."""
LIVER_SHARE, LUNG_SHARE, PERITONEUM_SHARE = 0.28, 0.12, 0.12
"""Share of tumours with metastases at each site, independent of each other; none of the liver in the liver.

More often than in a clinic, as are further tumours: or "M0" and "solitary" would be right without a look."""
MULTIPLE_SHARE, SYNCHRONOUS_SHARE = 0.55, 0.5
"""Share of liver tumours with satellites, and of other tumours with a second or third one in the same organ; room is
found for fewer."""
_CAVITY = 0.085
"""The abdominal wall's share of the trunk's radius, as painted."""
Points = NDArray[np.float32] | NDArray[np.float64]
"""[n, 3] mm."""
_PROBES = 0.8 * np.array([(0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])


def sample_disease(
    rng: np.random.Generator, anatomy: Anatomy, organ: str, painted: Painted, grid: Grid
) -> list[Lesion]:
    """A tumour of ``organ`` and what comes with it; ``painted`` shows where room is. The tumour is first."""
    own = rng.spawn(1)[0]
    size = sample_size(rng, 48.0 if organ == "esophagus" else 65.0)
    place = _Placing(rng, own, anatomy, painted, grid)
    out = [place.tumor(organ, size, compress=size >= COMPRESSION_MM and own.random() < COMPRESSION_SHARE)]
    if rng.random() < (MULTIPLE_SHARE if organ == "liver" else SYNCHRONOUS_SHARE):
        most = 3 if organ == "liver" else 2
        sizes = [float(round(rng.uniform(10, min(size, 45)))) for _ in range(int(rng.integers(most)) + 1)]
        out += place.more(organ, sizes, out)
    if own.random() < NODAL_SHARE:
        out += place.nodes(out[0], _node_count(own, organ))
    sites = [organ != "liver" and rng.random() < LIVER_SHARE]
    sites += [own.random() < share for share in (LUNG_SHARE, PERITONEUM_SHARE)]
    found: list[Lesion] = []
    if sites[0]:
        sizes = [float(rng.uniform(10, 32)) for _ in range(int(rng.integers(1, 5)))]
        found += place.more("liver", sizes, out, "metastasis")
    if sites[1]:
        found += place.lung(out[0], int(own.integers(1, 4)))
    if sites[2]:
        found += place.peritoneum(out[0], int(own.integers(2, 6)))
    return out + [replace(each, primary=organ) for each in found]


def _node_count(rng: np.random.Generator, organ: str) -> int:
    """A count of nodes in an evenly drawn N category: its least, or up to three more."""
    cuts = [least for least, _ in NODE_CUTS[organ]][::-1]
    k = int(rng.integers(len(cuts)))
    most = cuts[k + 1] - 1 if k + 1 < len(cuts) else cuts[k] + 3
    return int(rng.integers(cuts[k], min(most, cuts[k] + 3) + 1))


class _Placing:
    """Where in a painted patient a lesion finds room."""

    def __init__(
        self,
        rng: np.random.Generator,
        own: np.random.Generator,
        anatomy: Anatomy,
        painted: Painted,
        grid: Grid,
    ) -> None:
        self.rng, self.own, self.anatomy, self.painted, self.grid = rng, own, anatomy, painted, grid

    def tumor(self, organ: str, size: float, kind: str = "tumor", *, compress: bool = False) -> Lesion:
        edge = size < SMALL_MM and organ in SOLID and self.own.random() < EDGE_SHARE

        def draw() -> Lesion:
            return sample_tumor(self.rng, self.anatomy, organ, size, kind, edge=edge)

        lesion = self._against(draw) if compress and organ in SOLID else None
        lesion = lesion or self._roomy(draw)
        if compress and lesion.reach_mm >= 8:
            lesion = replace(lesion, compressing=True)
        if size < SMALL_MM:
            gap = surface_gap_mm(lesion, self.anatomy) if organ in SOLID else 0.0
            lesion = replace(lesion, edge_mm=gap)
        return lesion

    def more(
        self,
        organ: str,
        sizes: Sequence[float],
        others: Sequence[Lesion],
        kind: str = "tumor",
        tries: int = 4,
    ) -> list[Lesion]:
        """Further lesions of an organ, none touching another or one of ``others``, which would look like one; what
        finds no such place is left out."""
        found: list[Lesion] = []
        for size in sizes:
            for _ in range(tries):
                lesion = self.tumor(organ, size, kind)
                centre = np.array([lesion.centre_mm])
                if _apart(centre, max(lesion.radii_mm), [*others, *found])[0]:
                    found.append(lesion)
                    break
        return found

    def _roomy(self, draw: Callable[[], Lesion], tries: int = 6, wanted: float = 0.62) -> Lesion:
        """The first of a few draws that finds enough room where it lies, else the one that finds most."""
        best, most = draw(), -1.0
        for k in range(tries):
            lesion = best if k == 0 else draw()
            mark = stamp(lesion, self.painted, self.grid)
            share = mark.share * (1.0 if self._free_at_tip(lesion) else 0.5) if mark else 0.0
            if share > most:
                best, most = lesion, share
            if most >= wanted:
                break
        return best

    def _free_at_tip(self, lesion: Lesion) -> bool:
        """Whether a wall tumour can grow where it reaches farthest, which decides its T; solid organs' always can."""
        if lesion.reach_mm < BEYOND_MM:
            return True
        outward = np.asarray(lesion.rotation)[:, 0]
        tip = float(lesion.surface.along(outward[None])[0])
        depths = tip - np.array([0.5, lesion.reach_mm / 2])
        index = self._voxels(np.asarray(lesion.centre_mm) + outward * depths[:, None])
        if not ((index >= 0) & (index < np.array(self.grid.shape))).all():
            return False
        labels, tissue = (array[tuple(index.T)] for array in (self.painted.labels, self.painted.tissue))
        taken = (ORGAN_IDS[lesion.organ], *(INVADABLE if lesion.reach_mm >= THROUGH_MM else ()))
        return bool((((labels == 0) & (tissue == Tissue.FAT)) | np.isin(labels, taken)).all())

    def _against(self, draw: Callable[[], Lesion], tries: int = 8) -> Lesion | None:
        """A draw that reaches into a neighbour, which will have to give way; ``None`` when none of a few does."""
        for _ in range(tries):
            lesion = draw()
            pushed, free = contact(lesion, self.painted, self.grid)
            if 0.08 <= pushed <= 0.45 and pushed + free >= 0.7:
                return replace(lesion, compressing=True)
        return None

    def nodes(self, near: Lesion, count: int) -> list[Lesion]:
        """Up to ``count`` enlarged nodes in the fat around a tumour, none touching another."""
        found: list[Lesion] = []
        for _ in range(count):
            direction = self.own.standard_normal((64, 3))
            direction /= np.linalg.norm(direction, axis=1)[:, None]
            away = max(near.radii_mm) + self.own.uniform(8, np.linspace(20, 46, 64))
            centres = np.asarray(near.centre_mm) + direction * away[:, None]
            radius = float(self.own.uniform(4.5, 8.5))
            free = self._in_fat(centres, radius) & _apart(centres, radius, found)
            if free.any():
                found.append(_node(self.own, near, centres[free.argmax()], radius))
        return found

    def lung(self, primary: Lesion, count: int) -> list[Lesion]:
        """Up to ``count`` nodules in the lung bases."""
        spots = np.argwhere(self.painted.tissue == Tissue.LUNG)
        found: list[Lesion] = []
        for _ in range(count if len(spots) else 0):
            centres = self._points(spots[self.own.integers(len(spots), size=32)])
            radius = float(self.own.uniform(4, 11))
            free = self._is(Tissue.LUNG, centres, 1.25 * radius) & _apart(centres, radius, found)
            if free.any():
                centre = centres[free.argmax()]
                found.append(_deposit(self.own, primary, "lung", centre, (radius, radius, radius)))
        return found

    def peritoneum(self, primary: Lesion, count: int) -> list[Lesion]:
        """Up to ``count`` flat deposits in the fat along the abdominal wall and in the omentum, far from nodes."""
        fat = (self.painted.labels == 0) & (self.painted.tissue == Tissue.FAT)
        spots = np.argwhere(fat)
        centres = self._points(spots[self.own.integers(len(spots), size=1500)])
        far = np.linalg.norm(centres - np.asarray(primary.centre_mm), axis=1)
        depth, outward = self._depth(centres)
        least = max(primary.radii_mm) + 56
        fit = (depth > 0.02) & (depth < 0.16) & (centres[:, 1] > -25) & (far > least)
        found: list[Lesion] = []
        for k in np.flatnonzero(fit)[: 12 * count]:
            half = float(self.own.uniform(5.5, 12))
            radii = (half * float(self.own.uniform(0.45, 0.65)), half, half * float(self.own.uniform(0.8, 1)))
            if len(found) == count or not _apart(centres[k : k + 1], half, found)[0]:
                continue
            lesion = _deposit(self.own, primary, "peritoneum", centres[k], radii, outward[k])
            mark = stamp(lesion, self.painted, self.grid)
            if mark is not None and mark.share >= 0.68:
                found.append(lesion)
        return found

    def _points(self, spots: NDArray[np.intp]) -> Array:
        """Voxel indices [n, 3] → mm."""
        points: Array = (np.asarray(self.grid.origin) + spots * np.asarray(self.grid.spacing)).astype(
            np.float32
        )
        return points

    def _voxels(self, points: NDArray[np.float64]) -> NDArray[np.intp]:
        """The nearest voxels' indices, in the grid or not, of points [..., 3] in mm."""
        places = (points - np.asarray(self.grid.origin)) / np.asarray(self.grid.spacing)
        index: NDArray[np.intp] = np.rint(places).astype(np.intp)
        return index

    def _is(self, tissue: Tissue, centres: Points, radius: float) -> NDArray[np.bool_]:
        """Which spheres [n, 3] hold nothing but a tissue, by probes at 0.8 of the radius."""
        points = centres[:, None] + radius * _PROBES
        index = self._voxels(points)
        shape = np.array(self.grid.shape)
        inside = ((index >= 0) & (index < shape)).all(axis=(1, 2))
        x, y, z = np.moveaxis(np.clip(index, 0, shape - 1), 2, 0)
        whole: NDArray[np.bool_] = inside & (self.painted.tissue[x, y, z] == tissue).all(axis=1)
        if tissue is Tissue.FAT:
            whole &= (self.painted.labels[x, y, z] == 0).all(axis=1)
        return whole

    def _in_fat(self, centres: Points, radius: float) -> NDArray[np.bool_]:
        """Which spheres lie in fat within the abdominal cavity."""
        return self._is(Tissue.FAT, centres, radius) & (self._depth(centres)[0] > 0)

    def _depth(self, centres: Points) -> tuple[Array, Array]:
        """[n] how deep under the abdominal wall, as a share of the trunk's radius, and [n, 3] the way out."""
        trunk = self.anatomy.trunk
        radii = np.array([trunk.radii[0], trunk.radii[1], 1e9])
        q = self.anatomy.canonical(centres.astype(np.float32))
        ratio = Ellipsoid(trunk.centre, triple(radii), power=trunk.power).ratio(*q.T)
        outward = (q - np.asarray(trunk.centre)) * (1, 1, 0) / radii**2
        outward /= np.linalg.norm(outward, axis=1)[:, None] + 1e-9
        return (1 - self.anatomy.fat_share - _CAVITY - ratio), outward.astype(np.float32)


def _apart(centres: Points, radius: float, others: list[Lesion]) -> NDArray[np.bool_]:
    """Which spheres keep clear of all others."""
    clear = np.ones(len(centres), bool)
    for other in others:
        gap = np.linalg.norm(centres - np.asarray(other.centre_mm), axis=1)
        clear &= gap > radius + max(other.radii_mm) + 2.5
    return clear


def _node(rng: np.random.Generator, near: Lesion, centre: Array, radius: float) -> Lesion:
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
        primary=near.organ,
        edge_mm=None,
        compressing=False,
    )


def _deposit(
    rng: np.random.Generator,
    primary: Lesion,
    site: str,
    centre: Array,
    radii: tuple[float, float, float],
    outward: Array | None = None,
) -> Lesion:
    """A metastasis outside the five organs; a flat one lies against ``outward``."""
    node = _node(rng, primary, centre, radii[0])
    lobulated = outward is not None and rng.random() < 0.5
    return replace(
        node,
        kind="metastasis",
        organ=site,
        substructure="base" if site == "lung" else "lining",
        radii_mm=radii,
        rotation=node.rotation
        if outward is None
        else frame_rotation(outward, np.array([0, 0, 1], np.float32)),
        shape="lobulated" if lobulated else "round",
        phase=triple(rng.uniform(0, 2 * np.pi, 3)),
    )
