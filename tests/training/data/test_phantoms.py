"""TumorCoT lines of phantoms: true to their truth, fit for the files beside them, the same for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tumorchain_agent.cli import main
from tumorchain_agent.errors import DataError
from tumorchain_agent.tools.organs import mentioned_organs
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.data.phantoms import (
    PhantomPatient,
    cohort_folders,
    cohort_samples,
    neutral_suspicion,
    read_patient,
    samples_of,
)
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.split import side_of
from tumorchain_agent.training.data.validate import validate_file
from tumorchain_agent.training.phantom.export import write_cohort
from tumorchain_agent.training.phantom.patient import ORGANS
from tumorchain_agent.training.phantom.text import QUESTIONS, short_answer
from tumorchain_agent.training.tasks import SUBTASKS

SPACING = (5.0, 5.0, 10.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms as ``write_cohort`` writes them."""
    folder = tmp_path_factory.mktemp("cohort")
    assert len(list(write_cohort(folder, 3, 60, spacing=SPACING, workers=1))) == 3
    return folder


def all_samples(cohort: Path, questions: int = 12) -> list[CoTSample]:
    return list(cohort_samples(cohort_folders(cohort), cohort / "a.jsonl", questions=questions))


def test_a_patients_folder_tells_truth_and_organs_in_the_scan(cohort: Path) -> None:
    patients = [read_patient(folder) for folder in cohort_folders(cohort)]
    assert [each.truth.seed for each in patients] == [60, 61, 62]
    assert all(set(each.organs) <= set(ORGANS) for each in patients)
    assert any(each.truth.organ for each in patients)
    told = json.loads((patients[0].folder / "truth.json").read_text())
    assert (patients[0].truth.organ, patients[0].truth.size_mm) == (told["organ"], told["size_mm"])
    assert patients[0].truth.abnormal_organs == tuple(told["abnormal_organs"])


def test_each_subtask_is_asked_once_of_each_patient(cohort: Path) -> None:
    samples = all_samples(cohort)
    assert Counter(each.subtask for each in samples) == dict.fromkeys(SUBTASKS, 3)
    assert len({(each.patient, each.subtask) for each in samples}) == 36
    assert {each.answer_type for each in samples} == {"open"}


def test_answers_are_those_of_the_truth(cohort: Path) -> None:
    truths = {folder.name: read_patient(folder) for folder in cohort_folders(cohort)}
    for sample in all_samples(cohort, questions=20):
        patient = truths[sample.patient]
        asked = sample.provenance["asked_organ"]
        if asked in patient.organs or asked is None:
            wanted = short_answer(patient.truth, sample.subtask, None if asked is None else str(asked))
            assert sample.answer == wanted
        else:
            assert sample.answer.endswith("not assessed")
        assert sample.conclusion == f"Answer: {sample.answer}."
        assert sample.rounds[-1].text.endswith(sample.conclusion)


def test_a_round_names_the_organs_that_the_next_one_is_shown(cohort: Path) -> None:
    for sample in all_samples(cohort):
        for before, after in zip(sample.rounds[:-1], sample.rounds[1:], strict=True):
            assert tuple(mentioned_organs(before.text)) == after.organs


def test_the_file_validates_with_its_scans(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "phantoms.jsonl.gz"
    assert main(["data", "from-phantoms", str(cohort), str(out), "--questions", "14"]) == 0
    found = validate_file(out, scans=True)
    assert (found.lines, found.problems) == (42, ())
    assert found.summary.patients.both == 3
    assert next(read_samples(out)).split == side_of("phantom-0000060")


def test_an_organ_that_is_not_in_the_scan_is_marked_absent(cohort: Path) -> None:
    whole = read_patient(cohort_folders(cohort)[0])
    patient = PhantomPatient(whole.truth, ("liver", "pancreas"), whole.folder)
    samples = list(samples_of(patient, 1, ["tumor_position"] * 15, folder=cohort))
    asked = {str(each.provenance["asked_organ"]): each for each in samples}
    assert set(asked) == set(ORGANS)
    stomach = asked["stomach"]
    assert stomach.answer == "stomach not assessed"
    assert stomach.rounds[1].absent == ("stomach",)
    assert "The stomach is not in the scan and was not assessed." in stomach.rounds[-1].text
    assert asked["liver"].rounds[1].absent == ()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        path = tmp_path / f"{name}.jsonl"
        assert main(["data", "from-phantoms", str(cohort), str(path), "--seed", str(seed)]) == 0
        written.append(path.read_bytes())
    assert written[0] == written[1] != written[2]
    assert "Synthetic, no real patients." in capsys.readouterr().out


def test_a_patients_questions_do_not_depend_on_the_others(cohort: Path) -> None:
    folders = cohort_folders(cohort)
    alone = list(cohort_samples(folders[2:3], cohort / "a.jsonl"))
    assert alone == [each for each in all_samples(cohort) if each.patient == folders[2].name]


def test_no_question_is_asked_twice_and_more_than_all_wordings_can_not_be_asked(cohort: Path) -> None:
    (folder, *_) = cohort_folders(cohort)
    samples = list(cohort_samples([folder], cohort / "a.jsonl", questions=200))
    asked = [(each.subtask, each.question) for each in samples]
    wordings = sum(len(texts) * (len(ORGANS) if "{organ}" in texts[0] else 1) for texts in QUESTIONS.values())
    assert len(asked) == len(set(asked))
    assert 0.6 * wordings < len(asked) <= wordings


def test_the_neutral_prior_knows_nothing_of_the_truth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [neutral_suspicion(rng, ORGANS) for _ in range(4000)]
    means = [float(np.mean([each[organ] for each in drawn])) for organ in ORGANS]
    assert means == pytest.approx([1 / 3] * 5, abs=0.02), "the mean of Beta(1, 2), for every organ"
    named = np.mean([each["liver"] > 0.3 for each in drawn])
    assert named == pytest.approx(0.7**2, abs=0.04), "P(p > 0.3) under Beta(1, 2) is 0.7²"


def test_what_a_model_suspects_takes_the_priors_place(cohort: Path) -> None:
    patient = read_patient(cohort_folders(cohort)[0])
    suspicion = dict.fromkeys(patient.organs, 0.01) | {"pancreas": 0.9}
    samples = samples_of(patient, 0, ["organ", "shape"], folder=cohort, suspicion=suspicion)
    assert {each.rounds[1].organs[0] for each in samples} <= {"pancreas", patient.truth.organ}


def test_a_folder_without_phantoms_or_with_damaged_ones_is_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no phantoms with truth\.json; make some with"):
        cohort_folders(tmp_path)
    source = cohort_folders(cohort)[0]
    for name, content, words in (
        ("truth.json", b"{", "truth.json: not JSON"),
        ("truth.json", b'{"seed": 1}', "phase, organ, .* are missing"),
        ("labels.nii.gz", b"\x1f\x8b", "cut off or damaged"),
    ):
        folder = tmp_path / "phantom"
        folder.mkdir(exist_ok=True)
        for file in ("truth.json", "labels.nii.gz"):
            (folder / file).write_bytes((source / file).read_bytes())
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{words}.*make the cohort again"):
            read_patient(folder)


def test_a_damaged_patient_leaves_no_half_written_file(cohort: Path, tmp_path: Path) -> None:
    for folder in cohort_folders(cohort)[:2]:
        (tmp_path / "cohort" / folder.name).mkdir(parents=True)
        (tmp_path / "cohort" / folder.name / "truth.json").write_bytes((folder / "truth.json").read_bytes())
    labels = cohort_folders(cohort)[0] / "labels.nii.gz"
    (tmp_path / "cohort" / labels.parent.name / labels.name).write_bytes(labels.read_bytes())
    assert main(["data", "from-phantoms", str(tmp_path / "cohort"), str(tmp_path / "a.jsonl")]) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cohort"]
