"""The list of a random patient's organs: bones, muscles, vessels, solid organs and the digestive tube.

Canonical frame as in ``anatomy``: points are x, y, z, and where there is a fourth number, a radius, all in mm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tumorchain_agent.training.phantom.anatomy import Anatomy, Part, Tissue
from tumorchain_agent.training.phantom.shapes import (
    Ellipsoid,
    SmoothField,
    Triple,
    Tube,
    random_rotation,
    triple,
)

Point = tuple[float, float, float, float]
"""Of a centre line, with the radius there."""
Line = tuple[Point, ...]

_ESOPHAGUS: Line = (
    (4, -38, 330, 10),
    (2, -30, 262, 10),
    (-4, -22, 222, 10),
    (-12, -8, 200, 10.5),
    (-18, 6, 186, 11),
)
_STOMACH: Line = (
    (-18, 6, 186, 13),
    (-52, -4, 196, 30),
    (-68, 14, 168, 33),
    (-62, 34, 138, 28),
    (-34, 50, 114, 21),
    (2, 48, 108, 18),
    (24, 38, 114, 11),
)
_DUODENUM: Line = (
    (24, 38, 114, 11),
    (46, 24, 110, 13),
    (50, 4, 84, 13),
    (28, -8, 66, 12),
    (-10, -6, 68, 12),
    (-32, 8, 82, 12),
)
_PANCREAS: Line = (
    (34, 6, 86, 12),
    (32, 14, 100, 17),
    (12, 22, 112, 11),
    (-20, 18, 124, 12),
    (-52, 4, 134, 12),
    (-82, -14, 146, 9),
)
_COLORECTUM: Line = (
    (88, 22, -34, 23),
    (96, 6, 8, 25),
    (98, 0, 56, 23),
    (88, 26, 92, 22),
    (48, 66, 84, 21),
    (0, 76, 78, 21),
    (-50, 66, 92, 20),
    (-98, 20, 138, 20),
    (-108, -8, 96, 18),
    (-108, -8, 30, 17),
    (-86, 12, -18, 16),
    (-44, 30, -50, 16),
)


def _tube(
    rng: np.random.Generator,
    points: Sequence[Point],
    jitter: float,
    grow: float,
    *,
    segments: int = 24,
    haustra: float = 0.0,
) -> Tube:
    p = np.asarray(points, np.float32)
    p[:, :3] += rng.normal(0, jitter, (len(p), 3)).astype(np.float32)
    p[:, 3] *= grow
    return Tube(p, segments, haustra)


def _blob(
    rng: np.random.Generator,
    centre: Triple,
    radii: Triple,
    jitter: float = 5.0,
    turn: float = 15.0,
    power: float = 2.0,
) -> Ellipsoid:
    c = np.asarray(centre) + rng.normal(0, jitter, 3)
    r = np.asarray(radii) * rng.uniform(0.88, 1.12, 3)
    rotation = random_rotation(rng, turn) if turn else None
    return Ellipsoid(triple(c), triple(r), rotation, power)


def _bone(label: int, shape: Ellipsoid | Tube) -> Part:
    return Part(label, shape, Tissue.MARROW, rim=Tissue.CORTEX, over=(255,))


def _skeleton(rng: np.random.Generator) -> list[Part]:
    parts = []
    levels = {27: -6, 28: 28, 29: 62, 30: 94, 31: 126, 32: 156, 33: 184, 34: 211, 35: 238, 36: 263, 37: 287}
    bend = rng.normal(0, 6)
    for label, z in levels.items():
        x = bend * np.sin((z + 20) / 120)
        y = -62 - 6 * np.cos((z - 20) / 90)
        parts.append(_bone(label, Ellipsoid((x, y, z), (22, 17, 14.5), None, 3.0)))
        parts.append(_bone(label, Ellipsoid((x, y - 36, z - 4), (6, 17, 8), None)))
    cord = _tube(rng, [(0, -86, -60, 7), (0, -85, 60, 7), (0, -88, 180, 7), (0, -86, 320, 7)], 1, 1.0)
    parts.append(Part(79, cord, Tissue.CORD, over=(255,)))
    for side, first in ((1, 104), (-1, 92)):
        for number in range(6, 13):
            top = 262 - (number - 6) * 27 + rng.normal(0, 2)
            length = 1.0 if number < 10 else (0.8, 0.62, 0.42)[number - 10]
            angles = np.linspace(-0.42 * np.pi, (-0.42 + 0.86 * length) * np.pi, 6)
            points = [
                (side * 128 * np.cos(t), 96 * np.sin(t) + 4, top - 22 * i, 5.2) for i, t in enumerate(angles)
            ]
            parts.append(_bone(first + number - 1, _tube(rng, points, 1.0, 1.0, segments=14)))
        hip = Ellipsoid((side * 92, -30, -38), (26, 42, 42), random_rotation(rng, 8), 2.6)
        parts.append(_bone(78 if side > 0 else 77, hip))
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


def _digestive_tubes(rng: np.random.Generator) -> dict[str, Tube]:
    """The digestive tube and the pancreas by name."""
    tubes = {"esophagus": _tube(rng, _ESOPHAGUS, 2, rng.uniform(0.9, 1.1))}
    grow = rng.uniform(0.9, 1.12)
    tubes["stomach"] = _tube(rng, _STOMACH, 4.0, grow, segments=30)
    tubes["duodenum"] = _tube(rng, _DUODENUM, 2, rng.uniform(0.9, 1.1))
    tubes["pancreas"] = _tube(rng, _PANCREAS, 3, rng.uniform(0.9, 1.15))
    grow = rng.uniform(0.88, 1.12)
    tubes["colorectum"] = _tube(rng, _COLORECTUM, 5.0, grow, segments=60, haustra=0.09)
    return tubes


def _small_bowel(rng: np.random.Generator) -> list[Part]:
    parts = []
    for _ in range(26):
        c = (rng.uniform(-72, 72), rng.uniform(2, 62), rng.uniform(-60, 74))
        loop = Ellipsoid(
            c, (rng.uniform(14, 24), rng.uniform(11, 15), rng.uniform(11, 15)), random_rotation(rng, 80)
        )
        fill = Tissue.CHYME if rng.random() < 0.85 else Tissue.GAS
        parts.append(Part(18, loop, Tissue.WALL, wall_mm=2.2, lumen=fill, over=(0, 18)))
    return parts


def _gut(rng: np.random.Generator, tubes: dict[str, Tube]) -> list[Part]:
    colorectum, stomach, esophagus = tubes["colorectum"], tubes["stomach"], tubes["esophagus"]
    parts = _small_bowel(rng)
    stool = Tissue.STOOL if rng.random() < 0.6 else Tissue.FLUID
    gas = rng.uniform(0.15, 0.75)
    parts.append(Part(20, colorectum, Tissue.WALL, 3.0, stool, gas, (0, 18)))
    wall, gas = rng.uniform(4.0, 5.5), rng.uniform(0.05, 0.55)
    parts.append(Part(6, stomach, Tissue.WALL, wall, Tissue.FLUID, gas, (0, 5, 18, 20, 1)))
    gas = rng.uniform(0, 0.3)
    parts.append(Part(19, tubes["duodenum"], Tissue.WALL, 2.6, Tissue.CHYME, gas, (0, 5, 18, 20, 2)))
    parts.append(Part(7, tubes["pancreas"], Tissue.PANCREAS, over=(0, 18, 19, 6)))
    wall, gas = rng.uniform(3.6, 4.8), rng.uniform(0.2, 1.0)
    parts.append(Part(15, esophagus, Tissue.WALL, wall, Tissue.FLUID, gas, (0, 5, 51, 11, 14)))
    return parts


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A new patient; the same generator state gives the same patient."""
    parts = [*_muscles(rng), *_solid_organs(rng)]
    tubes = _digestive_tubes(rng)
    parts += [*_gut(rng, tubes), *_vessels(rng), *_skeleton(rng)]
    build = rng.normal(1.0, 0.055)
    scale = (
        float(build * rng.normal(1, 0.03)),
        float(build * rng.normal(1, 0.05)),
        float(rng.normal(1.0, 0.05)),
    )
    fat = float(rng.uniform(0.05, 0.2))
    trunk = Ellipsoid((0, -14, 0), (150 / (1 - fat), 118 / (1 - fat), 1.0), None, 2.5)
    u, v, w = (SmoothField.random(rng, 75.0, 5.5) for _ in range(3))
    roughness = SmoothField.random(rng, 22.0, 1.0)
    dome = (float(rng.normal(206, 6)), float(rng.normal(198, 6)))
    return Anatomy(tuple(parts), trunk, fat, scale, (u, v, w), roughness, dome, tubes=tubes)
