"""Training a toy model: what must not change a result doesn't, and what goes wrong is told and costs nothing."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from tests.training.data.examples import HU, LABELS, write_lines, write_patient
from tests.training.hco import tiny
from tumorchain_agent.cli import main
from tumorchain_agent.errors import Cancelled, DataError, InputError, OutputError, TrainingError
from tumorchain_agent.model.checkpoint import read_info
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.training.hco.batches import Reader, Shape
from tumorchain_agent.training.hco.build import build
from tumorchain_agent.training.hco.joint import JointModel
from tumorchain_agent.training.hco.resume import Checkpoints
from tumorchain_agent.training.hco.trainer import Run, train


def weights(run: Run) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in run.model.state_dict().items()}


def gradients(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Filled step by step while ``run`` trains."""
    found: list[list[Tensor]] = []
    usual = run.engine.step

    def step(share: float) -> float:
        found.append([torch.zeros(0) if p.grad is None else p.grad.clone() for p in run.engine.parameters])
        return usual(share)

    monkeypatch.setattr(run.engine, "step", step)
    return found


@pytest.mark.parametrize("questions", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_eight_passes_of_one_sample_are_one_pass_of_eight(
    questions: int, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {1: ((1, 8), (8, 1)), 4: ((4, 2), (8, 1))}[questions]
    found = []
    for batch, accumulation in shapes:
        changes: dict[str, Any] = {"batch": batch, "accumulation": accumulation, "encoder": tiny.VIT}
        config = tiny.config(records, questions_per_scan=questions, **changes, stage={"steps": 1})
        run = tiny.steps_only(build(config, tmp_path / f"{batch}"))
        steps = gradients(run, monkeypatch)
        train(run)
        found.append(steps[0])
    largest = max(float(grad.abs().max()) for grad in found[1] if grad.numel())
    assert largest > 0
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=2e-6 * largest)


@pytest.mark.slow
def test_the_nano_encoders_gradients_depend_on_the_division_of_scans_by_rounding_alone() -> None:
    torch.manual_seed(0)
    encoder = NanoEncoderConfig(width=8, stem=(4, 4, 8), heads=1, peaks=2, global_layers=1).build().double()
    volumes = torch.rand(2, 1, 32, 128, 128, dtype=torch.float64)
    weight = torch.randn(2, 2048, 8, dtype=torch.float64)
    found = []
    for parts in ((slice(0, 2),), (slice(0, 1), slice(1, 2))):
        encoder.zero_grad()
        for part in parts:
            (encoder(volumes[part]) * weight[part]).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).abs().max() / found[0].abs().max()) < 1e-11


def test_bf16_weights_of_the_nano_encoder_are_refused_on_a_cpu_before_anything_is_written(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny.config(records, engine="zero2", precision="bf16")
    with pytest.raises(InputError, match=r"bf16 on a CPU, .*: set precision to fp32, or engine to plain"):
        build(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(records: Path, tmp_path: Path) -> None:
    config = tiny.config(records, stage={"steps": 4, "own_first_rounds": 0.5, "own_tokens": 3})
    whole = build(config, tmp_path / "whole")
    train(whole)
    first = build(config, tmp_path / "parts")
    _interrupt_after(first, 3)
    with pytest.raises(Cancelled, match=r"interrupted after step 3; .*step-00000003 is saved"):
        train(first)
    second = build(config, tmp_path / "parts")
    place = train(second)
    assert place.total_steps == 4
    there, here = weights(whole), weights(second)
    assert all(torch.equal(there[name], here[name]) for name in there)
    ids = [read_info(tmp_path / name / "last").checkpoint_id for name in ("whole", "parts")]
    assert ids[0] == ids[1]


def _interrupt_after(run: Run, steps: int) -> None:
    """ctrl-c in the middle of a step."""
    usual, count = run.engine.forward, iter(range(1000))

    def forward(batch: Any) -> Any:
        if next(count) == steps - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(batch)

    run.engine.forward = forward  # type: ignore[method-assign]


def test_muon_and_the_frozen_encoders_tokens_resume_bit_for_bit_too(records: Path, tmp_path: Path) -> None:
    stage = {"rates": {"projector": 1e-3, "cls": 1e-3, "llm": 1e-3}, "optimizer": "muon"}
    config = tiny.config(records, stage=stage | {"steps": 3, "schedule": "trapezoid"})
    whole = tiny.steps_only(build(config, tmp_path / "whole"))
    train(whole)
    first = tiny.steps_only(build(config, tmp_path / "parts"))
    _interrupt_after(first, 2)
    with pytest.raises(Cancelled):
        train(first)
    second = tiny.steps_only(build(config, tmp_path / "parts"))
    train(second)
    there, here = weights(whole), weights(second)
    assert all(torch.equal(there[name], here[name]) for name in there)


def test_each_stage_trains_what_it_says_and_nothing_else(records: Path, tmp_path: Path) -> None:
    common = {"steps": 1, "rates": {}}
    stages = [
        common | {"name": "vision", "form": "vision", "rates": {"encoder": 1e-3, "cls": 1e-3}, "dense": 1.0},
        common | {"name": "align", "form": "align", "rates": {"projector": 1e-3}},
        common | {"name": "instruct", "form": "instruct", "rates": {"projector": 1e-3, "llm": 1e-3}},
    ]
    run = tiny.steps_only(build(tiny.config(records, stages=stages), tmp_path / "out"))
    seen = [weights(run)]
    usual = run.engine.end

    def end() -> None:
        seen.append(weights(run))
        usual()

    run.engine.end = end  # type: ignore[method-assign]
    train(run)
    changed = []
    for before, after in pairwise(seen):
        names = [name for name in before if not torch.equal(before[name], after[name])]
        changed.append({name.removeprefix("tower.").split(".")[0] for name in names})
    assert changed == [{"encoder", "cls", "heads"}, {"projector"}, {"projector", "llm"}]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_the_samples_and_keeps_the_last_good_checkpoint(
    records: Path, tmp_path: Path
) -> None:
    run = tiny.steps_only(build(tiny.config(records, stage={"steps": 4}), tmp_path / "out"))
    usual, count = run.engine.forward, iter(range(1000))
    names: list[str] = []

    def forward(batch: Any) -> Any:
        if next(count) == 3:
            names.extend(batch.row.names)
            with torch.no_grad():
                run.model.tower.projector[0].bias.fill_(float("nan"))  # type: ignore[operator]
        return usual(batch)

    run.engine.forward = forward  # type: ignore[method-assign]
    with pytest.raises(TrainingError) as error:
        train(run)
    assert "the loss is no number in step 4 of samples" in str(error.value)
    assert all(name in str(error.value) for name in names)
    assert "step-00000002 is the last good checkpoint" in str(error.value)
    assert [path.name for path in Checkpoints(run.out, 2).found()] == ["step-00000002"]
    again = tiny.steps_only(build(run.config, run.out))
    assert train(again).total_steps == 4
    assert all(bool(torch.isfinite(value).all()) for value in again.model.state_dict().values())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can grow beyond 40 kB: writing fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, usual)


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint_as_the_latest(
    records: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = tiny.steps_only(build(tiny.config(records, stage={"steps": 4}), tmp_path / "out"))
    usual, count = run.engine.save, iter(range(1000))

    def save(folder: Path) -> None:
        if next(count) == 1:
            request.getfixturevalue("small_files")
        usual(folder)

    run.engine.save = save  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="step-00000002 is the last good one: free space"):
        train(run)
    checkpoints = Checkpoints(run.out, 2)
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.name == "step-00000002"
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000002"]


@pytest.mark.slow
def test_workers_read_what_this_process_would_and_progress_is_told_in_lines(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    settings = tiny.settings(records, stage={"steps": 2}, validation_units=2)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    ids = []
    for workers in (0, 2):
        changes = ["--set", f"data.workers={workers}", "--set", "stages.cot.own_first_rounds=0"]
        assert main(["train", str(path), "--out", str(tmp_path / f"{workers}"), *changes]) == 0
        ids.append(read_info(tmp_path / f"{workers}" / "best").checkpoint_id)
    assert ids[0] == ids[1]
    told = capsys.readouterr().err
    assert re.search(
        r"step 1  text [\d.]+  cls [\d.]+  norm [\d.]+  \d+ tokens/s  [\d.]+ samples/s, 50 %", told
    )
    assert re.search(r"step 2 validation: lesion [\d.]+  report [\d.]+  cls [\d.]+  mean [\d.]+", told)
    assert main(["train", str(path), "--set", "stages.cot.step=3"]) == 2
    assert "unknown key stages.0.step; the nearest known key is stages.steps" in capsys.readouterr().err
    assert main(["train", "7b", "--plan", "--devices", "8"]) == 0
    assert "| cot | 100% | 14.38 | 1.80 | 10.78 |" in capsys.readouterr().out


def test_another_configuration_is_refused_in_the_folder_of_a_training(records: Path, tmp_path: Path) -> None:
    build(tiny.config(records), tmp_path / "out")
    with pytest.raises(InputError, match=r"stages\.0\.steps is 4 there and 9 here"):
        build(tiny.config(records, stage={"steps": 9}), tmp_path / "out")


def bad_cohort(folder: Path) -> Path:
    """The good cohort, with patients whose data is bad in every way."""
    path = tiny.cohort(folder)
    lines = [line for name, split in tiny.PATIENTS.items() for line in tiny.lines(name, split)]
    for name in ("P-11", "P-12", "P-13", "P-14"):
        lines += tiny.lines(name, "train", 1)
    (write_patient(folder, "P-11") / "ct.nii.gz").unlink()
    write_patient(folder, "P-12", labels=np.where(np.isin(LABELS, (1, 5)), 52, LABELS))
    write_patient(folder, "P-13", hu=np.where(LABELS == 5, np.nan, HU))
    cut = write_patient(folder, "P-14") / "ct.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    return write_lines(path, *lines)


@pytest.mark.slow
def test_bad_data_in_the_middle_of_an_epoch_is_skipped_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = bad_cohort(tmp_path / "cohort")
    config = tiny.config(records, data={"on_bad": "skip"}, stage={"steps": 6})
    with caplog.at_level(logging.WARNING):
        place = train(tiny.steps_only(build(config, tmp_path / "out")))
    assert place.samples == 8
    told = next(r.message for r in caplog.records if "epoch ended" in r.message)
    assert "4 of 12 samples are bad" in told
    for words in ("missing scan", "organ lacking in label map", "NaN in volume", "truncated file"):
        assert f"1 × {words}" in told
    assert all(name in told for name in ("P-11/0", "P-12/0", "P-13/0", "P-14/0"))


def test_bad_data_is_fatal_where_the_configuration_says_so(tmp_path: Path) -> None:
    records = bad_cohort(tmp_path / "cohort")
    with pytest.raises(DataError, match=r"P-1[1-4]/0: .*; mend it, or skip bad data in the configuration"):
        train(build(tiny.config(records, stage={"steps": 6}), tmp_path / "out"))


def test_a_frozen_encoders_cached_tokens_train_as_the_live_encoder_does(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"projector": 1e-3, "cls": 1e-3, "llm": 1e-3}
    run = tiny.steps_only(
        build(tiny.config(records, stage={"steps": 1, "rates": rates}), tmp_path / "cached")
    )
    cached = gradients(run, monkeypatch)
    train(run)
    live_run = tiny.steps_only(build(run.config, tmp_path / "live"))
    live = gradients(live_run, monkeypatch)
    usual = live_run.engine.start

    def start(model: JointModel, stage: Any) -> None:
        usual(model, stage)
        model.tower.encoder.requires_grad_(False)

    monkeypatch.setattr(live_run.engine, "start", start)
    monkeypatch.setattr("tumorchain_agent.training.hco.trainer.TokenCache", lambda *_: None)
    train(live_run)
    largest = max(float(grad.abs().max()) for grad in live[0] if grad.numel())
    for a, b in zip(cached[0], live[0], strict=True):
        assert torch.allclose(a, b, rtol=2e-2, atol=2e-3 * largest)


def test_a_second_run_reads_the_tokens_and_not_the_volume(records: Path, tmp_path: Path) -> None:
    rates = {"projector": 1e-3}
    run = tiny.steps_only(build(tiny.config(records, stage={"steps": 4, "rates": rates}), tmp_path / "out"))
    train(run)
    from tumorchain_agent.training.hco.batches import Order
    from tumorchain_agent.training.hco.scans import ScanData, TokenCache

    cache = TokenCache(run.cache, run.model.tower.encoder, "fp32")
    reader = Reader(Order(run.source, 1, 0, 0), Shape(2, 1), cache)
    for each in reader[reader.units(0)]:
        assert isinstance(each.scan, ScanData)
        assert each.scan.volume is None
        assert each.tokens is not None
        assert each.tokens.shape == (2048, 16)


def test_recomputed_layers_attend_within_rows_as_the_first_time(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for on in (False, True):
        run = build(tiny.config(records, checkpointing=on, stage={"steps": 1}), tmp_path / str(on))
        run = tiny.steps_only(run)
        steps = gradients(run, monkeypatch)
        train(run)
        found.append(steps[0])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*found, strict=True))
