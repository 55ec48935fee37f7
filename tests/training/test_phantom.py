"""Phantoms: seeded, labelled with TotalSegmentator ids, and true to what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tumorchain_agent.tools.organs import STRUCTURES, mentioned_organs
from tumorchain_agent.tools.tnm import parse_tnm
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS
from tumorchain_agent.training.phantom.export import write_arrays, write_case
from tumorchain_agent.training.phantom.patient import ORGANS, Case, Truth, generate, realise, sample_plan
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.phantom.reports import clinical_stage
from tumorchain_agent.training.phantom.text import compose, final_text
from tumorchain_agent.training.phantom.volume import model_grid, to_model_axes, windowed
from tumorchain_agent.training.tasks import SUBTASKS

COARSE = (3.0, 3.0, 6.0)


@pytest.fixture(scope="module")
def sick() -> list[Case]:
    """One patient of each primary, those whose tumour found room."""
    cases = [generate(40 + k, COARSE, organ=organ) for k, organ in enumerate(ORGANS)]
    return [case for case in cases if case.truth.organ]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (write_case(generate(7, COARSE), tmp_path / name) for name in "ab")
    for name in ("ct.nii.gz", "labels.nii.gz", "lesions.nii.gz", "truth.json", "report.txt", "pathology.txt"):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_another_seed_gives_another_patient() -> None:
    first, second = (to_stored(generate(s, COARSE).hu) for s in (7, 8))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_labels_are_totalsegmentator_ids_and_the_five_organs_are_there(sick: list[Case]) -> None:
    assert len(sick) >= 4
    for case in sick:
        found = set(np.unique(case.labels).tolist()) - {0}
        assert found <= set(STRUCTURES)
        assert set(ORGAN_IDS.values()) <= found


def test_a_tumour_belongs_to_its_organs_mask(sick: list[Case]) -> None:
    for case in sick:
        main = [
            k
            for k, lesion in enumerate(case.lesions)
            if lesion.kind == "tumor" and lesion.organ == case.truth.organ
        ]
        inside = case.labels[np.isin(case.lesion_index, [k + 1 for k in main])]
        assert inside.size > 0
        assert (inside == ORGAN_IDS[str(case.truth.organ)]).mean() > 0.6


def test_a_phantom_without_disease_has_no_malignant_voxel() -> None:
    case = generate(11, COARSE, tumor_share=0.0)
    assert case.truth.organ is None
    assert not case.truth.abnormal_organs
    assert not np.isin(case.lesion_mask, (1, 2)).any()


def test_one_anatomy_has_the_same_volumes_on_other_grids() -> None:
    plan = sample_plan(21, tumor_share=0.0)
    volumes = []
    for spacing in ((1.5, 1.5, 3.0), (2.5, 2.5, 5.0)):
        case = generate(plan.seed, spacing, tumor_share=0.0)
        counts = np.bincount(case.labels.ravel(), minlength=118)
        volumes.append(
            [counts[ORGAN_IDS[o]] * case.grid.voxel_mm3 / 1000 for o in ("liver", "stomach", "pancreas")]
        )
    fine, coarse = volumes
    assert np.allclose(fine, coarse, rtol=0.06)


def test_training_volumes_look_like_preprocessed_scans(tmp_path: Path) -> None:
    """The shortcut that renders in model space agrees with writing, opening and preprocessing a scan."""
    from tumorchain_agent.tools.preprocess import preprocess
    from tumorchain_agent.tools.scan import open_ct

    plan = sample_plan(33, tumor_share=0.0)
    direct = realise(plan, model_grid(plan))
    scan = write_case(generate(33, (1.5, 1.5, 5.0), tumor_share=0.0), tmp_path) / "ct.nii.gz"
    volume = preprocess(open_ct(scan)).volume[0]
    halved = volume.reshape(32, 128, 2, 128, 2).mean((2, 4))
    shortcut = windowed(to_model_axes(direct.hu))
    assert np.corrcoef(halved.ravel(), shortcut.ravel())[0, 1] > 0.9
    assert abs(float(halved.mean() - shortcut.mean())) < 0.02


def test_the_truths_stage_follows_from_its_tnm(sick: list[Case]) -> None:
    for case in sick:
        assert clinical_stage(case.truth) is not None


def test_an_answer_names_only_organs_that_were_examined(sick: list[Case]) -> None:
    rng = np.random.default_rng(3)
    suspicion = {"liver": 0.2, "pancreas": 0.7, "stomach": 0.4, "colorectum": 0.1, "esophagus": 0.05}
    for case in sick:
        for subtask in SUBTASKS:
            sample = compose(rng, case.truth, subtask, suspicion)
            shown = {organ for organs in sample.organs for organ in organs}
            assert set(mentioned_organs(sample.texts[-1])) <= shown
            assert len(sample.texts) == len(sample.organs)
            assert sample.organs[0] == ()


def test_every_earlier_round_names_what_the_next_one_is_shown(sick: list[Case]) -> None:
    rng = np.random.default_rng(4)
    suspicion = {"liver": 0.9, "pancreas": 0.05, "stomach": 0.5}
    for case in sick:
        sample = compose(rng, case.truth, "organ", suspicion)
        for text, organs in zip(sample.texts[:-1], sample.organs[1:], strict=True):
            assert tuple(mentioned_organs(text)) == organs


def test_the_tnm_in_the_text_reads_back_as_the_truth(sick: list[Case]) -> None:
    for case in sick:
        t = case.truth
        read = parse_tnm(final_text(t, list(ORGANS), "report"), t.organ)
        assert (read.t, read.n, read.m) == (t.t, t.n, t.m)
        assert not read.flags


def test_an_absent_organ_is_said_to_be_not_assessed() -> None:
    truth = generate(11, COARSE, tumor_share=0.0).truth
    text = final_text(truth, ["liver"], "tumor_position", "esophagus", ("esophagus",))
    assert "esophagus is not in the scan and was not assessed" in text
    assert "no tumor of the esophagus" not in text


def test_arrays_for_segmentation_hold_the_same_voxels(tmp_path: Path) -> None:
    case = generate(5, COARSE)
    with np.load(write_arrays(case, tmp_path)) as saved:
        assert np.array_equal(saved["labels"], case.labels)
        assert np.array_equal(saved["hu"], to_stored(case.hu))
        assert saved["spacing"].tolist() == list(COARSE)


def test_sizes_of_tumours_match_their_masks(sick: list[Case]) -> None:
    """The nominal diameter of a liver or pancreas tumour is that of its mask, to within the coarse grid."""
    for case in sick:
        if case.truth.organ not in ("liver", "pancreas") or case.truth.count != 1:
            continue
        k = next(i for i, lesion in enumerate(case.lesions) if lesion.kind == "tumor")
        points = np.argwhere(case.lesion_index == k + 1) * np.asarray(COARSE)
        extent = np.linalg.norm(points.max(0) - points.min(0))
        assert 0.5 * case.truth.size_mm < extent < 2.2 * case.truth.size_mm


def test_truth_is_a_plain_record() -> None:
    assert isinstance(generate(1, COARSE).truth, Truth)
