"""TumorCoT lines for phantoms: the questions and rounds of ``phantom.text`` about the patients of a cohort.

A round's organs depend on what Cls suspects. Without a model, ``neutral_suspicion`` stands in for it: p(abnormal) of
each organ is drawn from Beta(1, 2), whether it is ill or not, so that about half the organs are named for a closer
look and nothing in the rounds gives the truth away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tumorchain_agent.errors import DataError, LabelMapError
from tumorchain_agent.tools.read_nifti import read_nifti
from tumorchain_agent.tools.scan import MAX_VOXELS
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.record import SCHEMA_VERSION, CoTRound, CoTSample
from tumorchain_agent.training.data.split import TEST_SHARE, relative_to, side_of
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS
from tumorchain_agent.training.phantom.export import patient_id
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.text import Sample, answer_text, closing, compose
from tumorchain_agent.training.tasks import SUBTASKS, TASK_OF

SCAN, LABELS, TRUTH = "ct.nii.gz", "labels.nii.gz", "truth.json"
PRIOR: Final = (1.0, 2.0)
"""a and b of the Beta distribution of ``neutral_suspicion``."""
_TAG: Final = 20260312
_TRIES: Final = 30
"""Draws before a subtask's wordings are held to be used up for a patient."""
_TURNS: Final = 24
"""Times that all subtasks take their turn; most have fewer wordings."""

_TRUTH: Final[TypeAdapter[Truth]] = TypeAdapter(Truth)


@dataclass(frozen=True)
class PhantomPatient:
    """A phantom as its folder tells it."""

    truth: Truth
    organs: tuple[str, ...]
    """Those of the five that its label map holds."""
    folder: Path


def read_patient(folder: Path) -> PhantomPatient:
    """A patient's folder as ``write_cohort`` makes it. DataError when something of it is missing or damaged."""
    remedy = "make the cohort again with tumorchain-agent phantom"
    try:
        truth = _TRUTH.validate_json((folder / TRUTH).read_bytes())
        labels = read_nifti(folder / LABELS, volume=None, max_voxels=MAX_VOXELS, error=LabelMapError)
    except OSError as error:
        raise DataError(f"{folder / TRUTH} can't be read ({error.strerror}); {remedy}") from error
    except ValidationError as error:
        raise DataError(f"{folder / TRUTH}: {explain(error)}; {remedy}") from error
    except LabelMapError as error:
        raise DataError(f"{folder}: {error}; {remedy}") from error
    ids = set(np.unique(labels.values).tolist())
    organs = tuple(organ for organ in ORGANS if ORGAN_IDS[organ] in ids)
    if not organs:
        raise DataError(f"{folder / LABELS} holds none of {', '.join(ORGANS)}; {remedy}")
    return PhantomPatient(truth, organs, folder)


def neutral_suspicion(rng: np.random.Generator, organs: Sequence[str]) -> dict[str, float]:
    """p(abnormal) of each organ, independent of the truth."""
    return {organ: float(rng.beta(*PRIOR)) for organ in organs}


def samples_of(
    patient: PhantomPatient,
    seed: int,
    subtasks: Sequence[str] = SUBTASKS,
    *,
    folder: Path,
    suspicion: Mapping[str, float] | None = None,
) -> Iterator[CoTSample]:
    """One sample for each of ``subtasks``, in order, for a file in ``folder``; same seed, same samples.

    A subtask that comes again is asked in other words or of another organ, and is left out when those are used up.
    ``suspicion`` is Cls's p(abnormal) of the organs in the scan; the neutral prior by default.
    """
    rng = np.random.default_rng([_TAG, seed, patient.truth.seed])
    asked: set[tuple[str, str]] = set()
    for subtask in subtasks:
        for _ in range(_TRIES):
            beliefs = dict(suspicion or neutral_suspicion(rng, patient.organs))
            sample = compose(rng, patient.truth, subtask, beliefs)
            if (subtask, sample.question) not in asked:
                asked.add((subtask, sample.question))
                yield _line(patient, sample, len(asked), seed, folder)
                break


def _line(patient: PhantomPatient, sample: Sample, number: int, seed: int, folder: Path) -> CoTSample:
    truth, name = patient.truth, patient_id(patient.truth.seed)
    absent = tuple(organ for shown in sample.organs for organ in shown if organ not in patient.organs)
    answer = answer_text(truth, sample.subtask, sample.asked_organ, absent)
    rounds = tuple(
        CoTRound(organs=shown, absent=tuple(o for o in shown if o in absent), text=text)
        for shown, text in zip(sample.organs, sample.texts, strict=True)
    )
    return CoTSample(
        format_version=SCHEMA_VERSION,
        id=f"{name}/{number}",
        patient=name,
        scan=relative_to(patient.folder / SCAN, folder),
        label_map=relative_to(patient.folder / LABELS, folder),
        task=TASK_OF[sample.subtask],
        subtask=sample.subtask,
        question=sample.question,
        rounds=rounds,
        conclusion=closing(answer),
        answer=answer,
        answer_type="open",
        split=side_of(name, test=TEST_SHARE, seed=seed),
        provenance={
            "source": "phantom",
            "asked_organ": sample.asked_organ,
            "tumor_organ": truth.organ,
            "abnormal_organs": list(truth.abnormal_organs),
        },
    )


def cohort_folders(cohort: Path) -> list[Path]:
    """The patients' folders by name. DataError when there is none."""
    folders = sorted(path.parent for path in cohort.glob(f"*/{TRUTH}"))
    if not folders:
        raise DataError(
            f"{cohort} holds no phantoms with {TRUTH}; make some with tumorchain-agent phantom {cohort} --n 20"
        )
    return folders


def cohort_samples(
    folders: Sequence[Path],
    out: Path,
    *,
    questions: int = len(SUBTASKS),
    seed: int = 0,
    on_patient: Callable[[], None] | None = None,
) -> Iterator[CoTSample]:
    """Samples of every patient for the file ``out``: ``questions`` of each, all subtasks in turn.

    There are fewer where the wordings are used up.
    """
    for folder in folders:
        patient = read_patient(folder)
        rng = np.random.default_rng([_TAG + 1, seed, patient.truth.seed])
        turns = [str(name) for _ in range(min(questions, _TURNS)) for name in rng.permutation(SUBTASKS)]
        yield from islice(samples_of(patient, seed, turns, folder=out.parent), questions)
        if on_patient:
            on_patient()
