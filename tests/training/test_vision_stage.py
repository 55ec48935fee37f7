"""The encoder's own stage on a few phantoms: its targets and losses, and that what is saved is resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tumorchain_agent.errors import Cancelled
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.training.phantom.volume import Pool, make_pool
from tumorchain_agent.training.targets import ATTRIBUTES, CLS_ORGANS, PhantomStream, auc, case_targets, stack
from tumorchain_agent.training.vision_config import VisionStageConfig
from tumorchain_agent.training.vision_stage import (
    _Training,
    cls_loss,
    organ_means,
    train_vision,
    vision_is_trained,
)

SMALL = NanoEncoderConfig(width=32, stem=(8, 16, 16), heads=2, peaks=8, global_layers=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), 3, 0, workers=1)


def test_targets_cover_the_patch_grid_and_agree_with_the_truth(pool: Pool) -> None:
    case = pool.draw(np.random.default_rng(5), diseases=(0.0, 1.0))
    targets = case_targets(case)
    assert targets["volume"].shape == (1, 32, 128, 128)
    assert targets["attributes"].shape == (len(ATTRIBUTES), 8, 16, 16)
    sick = {name for name, value in zip(CLS_ORGANS, targets["abnormal"].tolist(), strict=True) if value == 1}
    ill = {lesion.organ for lesion in case.lesions if lesion.kind in ("tumor", "metastasis")}
    assert sick == ill & set(CLS_ORGANS)
    if sick:
        assert float(targets["patch"].max()) > 0


def test_the_same_seed_draws_the_same_patients(pool: Pool) -> None:
    first, second = (next(iter(PhantomStream(pool, 3))) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_cls_loss_is_the_mean_negative_log_likelihood_over_organs_in_the_scan() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]]])
    abnormal = torch.tensor([[0, 1, -1]])
    expected = -(torch.log_softmax(logits[0, 0], -1)[0] + torch.log_softmax(logits[0, 1], -1)[1]) / 2
    assert torch.isclose(cls_loss(logits, abnormal), expected)


def test_an_organs_mean_weighs_patches_by_coverage() -> None:
    tokens = torch.randn(1, 2048, 4)
    coverage = torch.zeros(1, 1, 8, 16, 16)
    coverage[0, 0, 0, 0, :2] = torch.tensor([0.25, 0.75])
    expected = 0.25 * tokens[0, 0] + 0.75 * tokens[0, 1]
    assert torch.allclose(organ_means(tokens, coverage)[0, 0], expected, atol=1e-6)


def test_the_area_under_the_curve_counts_ties_as_half() -> None:
    assert auc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.875)


def test_a_replayed_patient_is_rendered_once_and_shown_again(pool: Pool) -> None:
    stream = iter(PhantomStream(pool, 3, replay=3))
    shown = [next(stream)["volume"] for _ in range(10)]
    different = {float(volume.sum()) for volume in shown}
    assert len(different) == 4


@pytest.mark.slow
def test_the_vision_stage_saves_and_resumes(pool: Pool, tmp_path: Path) -> None:
    stream = iter(PhantomStream(pool, 9))
    validation = [stack([next(stream) for _ in range(2)])]
    config = VisionStageConfig(minutes=0.05, batch=2, workers=0)
    train_vision(config, SMALL, pool, validation, tmp_path)
    steps = torch.load(tmp_path / "vision.pt", weights_only=True)["state"]["step"]
    longer = config.model_copy(update={"minutes": 0.1})
    train_vision(longer, SMALL, pool, validation, tmp_path)
    trained = (tmp_path / "vision.pt").read_bytes()
    assert torch.load(tmp_path / "vision.pt", weights_only=True)["state"]["step"] > steps > 0
    assert vision_is_trained(longer, tmp_path)
    train_vision(longer, SMALL, pool, validation, tmp_path)
    assert (tmp_path / "vision.pt").read_bytes() == trained


def test_ctrl_c_saves_the_encoder_and_says_how_to_go_on(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Training, "step", _interrupt)
    config = VisionStageConfig(batch=1, workers=0)
    with pytest.raises(Cancelled, match="the same command goes on from there"):
        train_vision(config, SMALL, pool, [], tmp_path)
    assert "model" in torch.load(tmp_path / "vision.pt", weights_only=True)
    assert not vision_is_trained(config, tmp_path)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
