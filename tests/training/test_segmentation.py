"""Training of the nano segmentation network: loss, augmentation, export, resuming, a toy run end to end."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tests.segmentation_toys import LIVER, LUMBAR_3, STOMACH, toy_patient, write_toy_cases
from tumorchain_agent.errors import InputError, TumorChainError
from tumorchain_agent.tools.organs import ORGANS, STRUCTURES
from tumorchain_agent.tools.segment_weights import installed
from tumorchain_agent.training.segmentation import (
    MAX_SKIPPED,
    SegmentationTraining,
    Trainer,
    dice_per_organ,
    loss_terms,
    predict_case,
    schedule,
    summarize,
    train_segmentation,
)
from tumorchain_agent.training.segmentation_data import (
    IGNORE,
    Augmentation,
    Case,
    CaseFolder,
    Sampler,
    read_case,
)
from tumorchain_agent.training.segmentation_network import (
    INTENSITY,
    STRIDE,
    build_network,
    expand_outputs,
    export,
    normalize,
)

CPU = torch.device("cpu")
QUIET = Augmentation(
    crop=(32, 32, 32),
    p_z_cut=0,
    p_spatial=0,
    p_thick_slices=0,
    p_blur=0,
    contrast=(1, 1),
    shift_hu=0,
    organ_shift_hu=0,
    noise_hu=0,
    p_gamma=0,
)
TOY = SegmentationTraining(
    augmentation=replace(Augmentation(), crop=(48, 48, 48)), held_out=2, log_every=20, save_every=1000
)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_cases(tmp_path_factory.mktemp("cases"), 8)


def folder(cases: Path) -> CaseFolder:
    return CaseFolder(cases.glob("*.npz"))


def test_loss_is_cross_entropy_and_soft_dice_over_known_voxels(rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.normal(size=(2, 5, 4, 3, 6)).astype(np.float32))
    target = torch.from_numpy(rng.integers(0, 4, (2, 4, 3, 6)))
    target[0, 0] = IGNORE
    cross_entropy, dice = loss_terms(logits, target)
    torch.testing.assert_close(cross_entropy, F.cross_entropy(logits, target, ignore_index=IGNORE))
    known = target != IGNORE
    p = logits.softmax(1).movedim(1, -1)[known]
    truth = F.one_hot(target[known], 5).float()
    expected = ((2 * (p * truth).sum(0) + 1) / (p.sum(0) + truth.sum(0) + 1))[:4]
    torch.testing.assert_close(dice, 1 - expected.mean())


def test_a_crop_keeps_image_and_labels_together(rng: np.random.Generator) -> None:
    """HU is written as a function of the label, so every voxel of the sample can be checked."""
    labels = rng.integers(0, 100, (40, 30, 50)).astype(np.uint8)
    sampler = Sampler(_Fixed(labels.astype(np.int16) * 4 - 200, labels), QUIET, 0, CPU)
    for _ in range(5):
        image, target = sampler.sample()
        assert image.shape == (1, 1, 32, 32, 32)
        inside = target != IGNORE
        assert (~inside).any(), "30 voxels are padded to 32"
        torch.testing.assert_close(image[0][inside], normalize(target[inside] * 4.0 - 200))
        assert (image[0][~inside] == 0).all()


class _Fixed(CaseFolder):
    def __init__(self, hu: NDArray[np.int16], labels: NDArray[np.uint8]) -> None:
        super().__init__([])
        self.case = Case("fixed", hu, labels)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Case:
        return self.case


def test_a_rotated_and_scaled_crop_keeps_image_and_labels_together() -> None:
    z, y, x = np.meshgrid(*(np.arange(n) for n in (60, 64, 70)), indexing="ij")
    labels = (1 + (z // 12) + 5 * (y // 16) + 20 * (x // 18)).astype(np.uint8)
    options = replace(QUIET, p_spatial=1, rotation=(25.0, 15.0, 15.0), crop=(48, 48, 48))
    sampler = Sampler(_Fixed(labels.astype(np.int16) * 4 - 200, labels), options, 3, CPU)
    for _ in range(4):
        image, target = sampler.sample()
        inside = target != IGNORE
        agree = (image[0] - normalize(target * 4.0 - 200)).abs() < 1e-3
        assert agree[inside].float().mean() > 0.5, "only voxels at a border between labels may differ"
        assert len(np.unique(target[inside].numpy())) > 8


def test_the_same_seed_draws_the_same_samples(cases: Path) -> None:
    options = Augmentation(crop=(32, 32, 32), p_spatial=1, p_blur=1, p_thick_slices=1, p_gamma=1)
    draws = [Sampler(folder(cases), options, seed, CPU).sample() for seed in (5, 5, 6)]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[2][0])


def test_cases_are_brought_to_3_mm_in_nnunet_axis_order(tmp_path: Path) -> None:
    hu, labels = toy_patient(0, 48, (1.5, 1.5, 6.0))
    np.savez(tmp_path / "case.npz", hu=hu, labels=labels, spacing=np.array([1.5, 1.5, 6.0]))
    case = read_case(tmp_path / "case.npz")
    assert case.hu.shape == case.labels.shape == (40, 48, 48)
    assert set(np.unique(case.labels)) == {0, LIVER, STOMACH, LUMBAR_3}
    truth = toy_patient(0, 48)[1].T
    assert dice_per_organ(case.labels, truth)["liver"] > 0.85


def test_a_file_that_is_no_case_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "case.npz", image=np.zeros(3))
    with pytest.raises(InputError, match=r"case\.npz has no readable hu"):
        read_case(tmp_path / "case.npz")


def test_expanded_outputs_are_the_trained_ones_in_their_places() -> None:
    classes = (0, LIVER, STOMACH, LUMBAR_3)
    network = build_network(4).eval()
    full = expand_outputs(network, classes).eval()
    image = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        few, many = network(image), full(image)
    assert many.shape[1] == 118
    torch.testing.assert_close(many[:, list(classes)], few)
    rest = [number for number in range(118) if number not in classes]
    assert float(many[:, rest].max()) == -200
    with pytest.raises(ValueError, match="begin with 0"):
        expand_outputs(network, (5, 0, 6, 29))


def test_exported_weights_are_in_totalsegmentators_layout_and_small(tmp_path: Path) -> None:
    from totalsegmentator.map_tasks_config import TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS

    model = export(build_network(50), tuple(range(50)), tmp_path, provenance={"trained_on": "phantoms"})
    fast = TASK_CONFIGS["total"]["sub_modes"]["fast"]
    assert model.parent.name == TASK_ID_WEIGHTS_CONFIGS[fast["task_id"]]["foldername"]
    assert model.name == f"{fast['trainer']}__nnUNetPlans__3d_fullres"
    assert json.loads((model / "dataset.json").read_text())["labels"] == {"background": 0} | {
        name: key for key, name in STRUCTURES.items()
    }
    plans = json.loads((model / "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [fast["resample"]] * 3
    assert plans["foreground_intensity_properties_per_channel"]["0"].items() >= INTENSITY.items()
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size < 8e6
    assert not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("*.part"))


def test_organs_that_were_never_trained_are_named(tmp_path: Path) -> None:
    export(build_network(3), (0, 5, 6), tmp_path)
    weights = installed(tmp_path, "fast", "nano")
    assert weights is not None
    assert set(ORGANS.values()) - set(weights.organs_unknown) == {"liver", "stomach"}


def test_normalisation_is_nnunets_ct_normalisation(rng: np.random.Generator) -> None:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    hu = rng.uniform(-1200, 2000, (4, 5, 6)).astype(np.float32)
    theirs = CTNormalization(False, INTENSITY).run(hu.copy())
    torch.testing.assert_close(normalize(torch.from_numpy(hu)), torch.from_numpy(theirs))


def test_a_whole_case_is_predicted_on_its_own_grid() -> None:
    hu, labels = toy_patient(0, 40)
    case = Case("toy", np.ascontiguousarray(hu.T[:21]), np.ascontiguousarray(labels.T[:21]))
    predicted = predict_case(build_network(4).eval(), case, CPU)
    assert predicted.shape == case.hu.shape
    assert all(n % STRIDE for n in case.hu.shape)


def test_dice_is_by_organ_and_absent_organs_are_left_out() -> None:
    truth = np.array([5, 5, 5, 5, 6, 6, 0, 0], np.uint8)
    predicted = np.array([5, 5, 0, 0, 6, 6, 6, 1], np.uint8)
    scores = dice_per_organ(predicted, truth)
    assert scores == pytest.approx({"liver": 2 * 2 / (2 + 4), "stomach": 2 * 2 / (3 + 2)})
    mean = summarize([scores, {"liver": 1.0, "spleen": 0.5}])
    assert mean["liver"] == pytest.approx((2 / 3 + 1) / 2)
    assert mean["five"] == pytest.approx((mean["liver"] + mean["stomach"]) / 2)
    assert mean["all"] == pytest.approx((mean["liver"] + mean["stomach"] + 0.5) / 3)


def test_the_learning_rate_rises_and_then_falls() -> None:
    rates = [schedule(progress / 100, 0.1) for progress in range(101)]
    assert rates.index(max(rates)) == 10
    assert rates[0] < 0.02
    assert rates[-1] == pytest.approx(0.01)


def test_training_needs_a_budget_and_cases(tmp_path: Path, cases: Path) -> None:
    with pytest.raises(InputError, match="pass steps or minutes"):
        train_segmentation(cases, tmp_path)
    with pytest.raises(InputError, match=r"holds 0 \.npz cases, of which 6 are held out"):
        train_segmentation(tmp_path, tmp_path, steps=1)


def test_training_goes_on_from_its_checkpoint(tmp_path: Path, cases: Path) -> None:
    options = replace(TOY, augmentation=replace(TOY.augmentation, crop=(32, 32, 32)))
    log = io.StringIO()
    first = train_segmentation(cases, tmp_path, steps=2, options=options, threads=1, log=log)
    weights = next(first.weights.rglob("checkpoint_final.pth")).read_bytes()
    second = train_segmentation(cases, tmp_path, steps=4, options=options, threads=1, log=log)
    assert (first.steps, second.steps) == (2, 4)
    assert second.minutes > first.minutes
    assert next(second.weights.rglob("checkpoint_final.pth")).read_bytes() != weights
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record.get("finished")] == [2, 4]


@pytest.mark.slow
def test_a_network_trained_on_toys_segments_a_toy_through_totalsegmentator(
    tmp_path: Path, cases: Path
) -> None:
    from tumorchain_agent.settings import Settings
    from tumorchain_agent.tools.scan import ct_from_array
    from tumorchain_agent.tools.segment import Segmenter

    trained = train_segmentation(cases, tmp_path, steps=200, threads=2, options=TOY, log=io.StringIO())
    assert trained.held_out_dice["five"] > 0.9
    hu, truth = toy_patient(99, 56, (2.0, 2.0, 4.0))
    flip = np.diag([-2.0, -2.0, 4.0, 1.0])
    flip[:3, 3] = [2.0 * (hu.shape[0] - 1), 2.0 * (hu.shape[1] - 1), 0]
    ct = ct_from_array(hu[::-1, ::-1].astype(np.float32), flip, file_name="LPS")
    with Segmenter(Settings(segmentation="nano", device="cpu"), nano_folder=trained.weights) as segmenter:
        result = segmenter.segment(ct)
    scores = dice_per_organ(result.labels, truth)
    assert scores["liver"] > 0.8
    assert scores["stomach"] > 0.7
    assert set(result.info.organs_present) <= {"liver", "stomach", "lumbar_vertebrae"}


def test_a_step_without_a_finite_gradient_changes_nothing_and_many_end_the_training(
    tmp_path: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(folder(cases), folder(cases), tmp_path, TOY, seed=0, device="cpu")
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    image, labels = trainer.sampler.sample()
    monkeypatch.setattr(trainer.sampler, "sample", lambda: (torch.full_like(image, torch.nan), labels))
    trainer.train_step(1e-3)
    assert all(torch.equal(before[name], value) for name, value in trainer.network.state_dict().items())
    trainer.skipped = MAX_SKIPPED - 1
    with pytest.raises(TumorChainError, match="no finite gradient"):
        trainer.train_step(1e-3)
