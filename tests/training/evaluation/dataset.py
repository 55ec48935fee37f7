"""A folder in DeepTumorVQA's format: phantoms with lesions drawn in, their true masks, and questions worded by subtype.

Truths are SimpleITK's: its connected components, shape and intensity statistics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.export import save_nifti
from tumorchain_agent.training.phantom.patient import generate
from tumorchain_agent.training.phantom.render import to_stored

IDS = {"spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 5, "pancreas": 7}
SPACING = (3.0, 3.0, 6.0)
Array = NDArray[Any]


@dataclass
class Patient:
    """Arrays [x, y, z] on a phantom's grid; ``lesions`` holds kinds 1 (tumor) and 4 (cyst), ``segments`` 1..8."""

    name: str
    affine: Array
    hu: Array
    labels: Array
    lesions: Array
    segments: Array
    stats: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Organ → volume in ml, mean HU."""
    found: list[dict[str, Any]] = field(default_factory=list)
    """Lesions: organ, kind, ml, hu, mm, slice, segment."""


def patient(seed: int, rng: np.random.Generator) -> Patient:
    case = generate(seed, SPACING, tumor_share=0.0)
    hu, labels = to_stored(case.hu).astype(np.int16), case.labels
    lesions = np.zeros(labels.shape, np.uint8)
    for organ, count in (("liver", rng.integers(1, 6)), ("pancreas", 1), ("left kidney", rng.integers(0, 3))):
        for _ in range(int(count)):
            _draw(rng, hu, labels == IDS[organ], lesions, kind=4 if organ == "left kidney" else 1)
    segments = np.where(labels == 5, _segments(labels == 5), 0).astype(np.uint8)
    made = Patient(f"BDMAP_{seed:08d}", case.grid.affine, hu, labels, lesions, segments)
    _measure(made)
    return made


def _draw(rng: np.random.Generator, hu: Array, organ: Array, lesions: Array, kind: int) -> None:
    """An ellipsoid inside the organ, two voxels away from any other."""
    ndimage: Any = import_module("scipy.ndimage")
    free = organ & ~ndimage.binary_dilation(lesions > 0, iterations=3)
    places = np.argwhere(ndimage.binary_erosion(free))
    if not len(places):
        return
    centre = places[rng.integers(len(places))]
    radii = rng.uniform(4, 14) * rng.uniform(0.7, 1.3, 3) / np.array(SPACING)
    away = sum(
        ((axis - c) / max(r, 0.8)) ** 2
        for axis, c, r in zip(np.indices(hu.shape), centre, radii, strict=True)
    )
    inside = (np.asarray(away) <= 1) & free
    inside &= (
        ndimage.label(inside, np.ones((3, 3, 3)))[0]
        == ndimage.label(inside, np.ones((3, 3, 3)))[0][tuple(centre)]
    )
    lesions[inside] = kind
    hu[inside] += int(rng.choice([-60, -40, 50])) if kind == 1 else -100


def _segments(liver: Array) -> Array:
    """Eight blocks: not Couinaud's anatomy, but known."""
    x, y, z = (np.median(axis) for axis in np.nonzero(liver))
    i, j, k = np.indices(liver.shape)
    return np.asarray(1 + (i > x) + 2 * (j > y) + 4 * (k > z))


def _measure(made: Patient) -> None:
    sitk: Any = import_module("SimpleITK")
    spacing = [float(each) for each in np.linalg.norm(made.affine[:3, :3], axis=0)]
    hu = _image(sitk, made.hu.astype(np.float64), spacing)
    stats = sitk.LabelIntensityStatisticsImageFilter()
    stats.Execute(_image(sitk, made.labels, spacing), hu)
    for organ, key in IDS.items():
        if stats.HasLabel(key):
            made.stats[organ] = (stats.GetPhysicalSize(key) / 1000, stats.GetMean(key))
    for kind in (1, 4):
        parts = sitk.ConnectedComponent(_image(sitk, (made.lesions == kind).astype(np.uint8), spacing), True)
        shapes = sitk.LabelShapeStatisticsImageFilter()
        shapes.ComputeFeretDiameterOn()
        shapes.Execute(parts)
        stats.Execute(parts, hu)
        array = sitk.GetArrayFromImage(parts).T
        for key in shapes.GetLabels():
            inside = array == key
            organ = next(o for o, number in IDS.items() if (made.labels[inside] == number).any())
            areas = inside.sum((0, 1))
            segments = np.bincount(made.segments[inside], minlength=9)[1:]
            made.found.append(
                {
                    "organ": organ,
                    "kind": kind,
                    "ml": shapes.GetPhysicalSize(key) / 1000,
                    "hu": stats.GetMean(key),
                    "mm": shapes.GetFeretDiameter(key),
                    "slice": int(areas.argmax()),
                    "segment": int(segments.argmax()) + 1 if segments.any() else 0,
                }
            )


def _image(sitk: Any, values: Array, spacing: list[float]) -> Any:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(spacing)
    return image


def write(folder: Path, masks: Path, people: list[Patient], questions: list[dict[str, Any]]) -> Path:
    """The dataset's folder, and the masks that ``TUMORCHAIN_MASKS_DIR`` names."""
    masks.mkdir(parents=True, exist_ok=True)
    for each in people:
        place = folder / "benchmark" / "ct" / each.name
        place.mkdir(parents=True)
        save_nifti(each.hu, each.affine, place / "ct.nii.gz")
        save_nifti(each.labels, each.affine, masks / f"{each.name}.nii.gz")
        save_nifti(each.lesions, each.affine, masks / f"{each.name}_lesions.nii.gz")
        save_nifti(each.segments, each.affine, masks / f"{each.name}_liver_segments.nii.gz")
    write_questions(folder, questions)
    return folder


def write_questions(folder: Path, questions: list[dict[str, Any]]) -> None:
    path = folder / "benchmark" / "test_qa.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "2.0", "num_questions": len(questions), "questions": questions}))


def numbered(questions: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"qid": f"bench_{k:05d}", **each} for k, each in enumerate(questions)]
