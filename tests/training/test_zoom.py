"""Phantoms' crops: what they show is what the truth says, and what the product would crop of the same patient."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.tools import grid
from tumorchain_agent.tools.preprocess import preprocess
from tumorchain_agent.tools.scan import ct_from_array
from tumorchain_agent.tools.zoom import Box, Zoom, zoom_in
from tumorchain_agent.training import targets
from tumorchain_agent.training.phantom.crops import PhantomCrop, crop_case
from tumorchain_agent.training.phantom.patient import ORGANS, Case, generate, realise
from tumorchain_agent.training.phantom.shapes import Array
from tumorchain_agent.training.phantom.volume import Pool, make_pool
from tumorchain_agent.training.targets import (
    CLS_ORGANS,
    PhantomStream,
    abnormal_in_crop,
    case_targets,
    crop_targets,
    stack,
)
from tumorchain_agent.training.vision_config import VisionStageConfig
from tumorchain_agent.training.vision_stage import train_vision

SMALL = NanoEncoderConfig(width=32, stem=(8, 16, 16), heads=2, peaks=8, global_layers=1)
ZOOM = Zoom()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(tmp_path_factory.mktemp("pool"), 2, 0, workers=1)


def crops(pool: Pool, rng: np.random.Generator, count: int) -> list[PhantomCrop]:
    """Crops of ill and healthy organs, of new patients."""
    found: list[PhantomCrop] = []
    while len(found) < count:
        case = pool.draw(rng, diseases=(0.0, 0.0, 1.0))
        crop = crop_case(case, str(rng.choice(ORGANS)), ZOOM, rng)
        found += [crop] if crop is not None else []
    return found


def test_a_crops_targets_agree_with_the_truth(pool: Pool, rng: np.random.Generator) -> None:
    for crop in crops(pool, rng, 4):
        told, case = crop_targets(crop), crop.case
        whole = case_targets(case)
        own = CLS_ORGANS.index(crop.organ)
        assert told["volume"].shape == (1, 32, 128, 128)
        assert {name: t.shape for name, t in told.items()} == {name: t.shape for name, t in whole.items()}
        assert told["abnormal"][own] == whole["abnormal"][own]
        healthy = [k for k, label in enumerate(whole["abnormal"].tolist()) if label == 0]
        assert all(told["abnormal"][k] <= 0 for k in healthy)
        assert float(told["coverage"][own].sum()) * patch_ml(crop) == pytest.approx(
            float(whole["coverage"][own].sum()) * np.prod(case.grid.spacing) * 256 / 1000, rel=0.25
        )
        check_lesions(crop, told)


def patch_ml(crop: PhantomCrop) -> float:
    return float(np.prod(crop.box[1] - crop.box[0])) / 2048 / 1000


def check_lesions(crop: PhantomCrop, told: dict[str, torch.Tensor]) -> None:
    """Each tumour lies where it was drawn; on three slices or more it is as large as it was drawn, and one that is on
    fewer may lie between them."""
    low, high = crop.box
    step = (high - low)[::-1] / np.array(crop.lesion_index.shape)
    for number, lesion in enumerate(crop.case.lesions, 1):
        middle, reach = np.array(lesion.centre_mm), max(lesion.radii_mm)
        if lesion.kind != "tumor" or ((middle - reach < low) | (middle + reach > high)).any():
            continue
        resolved = 2 * min(lesion.radii_mm) >= 3 * step.max()
        voxels = np.argwhere(crop.lesion_index == number)
        if not resolved and not len(voxels):
            continue
        d, h, w = (voxels.mean(axis=0) + 0.5) * step
        found = np.array([high[0] - w, high[1] - h, low[2] + d])
        assert np.abs(found - middle).max() < max(0.6 * reach, 6.0)
        drawn = 4 / 3 * np.pi * np.prod(lesion.radii_mm)
        assert not resolved or 0.25 < len(voxels) * np.prod(step) / drawn < 1.6
        assert float(told["patch"].max()) > 0


def test_a_patients_crop_in_training_is_the_products_crop_of_the_same_scan() -> None:
    """But for where its slices lie: the scanner's are 5 mm apart, and a phantom's surfaces are sharp."""
    case = generate(11, organ="pancreas")
    case = realise(replace(case.plan, look=replace(case.plan.look, noise_hu=0.0)), case.grid)
    ct = ct_from_array(case.hu, case.grid.affine)
    whole = preprocess(ct)
    for organ in ("pancreas", "liver"):
        theirs, mine = zoom_in(ct, case.labels, organ, whole, ZOOM), crop_case(case, organ, ZOOM)
        assert mine is not None
        assert theirs is not None
        box = grid.world_bbox(theirs.model.affine, (32, 256, 256))
        assert np.abs(np.array(box) - np.array(mine.box)).max() < 1e-6
        halved = theirs.model.volume[0].reshape(32, 128, 2, 128, 2).mean(axis=(2, 4))
        alike = likeness(halved, mine.volume)
        assert alike > 0.9
        for axis, by in ((0, 1), (1, 2), (2, 2)):
            moved = max(likeness(np.roll(halved, sign * by, axis), mine.volume) for sign in (-1, 1))
            assert moved < alike
        assert theirs.own_coverage.sum() == pytest.approx(mine.own_coverage.sum(), rel=0.02)
        assert np.abs(theirs.own_coverage - mine.own_coverage).mean() < 0.01


def likeness(one: Array, other: Array) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_an_organ_whose_tumour_the_crop_grazes_has_no_label(pool: Pool, rng: np.random.Generator) -> None:
    case = next(c for c in draws(pool, rng) if any(each.kind == "tumor" for each in c.lesions))
    number, tumor = next((k, each) for k, each in enumerate(case.lesions, 1) if each.kind == "tumor")
    other = next(name for name in CLS_ORGANS if name not in {each.organ for each in case.lesions})
    index = np.zeros((32, 128, 128), np.uint8)
    middle = np.array(tumor.centre_mm)

    def labels(box: Box, seen: bool) -> dict[str, int]:
        index[5, 5, 5] = number if seen else 0
        blank = np.zeros((57, 8, 16, 16), np.float32)
        return abnormal_in_crop(PhantomCrop("spleen", case, index.astype(np.float32), blank, index, box))

    inside, beside = (middle - 50, middle + 50), (middle + 5, middle + 105)
    assert labels(inside, seen=True)[tumor.organ] == 1
    assert tumor.organ not in labels(beside, seen=True)
    assert labels(beside, seen=False)[tumor.organ] == 0
    assert labels(beside, seen=True)[other] == 0


def draws(pool: Pool, rng: np.random.Generator) -> Iterator[Case]:
    while True:
        yield pool.draw(rng, diseases=(0.0, 1.0))


def test_the_stream_shows_the_share_of_crops_that_it_was_told(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "draw", lambda *_, **__: "patient")
    monkeypatch.setattr(targets, "case_targets", lambda _: {"kind": "whole"})
    monkeypatch.setattr(
        targets, "crop_case", lambda _case, organ, _zoom, _rng: organ if organ != "liver" else None
    )
    monkeypatch.setattr(targets, "crop_targets", lambda organ: {"kind": organ})

    def kinds(zoom_share: float, replay: int = 1) -> Counter[str]:
        stream = PhantomStream(pool, 3, zoom_share=zoom_share, replay=replay)
        return Counter(str(sample["kind"]) for sample in itertools.islice(stream, 4000))

    assert kinds(0.0) == {"whole": 4000}
    for replay in (1, 3):
        found = kinds(0.35, replay)
        assert set(found) == {"whole", *ORGANS} - {"liver"}
        assert 1 - found["whole"] / 4000 == pytest.approx(0.35 * 4 / 5, abs=0.05)
    assert "whole" in kinds(1.0), "where the scan doesn't hold the organ"


def test_a_stream_without_zoom_is_what_it_was_and_one_with_it_repeats(pool: Pool) -> None:
    plain = next(iter(PhantomStream(pool, 5)))
    rng = np.random.default_rng([5, 0, 0])
    assert torch.equal(plain["volume"], case_targets(pool.draw(rng))["volume"])
    first, second = (list(itertools.islice(PhantomStream(pool, 5, zoom_share=0.7), 2)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_the_vision_stage_with_crops_saves_and_resumes(pool: Pool, tmp_path: Path) -> None:
    stream = iter(PhantomStream(pool, 9, zoom_share=1.0))
    validation = [stack([next(stream) for _ in range(2)])]
    config = VisionStageConfig(minutes=0.05, batch=2, workers=0, zoom_share=0.5)
    train_vision(config, SMALL, pool, validation, tmp_path)
    steps = torch.load(tmp_path / "vision.pt", weights_only=True)["state"]["step"]
    longer = config.model_copy(update={"minutes": 0.1})
    train_vision(longer, SMALL, pool, validation, tmp_path)
    saved = torch.load(tmp_path / "vision.pt", weights_only=True)
    assert saved["state"]["step"] > steps > 0
    assert all(bool(torch.isfinite(value).all()) for value in saved["model"].values())
