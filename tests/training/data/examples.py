"""A good sample to spoil, and scans on disk to go with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import torso, torso_grid
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.phantom.export import save_nifti

AFFINE, SHAPE = torso_grid(12.0)
HU, LABELS = torso(AFFINE, SHAPE)
"""The torso's label map holds liver, spleen, aorta and a lumbar vertebra (id 29), and no pancreas."""

GOOD: dict[str, Any] = {
    "format_version": 1,
    "id": "P-1/1",
    "patient": "P-1",
    "scan": "P-1/ct.nii.gz",
    "label_map": "P-1/labels.nii.gz",
    "task": "position",
    "subtask": "organ",
    "question": "Which organ holds the tumor?",
    "rounds": [
        {"organs": [], "text": "The liver and the spleen need a closer look."},
        {"organs": ["liver", "spleen"], "text": "Findings: a mass of the liver. Answer: liver."},
    ],
    "conclusion": "Answer: liver.",
    "answer": "liver",
    "answer_type": "open",
    "split": "train",
}
CHOICE = {"answer_type": "choice", "choices": {"A": "spleen", "B": "liver"}, "correct": "B"}


def fields(**changes: Any) -> dict[str, Any]:
    """The good sample's fields; ``...`` takes one away."""
    changed = {**GOOD, **changes}
    return {name: value for name, value in changed.items() if value is not ...}


def sample(**changes: Any) -> CoTSample:
    return CoTSample.model_validate(fields(**changes))


def numbered(index: int, patient: int | None = None, **changes: Any) -> dict[str, Any]:
    """Sample ``index`` of a patient, unlike every other."""
    name = f"P-{index if patient is None else patient}"
    mine = {"id": f"{name}/{index}", "patient": name, "question": f"{GOOD['question']} ({index})"}
    return fields(**{**mine, "scan": f"{name}/ct.nii.gz", "label_map": f"{name}/labels.nii.gz", **changes})


def write_lines(path: Path, *lines: dict[str, Any] | str) -> Path:
    """Objects and raw lines as a file."""
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def write_patient(folder: Path, name: str = "P-1", *, labels: Any = LABELS, hu: Any = HU) -> Path:
    """A patient's scan and label map below ``folder``; the patient's own folder."""
    place = folder / name
    place.mkdir(parents=True)
    save_nifti(np.asarray(hu, np.float32), AFFINE, place / "ct.nii.gz")
    save_nifti(np.asarray(labels, np.uint8), AFFINE, place / "labels.nii.gz")
    return place
