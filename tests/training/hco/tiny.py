"""A TumorCoT file of a few toy patients, and a configuration that trains a toy model on it in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.training.data.examples import HU, LABELS, fields, write_lines, write_patient
from tumorchain_agent.training.hco.config import TrainConfig
from tumorchain_agent.training.hco.load_config import load_config
from tumorchain_agent.training.hco.trainer import Run

PATIENTS = {"P-1": "train", "P-2": "train", "P-3": "train", "P-4": "train", "P-5": "test", "P-6": "test"}
ORGANS = ("liver", "spleen", "aorta")


def lines(name: str, split: str, questions: int = 2) -> list[dict[str, Any]]:
    """Questions about a patient, each of another subtask."""
    tasks = (("position", "organ"), ("lesion", "others"), ("tnm", "tumor"), ("report", "report"))
    found = []
    for k in range(questions):
        task, subtask = tasks[k % len(tasks)]
        organ = ORGANS[(int(name[2:]) + k) % 2]
        rounds = [
            {"organs": [], "text": f"The {organ} needs a closer look."},
            {
                "organs": [organ],
                "text": f"Findings: a mass of the {organ}. Impression: tumor. Answer: {organ}.",
            },
        ]
        mine = {"id": f"{name}/{k}", "patient": name, "task": task, "subtask": subtask, "split": split}
        files = {"scan": f"{name}/ct.nii.gz", "label_map": f"{name}/labels.nii.gz"}
        told = {"rounds": rounds, "conclusion": f"Answer: {organ}.", "answer": organ}
        sick = {"provenance": {"abnormal_organs": [organ]}}
        found.append(fields(**mine, **files, **told, **sick, question=f"Question {k} of {name}?"))
    return found


def cohort(folder: Path, questions: int = 2) -> Path:
    """Scans, label maps and the TumorCoT file that names them."""
    for k, name in enumerate(PATIENTS):
        noise = np.random.default_rng(k).normal(0, 15, HU.shape)
        write_patient(folder, name, hu=HU + noise, labels=LABELS)
    every = [line for name, split in PATIENTS.items() for line in lines(name, split, questions)]
    return write_lines(folder / "cot.jsonl", *every)


VIT = {"kind": "vit", "width": 16, "mlp_width": 32, "layers": 1, "heads": 1}
"""For tests that divide scans otherwise: its gradients are the same to 1e-6 of the largest. The nano encoder's, sums
over half a million voxels, differ by 1e-3 in float32, when two scans go one by one and not together, and by 1e-14 in
float64 (measured with torch 2.13)."""


def settings(records: Path, **changes: Any) -> dict[str, Any]:
    """A configuration's keys; ``stage`` changes those of its one stage."""
    encoder = {"kind": "nano", "width": 16, "stem": [4, 4, 8], "heads": 2, "peaks": 4, "global_layers": 1}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_window_layers": 2}
    stage = {
        "name": "cot",
        "form": "cot",
        "rates": {"encoder": 1e-3, "projector": 1e-3, "cls": 1e-3, "llm": 1e-3},
        "steps": 4,
    } | changes.pop("stage", {})
    return {
        "model": {
            "size": "nano",
            "encoder": changes.pop("encoder", encoder),
            "llm_sizes": sizes | {"num_attention_heads": 2, "num_key_value_heads": 1},
            "vocabulary": 300,
        },
        "data": {"records": str(records), "workers": 0, "cache": str(records.parent / "cache")}
        | changes.pop("data", {}),
        "batch": 2,
        "questions_per_scan": 1,
        "validate_every": 1000,
        "save_every": 2,
        "validation_units": 1,
        "log_every": 1,
        "stages": [stage],
        **changes,
    }


def steps_only(run: Run) -> Run:
    """The run without its exports, for tests that look at steps and weights."""
    return replace(run, export=lambda name, place: None)


def config(records: Path, **changes: Any) -> TrainConfig:
    path = records.parent / "config.yaml"
    path.write_text(yaml.safe_dump(settings(records, **changes)), encoding="utf-8")
    return load_config(path)
