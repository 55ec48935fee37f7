"""Phantom cohorts on disk: NIfTI scans with label maps, lesion masks, truth and reports; or arrays for training."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.training.phantom.patient import Case, generate
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.phantom.text import clinical_stage, pathology_report, radiology_report

SPACING = (1.5, 1.5, 5.0)
"""Default voxel size of a written phantom in mm."""


def patient_id(seed: int) -> str:
    return f"phantom-{seed:07d}"


def truth_record(case: Case) -> dict[str, object]:
    """What is true of a case, for ``truth.json``; lengths in mm, coordinates RAS+."""
    truth = asdict(case.truth)
    lesions = [
        {key: value for key, value in asdict(lesion).items() if key not in ("rotation", "phase")}
        for lesion in case.lesions
    ]
    stage = clinical_stage(case.truth) if case.truth.organ else None
    return {
        "patient": patient_id(case.truth.seed),
        "notice": f"Synthetic phantom, no real patient. {DISCLAIMER}",
        **truth,
        "stage": stage,
        "lesions": lesions,
    }


def save_nifti(array: NDArray[np.generic], affine: NDArray[np.float64], path: Path) -> None:
    """Write ``.nii.gz`` whole or not at all; equal arrays give equal bytes."""
    image = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    image.set_sform(affine, 2)  # type: ignore[no-untyped-call]
    image.set_qform(affine, 2)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed:
        packed.write(image.to_bytes())
    os.replace(temporary, path)


def write_case(case: Case, folder: Path) -> Path:
    """One patient's folder: ``ct.nii.gz labels.nii.gz lesions.nii.gz truth.json report.txt pathology.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = case.grid.affine
    save_nifti(to_stored(case.hu), affine, folder / "ct.nii.gz")
    save_nifti(case.labels, affine, folder / "labels.nii.gz")
    save_nifti(case.lesion_mask, affine, folder / "lesions.nii.gz")
    (folder / "report.txt").write_text(radiology_report(case.truth) + "\n", encoding="utf-8")
    (folder / "pathology.txt").write_text(pathology_report(case.truth) + "\n", encoding="utf-8")
    (folder / "truth.json").write_text(json.dumps(truth_record(case), indent=1) + "\n", encoding="utf-8")
    return folder


def write_arrays(case: Case, folder: Path) -> Path:
    """One ``.npz`` for training segmentation: ``hu`` int16, ``labels`` uint8, both [x, y, z], and ``spacing``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{patient_id(case.truth.seed)}.npz"
    with path.with_suffix(".tmp").open("wb") as file:
        np.savez(file, hu=to_stored(case.hu), labels=case.labels, spacing=np.asarray(case.grid.spacing))
    os.replace(path.with_suffix(".tmp"), path)
    return path


def _write_one(job: tuple[int, str, tuple[float, float, float], bool]) -> str:
    seed, folder, spacing, arrays = job
    case = generate(seed, spacing)
    target = Path(folder)
    return str(write_arrays(case, target) if arrays else write_case(case, target / patient_id(seed)))


def write_cohort(
    folder: Path,
    count: int,
    seed: int,
    *,
    spacing: tuple[float, float, float] = SPACING,
    arrays: bool = False,
    workers: int = 2,
) -> Iterator[Path]:
    """Write patients ``seed`` … ``seed + count − 1``, yielding each as it is done; those already there are kept."""
    jobs = []
    for s in range(seed, seed + count):
        done = folder / (f"{patient_id(s)}.npz" if arrays else f"{patient_id(s)}/truth.json")
        if done.exists():
            yield done if arrays else done.parent
        else:
            jobs.append((s, str(folder), spacing, arrays))
    with ProcessPoolExecutor(workers) as pool:
        yield from (Path(p) for p in pool.map(_write_one, jobs))
