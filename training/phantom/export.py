"""Phantom cohorts on disk: NIfTI scans with label maps, lesion masks, truth and reports; or arrays for training."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import InputError
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.training.phantom.patient import Case, generate
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.phantom.reports import clinical_stage, pathology_report, radiology_report
from tumorchain_agent.training.phantom.volume import PIXELS, SLICES, generate_nano
from tumorchain_agent.training.workers import worker_pool

SPACING = (1.5, 1.5, 5.0)
"""Default voxel size of a written phantom in mm."""
GENERATOR = 4
"""Raised when the same seed gives another patient; cohorts of two generators don't mix."""


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
        "generator": GENERATOR,
        "grid": {"shape": case.grid.shape, "spacing_mm": case.grid.spacing},
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


@dataclass(frozen=True)
class _Job:
    seed: int
    folder: Path
    spacing: tuple[float, float, float] | None
    """``None``: the grid of nano."""
    arrays: bool

    @property
    def done(self) -> Path:
        """What is written last."""
        name = patient_id(self.seed)
        return self.folder / (f"{name}.npz" if self.arrays else f"{name}/truth.json")

    @property
    def result(self) -> Path:
        return self.done if self.arrays else self.done.parent

    def run(self) -> Path:
        case = generate_nano(self.seed) if self.spacing is None else generate(self.seed, self.spacing)
        return write_arrays(case, self.folder) if self.arrays else write_case(case, self.result)

    def check(self) -> None:
        """That the patient who is there is the one who would be written. Raises InputError."""
        if self.arrays:
            return
        try:
            told = json.loads(self.done.read_text("utf-8"))
            generator, grid = told.get("generator"), told.get("grid", {})
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"{self.done} is damaged ({error}); delete it to have it written anew"
            ) from error
        if generator != GENERATOR:
            raise InputError(f"{self.done.parent} is of another version's cohort; name another folder")
        shape, spacing = grid.get("shape"), tuple(grid.get("spacing_mm", ()))
        if spacing != self.spacing if self.spacing else shape != [PIXELS, PIXELS, SLICES]:
            raise InputError(f"{self.done.parent} has another resolution; name another folder")


def unwritten(folder: Path, count: int, seed: int, *, arrays: bool = False) -> int:
    """How many patients ``write_cohort`` would still have to write."""
    return sum(not _Job(each, folder, None, arrays).done.exists() for each in range(seed, seed + count))


def write_cohort(
    folder: Path,
    count: int,
    seed: int,
    *,
    spacing: tuple[float, float, float] | None = SPACING,
    arrays: bool = False,
    workers: int = 2,
) -> Iterator[Path]:
    """Write patients ``seed`` … ``seed + count − 1``, yielding each as it is done; those already there are kept.

    ``spacing`` is in mm; ``None`` gives the (128, 128, 32) grid of nano. Raises InputError for patients there
    that another version or another resolution has written.
    """
    jobs = []
    for job in (_Job(each, folder, spacing, arrays) for each in range(seed, seed + count)):
        if job.done.exists():
            job.check()
            yield job.result
        else:
            jobs.append(job)
    if jobs:
        with worker_pool(min(workers, len(jobs))) as pool:
            yield from pool.map(_Job.run, jobs)
