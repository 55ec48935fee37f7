"""A random abdomen: which shapes, which TotalSegmentator ids, which tissues, and how they are laid onto a grid.

Canonical frame: RAS+ mm, x to the patient's right, y anterior, z superior; z = 0 is about the L4 vertebra, the
diaphragm lies near z = 185.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.shapes import (
    Array,
    Ellipsoid,
    Grid,
    SmoothField,
    Tube,
    random_rotation,
)


class Tissue(IntEnum):
    """What a voxel is made of; its HU follow from the contrast phase (``render``)."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    CORTEX = 4
    MARROW = 5
    CORD = 6
    LIVER = 7
    SPLEEN = 8
    PANCREAS = 9
    KIDNEY = 10
    BILE = 11
    ADRENAL = 12
    ARTERY = 13
    VEIN = 14
    PORTAL = 15
    HEART = 16
    WALL = 17
    GAS = 18
    FLUID = 19
    STOOL = 20
    CHYME = 21
    CYST = 22
    CALCIUM = 23


ORGAN_IDS = {"liver": 5, "stomach": 6, "pancreas": 7, "esophagus": 15, "colorectum": 20}
"""Table 10 name → TotalSegmentator id, for the five digestive organs."""


@dataclass(frozen=True)
class Part:
    """One shape painted with one label. Later parts win over earlier ones where ``over`` allows it."""

    label: int
    shape: Ellipsoid | Tube
    tissue: Tissue
    wall_mm: float = 0.0
    """Hollow organ: thickness of the wall; inside it is lumen."""
    lumen: Tissue = Tissue.FLUID
    gas_share: float = 0.0
    """Upper (anterior) share of the lumen that holds gas."""
    over: tuple[int, ...] = (0,)
    """Labels that may be overwritten; 0 is unlabelled soft tissue inside the trunk."""
    rim: Tissue | None = None
    """Outer shell, e.g. cortical bone."""


@dataclass(frozen=True)
class Anatomy:
    """A patient's organs, before any lesion."""

    parts: tuple[Part, ...]
    trunk: Ellipsoid
    fat_share: float
    """Relative thickness of the subcutaneous fat."""
    scale: tuple[float, float, float]
    displacement: tuple[SmoothField, SmoothField, SmoothField]
    roughness: SmoothField
    dome_z: tuple[float, float]
    """Height of the right and left diaphragm in canonical mm."""
    tubes: dict[str, Tube] = field(default_factory=dict)

    def canonical(self, points: Array) -> Array:
        """[n, 3] patient mm → canonical mm."""
        moved = np.stack([f.at(points) for f in self.displacement], axis=1)
        return (points / np.asarray(self.scale, np.float32) + moved).astype(np.float32)

    def patient(self, points: Array) -> Array:
        """[n, 3] canonical mm → patient mm (fixed-point inverse)."""
        scale = np.asarray(self.scale, np.float32)
        guess = points * scale
        for _ in range(4):
            moved = np.stack([f.at(guess) for f in self.displacement], axis=1)
            guess = ((points - moved) * scale).astype(np.float32)
        return guess

    def paint(self, grid: Grid) -> Painted:
        return _Painter(self, grid).run()


@dataclass
class Painted:
    """Arrays [x, y, z] on the grid."""

    labels: NDArray[np.uint8]
    tissue: NDArray[np.uint8]


class _Painter:
    def __init__(self, anatomy: Anatomy, grid: Grid) -> None:
        self.a, self.grid = anatomy, grid
        x, y, z = (grid.axis(k) for k in range(3))
        u = [f.on_axes(x, y, z) for f in anatomy.displacement]
        s = anatomy.scale
        self.x = x[:, None, None] / np.float32(s[0]) + u[0]
        self.y = y[None, :, None] / np.float32(s[1]) + u[1]
        self.z = z[None, None, :] / np.float32(s[2]) + u[2]
        self.rough = anatomy.roughness.on_axes(x, y, z)
        self.labels = np.zeros(grid.shape, np.uint8)
        self.tissue = np.zeros(grid.shape, np.uint8)
        self.margin = 26.0

    def run(self) -> Painted:
        self._trunk()
        for part in self.a.parts:
            if isinstance(part.shape, Tube):
                self._tube(part, part.shape)
            else:
                self._ellipsoid(part, part.shape)
        return Painted(self.labels, self.tissue)

    def _trunk(self) -> None:
        a, t = self.a, self.a.trunk
        flat = Ellipsoid(t.centre, (t.radii[0], t.radii[1], 1e9), power=t.power)
        ratio = flat.ratio(self.x, self.y, self.z)
        inner = 1.0 - a.fat_share
        self.tissue[ratio < 1.0] = Tissue.FAT
        self.tissue[ratio < inner] = Tissue.MUSCLE
        cavity = ratio < inner - 0.085
        self.tissue[cavity] = Tissue.FAT
        self._lungs(ratio < inner - 0.06)

    def _lungs(self, thorax: NDArray[np.bool_]) -> None:
        right, left = self.a.dome_z
        top = np.where(self.x > 0, np.float32(right), np.float32(left))
        cx = np.where(self.x > 0, self.x - 78, self.x + 78)
        dome = top - (cx / 14) ** 2 - ((self.y - 5) / 13) ** 2 + 4 * self.rough
        lung = thorax & (self.z > dome) & (np.abs(self.x) > 18)
        anterior = self.y > 25
        for side, back, front in ((self.x > 0, 14, 13), (self.x <= 0, 11, 10)):
            self.labels[lung & side & ~anterior] = back
            self.labels[lung & side & anterior] = front
        self.tissue[lung] = Tissue.LUNG

    def _fill(self, part: Part, window: tuple[slice, ...], ratio: Array, radius: Array | float) -> None:
        labels, tissue = self.labels[window], self.tissue[window]
        inside = (ratio < 1.0) & (tissue != Tissue.AIR)
        if 255 not in part.over:
            inside &= np.isin(labels, part.over)
        labels[inside] = part.label
        tissue[inside] = part.tissue
        if part.rim is not None:
            tissue[inside & (ratio > 1.0 - 2.4 / radius)] = part.rim
        if part.wall_mm:
            lumen = inside & (ratio < 1.0 - part.wall_mm / radius)
            tissue[lumen] = part.lumen
            if part.gas_share > 0:
                height = self.y[window]
                level = np.quantile(height[lumen], 1 - part.gas_share) if lumen.any() else np.inf
                tissue[lumen & (height > level)] = Tissue.GAS

    def _ellipsoid(self, part: Part, shape: Ellipsoid) -> None:
        window = self.grid.window(self._patient_box(shape.box), self.margin)
        if window is None:
            return
        x, y, z = self.x[window], self.y[window], self.z[window]
        mean_radius = float(np.mean(shape.radii))
        ratio = shape.ratio(x, y, z) + self.rough[window] * min(2.2 / mean_radius * 2, 0.1)
        self._fill(part, window, ratio, mean_radius)

    def _tube(self, part: Part, tube: Tube) -> None:
        boxes = np.array([tube.segment_box(k) for k in range(tube.segments)])
        whole = tuple((float(boxes[:, i, 0].min()), float(boxes[:, i, 1].max())) for i in range(3))
        window = self.grid.window(self._patient_box(whole), self.margin)  # type: ignore[arg-type]
        if window is None:
            return
        best = np.full(self.labels[window].shape, np.inf, np.float32)
        where = np.zeros_like(best)
        offset = [s.start for s in window]
        for k in range(tube.segments):
            local = self.grid.window(self._patient_box(tube.segment_box(k)), 20.0)
            if local is None:
                continue
            ratio, t = tube.segment_ratio(k, self.x[local], self.y[local], self.z[local])
            clipped = tuple(slice(s.start - o, s.stop - o) for s, o in zip(local, offset, strict=True))
            inside = tuple(
                slice(max(c.start, 0), min(c.stop, n)) for c, n in zip(clipped, best.shape, strict=True)
            )
            take = tuple(
                slice(i.start - c.start, i.stop - c.start) for i, c in zip(inside, clipped, strict=True)
            )
            ratio, t = ratio[take], t[take]
            view, place = best[inside], where[inside]
            closer = ratio < view
            view[closer], place[closer] = ratio[closer], t[closer]
        radius = np.interp(where, np.linspace(0, 1, tube.segments + 1), tube.path[:, 3]).astype(np.float32)
        best = best + self.rough[window] * np.minimum(1.6 / radius, 0.12)
        self._fill(part, window, best, radius)

    def _patient_box(self, box: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        s = self.a.scale
        return tuple((low * s[k], high * s[k]) for k, (low, high) in enumerate(box))


def _tube(
    rng: np.random.Generator, points: list[tuple[float, ...]], jitter: float, grow: float, **kw: float
) -> Tube:
    p = np.asarray(points, np.float32)
    p[:, :3] += rng.normal(0, jitter, (len(p), 3)).astype(np.float32)
    p[:, 3] *= grow
    return Tube(p, segments=int(kw.get("segments", 24)), haustra=float(kw.get("haustra", 0.0)))


def _blob(
    rng: np.random.Generator,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    jitter: float = 5.0,
    turn: float = 15.0,
    power: float = 2.0,
) -> Ellipsoid:
    c = np.asarray(centre) + rng.normal(0, jitter, 3)
    r = np.asarray(radii) * rng.uniform(0.88, 1.12, 3)
    rotation = random_rotation(rng, turn) if turn else None
    return Ellipsoid(tuple(map(float, c)), tuple(map(float, r)), rotation, power)  # type: ignore[arg-type]


def _skeleton(rng: np.random.Generator) -> list[Part]:
    bone = {"tissue": Tissue.MARROW, "rim": Tissue.CORTEX, "over": (255,)}
    parts = []
    levels = {27: -6, 28: 28, 29: 62, 30: 94, 31: 126, 32: 156, 33: 184, 34: 211, 35: 238, 36: 263, 37: 287}
    bend = rng.normal(0, 6)
    for label, z in levels.items():
        x = bend * np.sin((z + 20) / 120)
        y = -62 - 6 * np.cos((z - 20) / 90)
        parts.append(Part(label, Ellipsoid((x, y, z), (22, 17, 14.5), None, 3.0), **bone))  # type: ignore[arg-type]
        parts.append(Part(label, Ellipsoid((x, y - 36, z - 4), (6, 17, 8), None), **bone))  # type: ignore[arg-type]
    cord = _tube(rng, [(0, -86, -60, 7), (0, -85, 60, 7), (0, -88, 180, 7), (0, -86, 320, 7)], 1, 1.0)
    parts.append(Part(79, cord, Tissue.CORD, over=(255,)))
    for side, first in ((1, 104), (-1, 92)):
        for number in range(6, 13):
            z = 262 - (number - 6) * 27 + rng.normal(0, 2)
            length = 1.0 if number < 10 else (0.8, 0.62, 0.42)[number - 10]
            angles = np.linspace(-0.42 * np.pi, (-0.42 + 0.86 * length) * np.pi, 6)
            points = [
                (side * 128 * np.cos(t), 96 * np.sin(t) + 4, z - 22 * i, 5.2) for i, t in enumerate(angles)
            ]
            parts.append(Part(first + number - 1, _tube(rng, points, 1.0, 1.0, segments=14), **bone))  # type: ignore[arg-type]
        hip = Ellipsoid((side * 92, -30, -38), (26, 42, 42), random_rotation(rng, 8), 2.6)
        parts.append(Part(78 if side > 0 else 77, hip, **bone))  # type: ignore[arg-type]
    return parts


def _muscles(rng: np.random.Generator) -> list[Part]:
    parts = []
    for side, back, psoas in ((1, 87, 89), (-1, 86, 88)):
        erector = [(side * 34, -98, -60, 26), (side * 34, -96, 100, 24), (side * 26, -94, 320, 15)]
        parts.append(Part(back, _tube(rng, erector, 2, rng.uniform(0.85, 1.1)), Tissue.MUSCLE, over=(0, 255)))
        iliopsoas = [
            (side * 24, -60, 130, 7),
            (side * 36, -54, 70, 16),
            (side * 48, -40, 0, 20),
            (side * 62, -15, -80, 22),
        ]
        parts.append(Part(psoas, _tube(rng, iliopsoas, 2, rng.uniform(0.8, 1.1)), Tissue.MUSCLE))
    return parts


def _vessels(rng: np.random.Generator) -> list[Part]:
    grow = rng.uniform(0.85, 1.15)
    aorta = _tube(
        rng, [(-9, -36, 320, 12), (-8, -36, 210, 11.5), (-7, -34, 110, 10), (-5, -34, 34, 9)], 2, grow
    )
    cava = _tube(rng, [(16, -8, 205, 12), (22, -22, 160, 12), (22, -28, 90, 11), (18, -30, 24, 10)], 2, grow)
    portal = _tube(
        rng,
        [(-84, -14, 148, 4), (-40, 2, 136, 5.5), (8, 2, 116, 7), (30, 4, 132, 7.5), (52, 6, 148, 7)],
        2,
        grow,
    )
    parts = [
        Part(52, aorta, Tissue.ARTERY, over=(0, 5, 18)),
        Part(63, cava, Tissue.VEIN, over=(0, 5, 18, 19, 7)),
        Part(64, portal, Tissue.PORTAL, over=(0, 5, 7, 6, 18)),
    ]
    for side, artery, vein in ((1, 66, 68), (-1, 65, 67)):
        a = _tube(
            rng, [(-5, -34, 34, 8), (side * 24, -28, 0, 6.5), (side * 50, -10, -80, 6)], 2, grow, segments=10
        )
        v = _tube(
            rng, [(18, -30, 24, 9), (side * 28, -36, -8, 8), (side * 52, -18, -80, 7)], 2, grow, segments=10
        )
        parts += [Part(artery, a, Tissue.ARTERY), Part(vein, v, Tissue.VEIN)]
    return parts


def _solid_organs(rng: np.random.Generator) -> list[Part]:
    size = rng.uniform(0.9, 1.08)
    right = _blob(rng, (78, 4, 146), (62 * size, 66 * size, 66 * size), 4, 12, 2.3)
    left = _blob(rng, (12, 42, 166), (66 * size, 30 * size, 34 * size), 5, 14)
    kidney = (25.0, 25.0, 50.0)
    return [
        Part(5, right, Tissue.LIVER, over=(0,)),
        Part(5, left, Tissue.LIVER, over=(0, 5)),
        Part(1, _blob(rng, (-104, -34, 166), (26, 38, 44), 5, 20), Tissue.SPLEEN),
        Part(2, _blob(rng, (64, -48, 88), kidney, 5, 14), Tissue.KIDNEY, over=(0, 5)),
        Part(3, _blob(rng, (-66, -46, 100), kidney, 5, 14), Tissue.KIDNEY, over=(0, 1)),
        Part(8, _blob(rng, (34, -36, 152), (4, 13, 11), 2, 25), Tissue.ADRENAL, over=(0, 5)),
        Part(9, _blob(rng, (-34, -34, 154), (4, 13, 11), 2, 25), Tissue.ADRENAL),
        Part(51, _blob(rng, (-22, 34, 236), (58, 48, 40), 5, 15), Tissue.HEART, over=(0, 10, 11, 13, 14, 5)),
        Part(
            4,
            _blob(rng, (58, 56, 112), (14, 16, 27), 4, 25),
            Tissue.BILE,
            wall_mm=1.6,
            lumen=Tissue.BILE,
            over=(0, 5),
        ),
    ]


def _gut(rng: np.random.Generator, tubes: dict[str, Tube]) -> list[Part]:
    """The digestive tube and the pancreas; centre lines are kept for lesion placement."""
    j = 4.0
    tubes["esophagus"] = _tube(
        rng,
        [(4, -38, 330, 10), (2, -30, 262, 10), (-4, -22, 222, 10), (-12, -8, 200, 10.5), (-18, 6, 186, 11)],
        2,
        rng.uniform(0.9, 1.1),
    )
    grow = rng.uniform(0.9, 1.12)
    tubes["stomach"] = _tube(
        rng,
        [(-18, 6, 186, 13), (-52, -4, 196, 30), (-68, 14, 168, 33), (-62, 34, 138, 28), (-34, 50, 114, 21), (2, 48, 108, 18), (24, 38, 114, 11)],
        j, grow, segments=30,
    )  # fmt: skip
    tubes["duodenum"] = _tube(
        rng,
        [
            (24, 38, 114, 11),
            (46, 24, 110, 13),
            (50, 4, 84, 13),
            (28, -8, 66, 12),
            (-10, -6, 68, 12),
            (-32, 8, 82, 12),
        ],
        2,
        rng.uniform(0.9, 1.1),
    )
    tubes["pancreas"] = _tube(
        rng,
        [
            (34, 6, 86, 12),
            (32, 14, 100, 17),
            (12, 22, 112, 11),
            (-20, 18, 124, 12),
            (-52, 4, 134, 12),
            (-82, -14, 146, 9),
        ],
        3,
        rng.uniform(0.9, 1.15),
    )
    tubes["colorectum"] = _tube(
        rng,
        [(88, 22, -34, 23), (96, 6, 8, 25), (98, 0, 56, 23), (88, 26, 92, 22), (48, 66, 84, 21), (0, 76, 78, 21), (-50, 66, 92, 20),
         (-98, 20, 138, 20), (-108, -8, 96, 18), (-108, -8, 30, 17), (-86, 12, -18, 16), (-44, 30, -50, 16)],
        j + 1, rng.uniform(0.88, 1.12), segments=60, haustra=0.09,
    )  # fmt: skip
    parts = []
    for _ in range(26):
        c = (rng.uniform(-72, 72), rng.uniform(2, 62), rng.uniform(-60, 74))
        loop = Ellipsoid(
            c, (rng.uniform(14, 24), rng.uniform(11, 15), rng.uniform(11, 15)), random_rotation(rng, 80)
        )
        fill = Tissue.CHYME if rng.random() < 0.85 else Tissue.GAS
        parts.append(Part(18, loop, Tissue.WALL, wall_mm=2.2, lumen=fill, over=(0, 18)))
    stool = Tissue.STOOL if rng.random() < 0.6 else Tissue.FLUID
    parts += [
        Part(20, tubes["colorectum"], Tissue.WALL, 3.0, stool, rng.uniform(0.15, 0.75), (0, 18)),
        Part(
            6,
            tubes["stomach"],
            Tissue.WALL,
            rng.uniform(4.0, 5.5),
            Tissue.FLUID,
            rng.uniform(0.05, 0.55),
            (0, 5, 18, 20, 1),
        ),
        Part(19, tubes["duodenum"], Tissue.WALL, 2.6, Tissue.CHYME, rng.uniform(0, 0.3), (0, 5, 18, 20, 2)),
        Part(7, tubes["pancreas"], Tissue.PANCREAS, over=(0, 18, 19, 6)),
        Part(
            15,
            tubes["esophagus"],
            Tissue.WALL,
            rng.uniform(3.6, 4.8),
            Tissue.FLUID,
            rng.uniform(0.2, 1.0),
            (0, 5, 51, 11, 14),
        ),
    ]
    return parts


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A new patient; the same generator state gives the same patient."""
    tubes: dict[str, Tube] = {}
    parts = [*_muscles(rng), *_solid_organs(rng), *_gut(rng, tubes), *_vessels(rng), *_skeleton(rng)]
    build = rng.normal(1.0, 0.055)
    scale = (
        float(build * rng.normal(1, 0.03)),
        float(build * rng.normal(1, 0.05)),
        float(rng.normal(1.0, 0.05)),
    )
    fat = float(rng.uniform(0.05, 0.2))
    trunk = Ellipsoid((0, -14, 0), (150 / (1 - fat), 118 / (1 - fat), 1.0), None, 2.5)
    displacement = tuple(SmoothField.random(rng, 75.0, 5.5) for _ in range(3))
    roughness = SmoothField.random(rng, 22.0, 1.0)
    dome = (float(rng.normal(206, 6)), float(rng.normal(198, 6)))
    return Anatomy(tuple(parts), trunk, fat, scale, displacement, roughness, dome, tubes=tubes)  # type: ignore[arg-type]
