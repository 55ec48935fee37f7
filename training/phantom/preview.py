"""A contact sheet of phantoms: each patient's slice through its main finding, organs outlined, with the truth."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tumorchain_agent.tools.organs import STRUCTURES
from tumorchain_agent.tools.picture import Outline, outlined_slice
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS
from tumorchain_agent.training.phantom.patient import KINDS, ORGANS, Case
from tumorchain_agent.training.phantom.reports import clinical_stage

TILE, COLUMNS = 440, 4
"""Side of a picture in pixels, and pictures in a row."""
ORGAN_RGB = ((255, 214, 10), (255, 140, 60), (90, 220, 120), (90, 190, 255), (200, 130, 255))
"""Outline of each of the five organs, in the order of ``ORGANS``."""
PUSHED_RGB = (255, 255, 255)
LESION_RGB = {
    "tumor": (255, 50, 50),
    "metastasis": (255, 50, 50),
    "node": (255, 90, 200),
    "cyst": (40, 240, 240),
    "pseudocyst": (40, 240, 240),
    "pancreatitis": (40, 240, 240),
}
_LINES, _LINE_PX = 4, 17


def contact_sheet(cases: Sequence[Case], size: int = TILE) -> Image.Image:
    """Tiles in rows of ``COLUMNS``; tumours and metastases red, nodes pink, benign mimics cyan."""
    tiles = [tile(case, size) for case in cases]
    width, height = tiles[0].size
    columns = min(COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height))
    for k, each in enumerate(tiles):
        sheet.paste(each, (k % columns * width, k // columns * height))
    return sheet


def tile(case: Case, size: int = TILE) -> Image.Image:
    """One patient's slice with its caption."""
    z = slice_of(case)
    labels, kinds = case.labels[:, :, z], case.lesion_mask[:, :, z]
    outlines = [
        Outline(labels == ORGAN_IDS[organ], rgb) for organ, rgb in zip(ORGANS, ORGAN_RGB, strict=True)
    ]
    outlines += [Outline(labels == number, PUSHED_RGB) for number in case.truth.compresses]
    outlines += [Outline(kinds == KINDS[kind], rgb) for kind, rgb in LESION_RGB.items()]
    picture = outlined_slice(
        case.hu[:, :, z], case.grid.spacing[:2], [o for o in outlines if o.mask.any()], size=size
    )
    whole = Image.new("RGB", (size, size + _LINES * _LINE_PX + 6), (24, 24, 24))
    whole.paste(picture, (0, 0))
    text = "\n".join(textwrap.wrap(caption(case), size // 7)[:_LINES])
    ImageDraw.Draw(whole).text((6, size + 3), text, fill=(254, 254, 254), font=ImageFont.load_default(13))
    return whole


def slice_of(case: Case) -> int:
    """Index of the axial slice that shows most of the tumour, else of any finding, else the scan's middle."""
    order = sorted(
        range(len(case.lesions)), key=lambda i: (KINDS[case.lesions[i].kind] != 1, -case.lesions[i].size_mm)
    )
    for i in order:
        areas = (case.lesion_index == i + 1).sum(axis=(0, 1))
        if areas.any():
            return int(areas.argmax())
    return case.grid.shape[2] // 2


def caption(case: Case) -> str:
    """The truth in a few words."""
    t = case.truth
    parts = [f"seed {t.seed}", t.phase]
    if t.organ:
        parts += [
            f"{t.organ}, {t.substructure}, {t.size_mm:.0f} mm, {t.density}, {t.shape}, {t.boundary}",
            f"{t.count} tumor{'s' if t.count > 1 else ''}, {t.nodes} nodes",
            f"{t.metastases} metastases ({', '.join(t.sites)})" if t.sites else "no metastases",
            f"{t.t} {t.n} {t.m}, stage {clinical_stage(t)}",
        ]
    else:
        parts.append("no tumor")
    parts += ["at the organ's edge"] if t.edge else []
    parts += [f"invades {_named(t.invaded)}"] if t.invaded else []
    parts += [f"compresses {_named(t.compresses)}"] if t.compresses else []
    parts += [f"benign: {', '.join(t.mimics)}"] if t.mimics else []
    return "; ".join(parts)


def _named(ids: Sequence[int]) -> str:
    return ", ".join(STRUCTURES[number].replace("_", " ") for number in ids)


def save_preview(cases: Sequence[Case], path: Path) -> None:
    """Write the contact sheet as a PNG, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    contact_sheet(cases).save(temporary, "PNG")
    temporary.replace(path)
