"""What a scan seems to be, before anything is computed from it: a guess with a confidence for each question.

Read from the voxels alone, at a coarse resolution, so that it takes a fraction of a second and works for
every format. Each guess says what it rests on; none of them is a finding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import GateItem, InputGate
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.scan import CT

COARSE_MM = 4.0
BODY_HU = -300.0
LUNG_HU = -500.0
BONE_HU = 350.0
_SOFT_HU = (20.0, 200.0)
_FAT_HU = (-130.0, -70.0)
_UNENHANCED_BELOW, _ENHANCED_ABOVE = 62.0, 70.0
"""Median of all soft tissue: muscle and unenhanced organs lie at 40–60 HU, enhanced organs above."""
_POOL_HU, _POOL_SPREAD_HU, _POOL_ML = (240.0, 700.0), 60.0, 20.0
"""An aorta in the arterial phase: 143 ml in a real one, 11 ml of bone at most in scans of other phases."""
_LUNG_SLICE = 0.15
"""Share of the body's section that is lung, above which a slice counts as chest."""
_PELVIS_MM = 420.0
_THICK_MM = 5.0


@dataclass(frozen=True)
class _Coarse:
    hu: NDArray[np.float32]
    """[x, y, z] block means of about 4 mm."""
    mm: NDArray[np.float64]
    body: NDArray[np.bool_]


def inspect_input(ct: CT) -> InputGate:
    """Modality, contrast phase, field of view, orientation and slice thickness of a CT."""
    coarse = _coarsened(ct)
    return InputGate(
        modality=_modality(ct, coarse),
        contrast_phase=_contrast_phase(coarse),
        field_of_view=_field_of_view(ct, coarse),
        orientation=_orientation(ct, coarse),
        slice_thickness=_slice_thickness(ct),
    )


def _coarsened(ct: CT) -> _Coarse:
    from scipy import ndimage

    spacing = np.array(ct.spacing_mm)
    step = np.clip(np.floor(COARSE_MM / spacing).astype(int), 1, np.array(ct.shape))
    x, y, z = (int(size // each) for size, each in zip(ct.shape, step, strict=True))
    a, b, c = (int(each) for each in step)
    cut = ct.hu[: x * a, : y * b, : z * c]
    hu = cut.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5), dtype=np.float32)
    found, _ = ndimage.label(hu > BODY_HU)
    sizes = np.bincount(found.ravel())
    sizes[0] = 0
    body = found == sizes.argmax() if sizes.any() else np.zeros(hu.shape, bool)
    filled = [ndimage.binary_fill_holes(body[:, :, index]) for index in range(body.shape[2])]
    return _Coarse(hu, spacing * step, np.stack(filled, axis=2))


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return float(int((part & whole).sum()) / max(int(whole.sum()), 1))


def _modality(ct: CT, coarse: _Coarse) -> GateItem:
    outside = ~coarse.body
    air = _share(coarse.hu < -900, outside) if outside.any() else _share(coarse.hu < -900, coarse.body)
    fat = _share((coarse.hu > _FAT_HU[0]) & (coarse.hu < _FAT_HU[1]), coarse.body)
    if any(notice.code == "looks_like_mr" for notice in ct.info.notices):
        why = "no voxel has the HU of fat or air"
        return GateItem(value="not CT, or CT without its rescale intercept", confidence=0.8, why=why)
    why = (
        f"{100 * air:.0f} % of the surroundings have the HU of air, {100 * fat:.0f} % of the body that of fat"
    )
    unknown = any(notice.code == "modality_unknown" for notice in ct.info.notices)
    known = ct.info.source_format == "dicom" and not unknown
    confidence = 0.5 + 0.3 * min(air / 0.5, 1.0) + 0.2 * min(fat / 0.02, 1.0)
    why += "; the DICOM header says CT" if known else ""
    why += "; the DICOM header doesn't say its modality" if unknown else ""
    return GateItem(value="CT", confidence=round(max(confidence, 0.95 if known else 0.0), 2), why=why)


def _contrast_phase(coarse: _Coarse) -> GateItem:
    """Unenhanced or not by the median of soft tissue; arterial or later by a bright artery."""
    low, high = _SOFT_HU
    soft = coarse.hu[coarse.body & (coarse.hu > low) & (coarse.hu < high)]
    if soft.size < 200:
        return GateItem(value="unknown", confidence=0.0, why="too little soft tissue in the scan")
    median = float(np.median(soft))
    why = f"median of soft tissue {median:.0f} HU"
    if median < _UNENHANCED_BELOW:
        sure = min(0.5 + (_UNENHANCED_BELOW - median) / 40.0, 0.9)
        return GateItem(value="unenhanced", confidence=round(sure, 2), why=why)
    if median < _ENHANCED_ABOVE:
        return GateItem(value="unknown", confidence=0.3, why=f"{why}, between unenhanced and enhanced")
    pool = _bright_pool_ml(coarse)
    why = f"{why}, {pool:.0f} ml in one piece as bright as an artery in its first minute"
    if pool > _POOL_ML:
        return GateItem(value="arterial", confidence=0.6, why=why)
    sure = min(0.45 + (median - _ENHANCED_ABOVE) / 60.0, 0.7)
    return GateItem(value="portal venous or later", confidence=round(sure, 2), why=why)


def _bright_pool_ml(coarse: _Coarse) -> float:
    """Largest piece that is bright and even, as blood is and bone isn't."""
    from scipy import ndimage

    hu = coarse.hu.astype(np.float64)
    mean = ndimage.uniform_filter(hu, 3)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(hu * hu, 3) - mean * mean, 0.0))
    low, high = _POOL_HU
    pieces, count = ndimage.label(coarse.body & (mean > low) & (mean < high) & (spread < _POOL_SPREAD_HU))
    if not count:
        return 0.0
    return float(np.bincount(pieces.ravel())[1:].max() * coarse.mm.prod() / 1000.0)


def _lung_profile(coarse: _Coarse) -> NDArray[np.float64]:
    """[z] share of the body's section that is lung."""
    lung = np.count_nonzero(coarse.body & (coarse.hu < LUNG_HU), axis=(0, 1))
    return np.asarray(lung / np.maximum(np.count_nonzero(coarse.body, axis=(0, 1)), 1), np.float64)


def _field_of_view(ct: CT, coarse: _Coarse) -> GateItem:
    """Chest where lungs are, abdomen where a torso goes on below or instead, else another region."""
    height = ct.spacing_mm[2] * ct.shape[2]
    inside = np.argwhere(coarse.body)
    width = float(np.ptp(inside[:, 0]) * coarse.mm[0]) if len(inside) else 0.0
    profile = _lung_profile(coarse)
    chest = float((profile > _LUNG_SLICE).mean())
    why = f"{height:.0f} mm from end to end, body {width:.0f} mm wide, lung in {100 * chest:.0f} % of slices"
    if width < 220.0:
        return GateItem(value="a limb, the head, or a part of the body", confidence=0.5, why=why)
    if chest > 0.9:
        return GateItem(value="chest", confidence=0.8, why=why)
    below = height * (1.0 - chest)
    value = "abdomen and pelvis" if below > _PELVIS_MM * 0.7 else "abdomen"
    value = f"chest, {value}" if chest > 0.4 else value
    return GateItem(value=value, confidence=0.7 if below > 60.0 else 0.4, why=why)


def _orientation(ct: CT, coarse: _Coarse) -> GateItem:
    """As stored; and whether lungs lie above and bone lies behind, as they must when the header is right."""
    codes = ct.info.source_axcodes
    bone = np.argwhere(coarse.body & (coarse.hu > BONE_HU))
    inside = np.argwhere(coarse.body)
    profile = _lung_profile(coarse)
    doubts = []
    if len(bone) >= 20 and bone[:, 1].mean() > inside[:, 1].mean() + 20.0 / coarse.mm[1]:
        doubts.append("bone lies in front: front and back may be exchanged, or the patient lies prone")
    third = max(len(profile) // 3, 1)
    if profile[:third].mean() > profile[-third:].mean() + 0.2:
        doubts.append("lungs lie at the lower end: head and feet may be exchanged")
    if doubts:
        return GateItem(value=codes, confidence=0.3, why="; ".join(doubts))
    told = len(bone) >= 20 and float(profile.max()) > 0.1
    why = "bone lies behind and lungs above, as they should" if told else "from the header alone"
    return GateItem(value=codes, confidence=0.8 if told else 0.6, why=why)


def _slice_thickness(ct: CT) -> GateItem:
    """Distance of neighbouring slices along the largest voxel side."""
    sizes = grid.spacing(np.array(ct.info.affine))
    thick = max(sizes)
    why = f"voxels of {' × '.join(f'{size:.3g}' for size in sizes)} mm"
    if any(notice.code == "implausible_spacing" for notice in ct.info.notices):
        return GateItem(value=f"{thick:.3g} mm", confidence=0.1, why=f"{why}, which can't be a patient's")
    note = "; lesions below 1 cm may be missed" if thick >= _THICK_MM else ""
    return GateItem(value=f"{thick:.3g} mm", confidence=0.9, why=f"{why}{note}")
