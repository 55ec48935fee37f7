"""Configurations: the committed ones say what the paper says, and a wrong key is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tumorchain_agent.errors import CheckpointError, InputError
from tumorchain_agent.model.checkpoint import NANO_DIR
from tumorchain_agent.training.hco.load_config import committed, load_config
from tumorchain_agent.training.hco.memory import module_counts, plan


@pytest.mark.parametrize("name", ["3b", "7b"])
def test_the_large_configurations_are_table_5_in_three_stages(name: str) -> None:
    config = load_config(name)
    assert [stage.form for stage in config.stages] == ["align", "instruct", "cot"]
    for stage in config.stages:
        rates = {rate for rate in stage.rates.model_dump().values() if rate}
        assert rates == {3e-5}
        assert (stage.optimizer, stage.schedule, stage.weight_decay) == ("adamw", "cosine", 0.0)
        assert (stage.warmup, stage.epochs) == (0.03, 1.0)
    assert (config.precision, config.accumulation, config.batch) == ("bf16", 2, 2)
    assert (config.data.workers, config.engine, config.model.size) == (16, "zero2", name)
    assert config.stages[0].rates.llm == config.stages[0].rates.encoder == 0
    assert all(rate > 0 for rate in config.stages[-1].rates.model_dump().values())


def test_every_committed_configuration_loads() -> None:
    assert committed() == ["3b", "7b", "nano"]
    assert load_config("nano").data.phantoms is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("engin=plain", "unknown key engin; the nearest known key is engine"),
        ("data.worker=2", "unknown key data.worker; the nearest known key is data.workers"),
        ("stages.cot.own_round=1", "the nearest known key is stages.own_first_rounds"),
        ("stages.last.steps=1", "there is no last; known: align, instruct, cot"),
        ("batch=many", "batch: Input should be a valid integer"),
        ("batch=7", "batch 7 is no multiple of questions_per_scan 4"),
        ("engine=zero2", "muon can't: use adamw"),
        ("batch", "is not of the form a.b=c"),
        ("zoom=null", "pretrain.zoom_share is without effect where zoom is off"),
        ("model.vision=vision.pt", "two encoders to begin from: leave one out"),
        ("model.encoder.kind=vit", "set model.encoder.kind to nano"),
        ("data={records: a.jsonl}", "set data.phantoms, or pretrain to null"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_known_one(change: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        load_config("nano", [change])
    assert told in str(error.value)


def test_set_reaches_every_depth_and_one_length_replaces_another(tmp_path: Path) -> None:
    config = load_config("nano", ["stages.cot.steps=5", "stages.0.rates.cls=0.5", "model.encoder.width=64"])
    assert (config.stages[-1].steps, config.stages[-1].minutes) == (5, None)
    assert config.stages[0].rates.cls == 0.5
    assert config.model.encoder.width == 64
    with pytest.raises(InputError, match="name a YAML file or one of 3b, 7b, nano"):
        load_config(tmp_path / "missing.yaml")


def test_the_plan_divides_gradients_and_optimizer_states_over_devices() -> None:
    config = load_config("3b")
    counts = module_counts(config)
    assert counts["llm"] == 3_085_938_688  # Qwen2.5-3B's published 3.09 B, tied embeddings
    one, many = plan(config, 1)[-1], plan(config, 32)[-1]
    everything = sum(counts.values())
    assert one.optimizer == pytest.approx(12 * everything)
    assert one.optimizer / many.optimizer == one.gradients / many.gradients == pytest.approx(32)
    assert one.weights == many.weights == 2 * everything
    assert many.total < 80 * 2**30 < one.total + 40 * 2**30
    assert plan(config, 32)[0].trained == counts["projector"]


def test_a_custom_size_is_that_of_the_checkpoint_to_begin_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model: size custom is that of a checkpoint: set model\.init"):
        load_config("nano", ["model.size=custom"])
    changes = ["model.size=custom", f"model.init={NANO_DIR}", "pretrain=null"]
    assert module_counts(load_config("nano", changes)) == module_counts(load_config("nano", changes[1:]))
    with pytest.raises(CheckpointError, match=r"is no TumorChain checkpoint: set model\.init"):
        plan(load_config("nano", ["model.size=custom", f"model.init={tmp_path}", "pretrain=null"]), 1)
