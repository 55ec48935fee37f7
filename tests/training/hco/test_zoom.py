"""ROI zoom in joint training: crops are what inference takes, conversations what it says; packing changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tests.graph.fakes import SIDE_MM, FakeCT
from tests.graph.test_loop import QUESTION
from tests.graph.test_loop import run as run_graph
from tests.training.hco import tiny
from tests.training.hco.test_samples import ITEM
from tumorchain_agent.errors import InputError
from tumorchain_agent.model.checkpoint import read_info
from tumorchain_agent.model.config import VisionConfig, VitConfig
from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.model.template import IGNORED_LABEL, Message, Part, labels, render, to_inputs
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.preprocess import preprocess
from tumorchain_agent.tools.roi import global_pool, roi_mixture
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.tools.zoom import Zoom, zoom_in
from tumorchain_agent.training.data.policy import BadDataCounter, OnBadData
from tumorchain_agent.training.hco.batches import Order, Prepared, Reader, Shape, joint_batches
from tumorchain_agent.training.hco.build import build
from tumorchain_agent.training.hco.config import TrainConfig
from tumorchain_agent.training.hco.feeder import Feeder
from tumorchain_agent.training.hco.joint import JointModel
from tumorchain_agent.training.hco.rows import Evidence, Turn, encode
from tumorchain_agent.training.hco.samples import turns, with_zoom
from tumorchain_agent.training.hco.scans import ScanData, TokenCache, VolumeCache
from tumorchain_agent.training.hco.sources import PhantomSource, RecordSource, load
from tumorchain_agent.training.hco.trainer import Run, train
from tumorchain_agent.training.phantom.volume import make_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ZOOM = {"organs": ["liver", "spleen"], "max_tokens": 16}
FROZEN = {"projector": 1e-3, "llm": 1e-3}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.cohort(tmp_path_factory.mktemp("cohort"))


def share(rng: np.random.Generator, *box: slice) -> NDArray[np.float32]:
    coverage = np.zeros((8, 16, 16), np.float32)
    coverage[box] = rng.uniform(0.1, 1, coverage[box].shape)
    return coverage


def test_what_is_cached_of_a_crop_is_what_inference_takes(records: Path) -> None:
    zoom = Zoom.model_validate(ZOOM)
    source = RecordSource(records, "train", VolumeCache(records.parent / "other"), zoom=zoom)
    made, kept = load(source, 0), load(source, 0)
    bare = load(source, 0, volume=False, crops=("spleen",))
    ct = open_ct(records.parent / "P-1/ct.nii.gz")
    found = load_label_map(records.parent / "P-1/labels.nii.gz", ct).labels
    for organ in zoom.organs:
        crop = zoom_in(ct, found, organ, preprocess(ct), zoom)
        assert crop is not None
        for scan in (made, kept):
            assert isinstance(scan, ScanData)
            mine = scan.crops[organ]
            assert mine.organ == organ
            assert mine.side_mm == pytest.approx(crop.side_mm)
            assert torch.allclose(mine.unit_volume(), torch.from_numpy(crop.model.volume), atol=1e-3)
            assert np.array_equal(mine.coverage[organ], crop.own_coverage)
    assert isinstance(bare, ScanData)
    assert (bare.volume, bare.crops["liver"].volume) == (None, None)
    assert bare.crops["spleen"].volume is not None
    plain = RecordSource(records, "train", source.cache)
    assert plain.key(0) != source.key(0)


def test_a_phantoms_crops_come_with_the_truth_of_what_they_show(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool", 1, 0, workers=1)
    sources = [PhantomSource(tmp_path / "pool", 2, 0, VolumeCache(tmp_path), zoom=z) for z in (Zoom(), None)]
    zoomed, plain = (load(source, 1) for source in sources)
    assert isinstance(zoomed, ScanData)
    assert isinstance(plain, ScanData)
    assert torch.equal(zoomed.unit_volume(), plain.unit_volume())
    assert set(zoomed.crops) == set(Zoom().organs) & set(zoomed.coverage)
    for organ, crop in zoomed.crops.items():
        assert crop.unit_volume().shape == (1, 32, 128, 128)
        assert crop.abnormal[organ] == zoomed.abnormal[organ]
        assert crop.lesion is not None
        assert (float(crop.lesion.max()) > 0) >= bool(zoomed.abnormal[organ])


def test_a_conversation_with_zoom_reads_as_the_graph_tells_it(rng: np.random.Generator) -> None:
    replies = ["The liver, the spleen and the esophagus.", "Nothing."]
    _, model = run_graph(replies, ct=FakeCT(absent=("esophagus",), zoomed=("liver",)))
    item = replace(
        ITEM, question=QUESTION, texts=tuple(replies), organs=((), ("liver", "spleen", "esophagus"))
    )
    there = {"liver": 1, "spleen": 1}
    ours = with_zoom(turns(item, "cot", there, present=set(there)), {"liver": SIDE_MM})
    shown = [[part if isinstance(part, str) else f"<{part.organ}>" for part in turn.parts] for turn in ours]
    said = [
        [part.replace("<τ_g>", "<None>").replace("<τ_l ", "<") for part in parts]
        for _, parts in model.said[-1]
    ]
    assert shown[:-1] == said
    assert [p.zoomed for p in ours[2].parts if isinstance(p, Evidence)] == [False, True, False]


TEXTS = ("Is there a tumor?", "The liver needs a closer look.", "Findings: a mass. Answer: liver.")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_nano_tokenizer(list(TEXTS), vocabulary=300)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> JointModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_window_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llm = build_llm(llm_config("nano", tokenizer, **sizes, **heads, initializer_range=0.2))
    encoder = VitConfig(width=16, mlp_width=32, layers=1, heads=2)
    return JointModel(VisionConfig(encoder=encoder, hidden_size=32).build(), llm)


def conversation(organs: tuple[str, ...], zoomed: tuple[str, ...]) -> list[Turn]:
    shown = tuple(part for organ in organs for part in (f"look at {organ}", Evidence(organ)))
    found = [
        Turn("user", (Evidence(), TEXTS[0])), Turn("assistant", (TEXTS[1],)),
        Turn("user", shown), Turn("assistant", (TEXTS[2],)),
    ]  # fmt: skip
    return with_zoom(found, dict.fromkeys(zoomed, 160.0))


def patient(number: int, rng: np.random.Generator) -> ScanData:
    """A scan of noise with a liver and a spleen, and the crops of both."""
    coverage = {
        "liver": share(rng, slice(2, 6), slice(4, 12), slice(3, 9)),
        "spleen": share(rng, slice(3, 4), slice(8, 10), slice(9, 12)),
    }
    crops = {
        organ: ScanData(
            f"{number} {organ}", noise(rng), {organ: share(rng, slice(1, 7), slice(2, 14))}, organ=organ
        )
        for organ in coverage
    }
    return ScanData(str(number), noise(rng), coverage, crops=crops)


def noise(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random((1, 32, 256, 256), np.float32))


ASKED = (
    ((("liver",), ("liver",)), (("liver", "spleen"), ("spleen",))),
    ((("spleen",), ("spleen",)), (("liver",), ())),
)
"""Of two patients: organs that a question shows, and which of them zoomed."""


@pytest.mark.parametrize("frozen", [False, True])
def test_packed_loss_with_crops_is_that_of_every_conversation_alone(
    frozen: bool, model: JointModel, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> None:
    zoom = Zoom(max_tokens=16)
    scans = [patient(number, rng) for number in range(2)]
    prepared, alone = [], []
    for scan, asked in zip(scans, ASKED, strict=True):
        tokens = {organ: model.encode(crop.unit_volume()[None])[0] for organ, crop in scan.crops.items()}
        whole = model.encode(scan.unit_volume()[None])[0]
        own = {organ: crop.coverage[organ] for organ, crop in scan.crops.items()}
        told = [conversation(*each) for each in asked]
        encoded = tuple(encode("q", each, scan.coverage, tokenizer, own, zoom) for each in told)
        ready = Prepared(scan, {"liver": 1}, encoded, whole if frozen else None, ("q", "q"))
        shown = {organ: tokens[organ] for organ in ready.shown_crops}
        prepared.append(replace(ready, crop_tokens=shown) if frozen else ready)
        alone += [_alone(model, tokenizer, each, scan, whole, tokens, zoom) for each in told]
    for row_tokens in (8192, 700):
        batches = joint_batches(prepared, row_tokens, text=True, dense_targets=True)
        assert len(batches) > 1 or row_tokens == 8192
        assert all((batch.tokens is None) != frozen for batch, _ in batches)
        losses = [model(batch).text for batch, _ in batches]
        assert torch.stack(losses).sum().item() == pytest.approx(torch.stack(alone).sum().item(), rel=1e-5)


def _alone(
    model: JointModel,
    tokenizer: PreTrainedTokenizerFast,
    told: list[Turn],
    scan: ScanData,
    whole: Tensor,
    tokens: dict[str, Tensor],
    zoom: Zoom,
) -> Tensor:
    def shown(part: str | Evidence) -> Part:
        if isinstance(part, str):
            return part
        if part.organ is None:
            return model.tower.project(global_pool(whole))
        if part.zoomed:
            mixture = roi_mixture(scan.crops[part.organ].coverage[part.organ], zoom.max_tokens)
            return model.tower.project(mixture.of(tokens[part.organ]))
        return model.tower.project(roi_mixture(scan.coverage[part.organ]).of(whole))

    messages = [Message(turn.role, tuple(shown(part) for part in turn.parts)) for turn in told]
    pieces = render(messages, tokenizer, add_generation_prompt=False)
    logits = model.llm(inputs_embeds=to_inputs(pieces, model.llm.get_input_embeddings())).logits[0, :-1]
    wanted = labels(pieces, tokenizer)[1:]
    here = wanted != IGNORED_LABEL
    return F.cross_entropy(logits[here], wanted[here], reduction="sum")


def test_a_share_of_zoom_without_zoom_is_refused(records: Path) -> None:
    stage = {"form": "vision", "rates": {"encoder": 1e-3}, "zoom_share": 0.35}
    with pytest.raises(InputError, match="zoom_share is without effect where zoom is off"):
        tiny.config(records, stage=stage)
    with pytest.raises(InputError, match="zoom_share is of form vision"):
        tiny.config(records, zoom={}, stage={"zoom_share": 0.35})
    with pytest.raises(InputError, match=r"unknown key zoom.margin; the nearest known key is zoom.margin_mm"):
        tiny.config(records, zoom={"margin": 3})
    assert tiny.config(records, zoom={}).zoom == Zoom()


def feeder(config: TrainConfig, run: Run, cache: TokenCache | None) -> Feeder:
    counter = BadDataCounter(OnBadData.FAIL)
    return Feeder(config, config.stages[0], run.model, run.tokenizer, counter, cache)


@pytest.mark.slow
def test_a_share_of_the_vision_stages_scans_are_crops_with_their_own_targets(
    records: Path, tmp_path: Path
) -> None:
    stage = {"form": "vision", "rates": {"encoder": 1e-3}, "zoom_share": 0.4, "dense": 1.0, "steps": 3}
    run = build(tiny.config(records, zoom=ZOOM, stage=stage), tmp_path / "out")
    reader = Reader(Order(run.source, 1, 0, 0), Shape(100, 1), None)
    seen = feeder(run.config, run, None).with_tokens(reader[reader.units(0)])
    scans = [each.scan for each in seen if isinstance(each.scan, ScanData)]
    crops = [scan for scan in scans if scan.organ is not None]
    assert 25 <= len(crops) <= 55
    assert {crop.organ for crop in crops} == {"liver", "spleen"}
    prepared = feeder(run.config, run, None).prepared(next(e for e in seen if e.scan is crops[0]))
    assert prepared is not None
    assert set(prepared.abnormal) <= {crops[0].organ}
    train(run)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cot", "vision"])
def test_a_resumed_training_with_zoom_is_bit_for_bit_the_uninterrupted_one(
    form: str, records: Path, tmp_path: Path
) -> None:
    stage: dict[str, Any] = {"form": form, "steps": 3}
    if form == "vision":
        stage |= {"rates": {"encoder": 1e-3, "cls": 1e-3}, "zoom_share": 0.5, "dense": 1.0}
    changes: dict[str, Any] = {"zoom": ZOOM, "save_every": 1, "encoder": tiny.VIT}
    states = []
    for name, stops in (("whole", (3,)), ("parts", (2, 3))):
        for steps in stops:
            config = tiny.config(records, **changes, stage=stage)
            run = build(config, tmp_path / name)
            if steps < 3:
                _stop_after(run, steps)
                with pytest.raises(_EndError):
                    train(run)
            else:
                train(run)
        states.append(run.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    info = read_info(tmp_path / "whole" / "last")
    assert info.zoom == Zoom.model_validate(ZOOM)


class _EndError(Exception):
    """The process was killed."""


def _stop_after(run: Run, steps: int) -> None:
    usual, count = run.engine.step, iter(range(100))

    def step(share: float) -> float:
        if next(count) == steps:
            raise _EndError
        return usual(share)

    run.engine.step = step  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_frozen_encoders_crops_are_encoded_once_and_read_from_the_cache(
    records: Path, tmp_path: Path
) -> None:
    run = build(tiny.config(records, zoom=ZOOM, stage={"rates": FROZEN, "steps": 4}), tmp_path / "out")
    train(run)
    cache = TokenCache(run.cache, run.model.tower.encoder, "fp32")
    reader = Reader(Order(run.source, 1, 0, 0), Shape(2, 1), cache)
    for each in reader[reader.units(0)]:
        assert isinstance(each.scan, ScanData)
        assert each.scan.volume is None
        assert each.crop_tokens
        for organ, crop in each.scan.crops.items():
            assert (crop.volume is None) == (organ in each.crop_tokens)
