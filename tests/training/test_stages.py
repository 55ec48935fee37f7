"""Both stages of the curriculum on a few phantoms: losses fall, what is saved is resumed, rounds are as in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tumorchain_agent.model.config import VisionConfig
from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.training.cases import TokenCase, token_cases
from tumorchain_agent.training.llm_stage import LLMStageConfig, encode, joint_loss, sample_stream
from tumorchain_agent.training.phantom.text import compose
from tumorchain_agent.training.phantom.volume import Pool, make_pool
from tumorchain_agent.training.targets import ATTRIBUTES, CLS_ORGANS, PhantomStream, auc, case_targets, stack
from tumorchain_agent.training.vision_stage import (
    VisionModel,
    VisionStageConfig,
    cls_loss,
    organ_means,
    train_vision,
)

SMALL = NanoEncoderConfig(width=32, stem=(8, 16, 16), heads=2, peaks=8, global_layers=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), 3, 0, workers=1)


@pytest.fixture(scope="module")
def cases(pool: Pool) -> list[TokenCase]:
    torch.manual_seed(0)
    return token_cases(VisionModel(SMALL), pool, 4, seed=1, workers=0)


def test_targets_cover_the_patch_grid_and_agree_with_the_truth(pool: Pool) -> None:
    case = pool.draw(np.random.default_rng(5), diseases=(0.0, 1.0))
    targets = case_targets(case)
    assert targets["volume"].shape == (1, 32, 128, 128)
    assert targets["attributes"].shape == (len(ATTRIBUTES), 8, 16, 16)
    sick = {name for name, value in zip(CLS_ORGANS, targets["abnormal"].tolist(), strict=True) if value == 1}
    assert sick == {lesion.organ for lesion in case.lesions if lesion.kind in ("tumor", "metastasis")}
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
    config = VisionStageConfig(encoder=SMALL, minutes=0.05, batch=2, workers=0)
    train_vision(config, pool, validation, tmp_path)
    steps = torch.load(tmp_path / "vision.pt", weights_only=True)["state"]["step"]
    longer = config.model_copy(update={"minutes": 0.1})
    train_vision(longer, pool, validation, tmp_path)
    trained = (tmp_path / "vision.pt").read_bytes()
    assert torch.load(tmp_path / "vision.pt", weights_only=True)["state"]["step"] > steps > 0
    train_vision(longer, pool, validation, tmp_path)
    assert (tmp_path / "vision.pt").read_bytes() == trained


def test_the_joint_loss_of_eq_8_falls_and_reaches_llm_projector_and_cls(cases: list[TokenCase]) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    texts = [t for c in cases for t in compose(rng, c.truth, "report", c.suspicion).texts]
    tokenizer = build_nano_tokenizer(texts, vocabulary=300)
    changes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    llm = build_llm(llm_config("nano", tokenizer, num_key_value_heads=1, max_window_layers=1, **changes))
    tower = VisionConfig(encoder=SMALL, hidden_size=32).build()
    modules = [llm, tower.projector, tower.cls]
    optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=1e-2)
    batch = next(sample_stream(cases, tokenizer, 0, patients=2, questions=2))
    losses = []
    for _ in range(8):
        loss, text = joint_loss(LLMStageConfig(), llm, tower, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(
            any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters()) for m in modules
        )
        optimizer.step()
        losses.append(text)
    assert losses[-1] < 0.8 * losses[0]


def test_loss_is_taken_on_the_assistants_words_alone(cases: list[TokenCase]) -> None:
    rng = np.random.default_rng(1)
    sample = compose(rng, cases[0].truth, "organ", cases[0].suspicion)
    tokenizer = build_nano_tokenizer([*sample.texts, sample.question], vocabulary=300)
    encoded = encode(cases[0], sample, tokenizer)
    learned = tokenizer.decode(encoded.labels[encoded.labels >= 0].tolist())
    assert learned == "".join(f"{text}<|im_end|>" for text in sample.texts)
    assert sum(len(tokens) for _, tokens in encoded.evidence) > 256
