"""The curriculum: stage after stage, step after step, with everything that must survive an interruption."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tumorchain_agent.errors import Cancelled, DataError, TrainingError
from tumorchain_agent.training.data.policy import BadDataCounter, BadDataReport
from tumorchain_agent.training.hco.batches import Order, Reader, Shape, stream, to_device
from tumorchain_agent.training.hco.config import Stage, TrainConfig
from tumorchain_agent.training.hco.engine import Engine, rate_share
from tumorchain_agent.training.hco.feeder import Feeder, Named
from tumorchain_agent.training.hco.joint import JointModel, Sums
from tumorchain_agent.training.hco.progress import Reporter
from tumorchain_agent.training.hco.resume import Checkpoints, Place, read_place
from tumorchain_agent.training.hco.scans import TokenCache
from tumorchain_agent.training.hco.sources import Source
from tumorchain_agent.training.hco.validate import validate
from tumorchain_agent.training.packing import packed_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)
NAMED = 12
"""Samples that an error names."""
_STDERR = 2
Export = Callable[[str, Place], None]
"""Write the model as a checkpoint folder of this name."""


@dataclass(frozen=True, eq=False)
class Run:
    """All that a training works with."""

    config: TrainConfig
    engine: Engine
    model: JointModel
    tokenizer: PreTrainedTokenizerFast
    source: Source
    held_out: Source
    out: Path
    cache: Path
    export: Export


def train(run: Run) -> Place:
    """Run or resume all stages. Raises Cancelled after ctrl-c and TrainingError when the loss is no number."""
    checkpoints = Checkpoints(run.out, run.config.keep)
    latest = checkpoints.latest()
    place = read_place(latest, run.engine.world) if latest else Place(world=run.engine.world)
    first, active = place.total_steps, run.engine.main
    with (
        Reporter(run.out, run.config.log_every, first_step=first, active=active) as reporter,
        _Stop() as stop,
    ):
        while place.stage < len(run.config.stages):
            stage = _StageRun(run, place, checkpoints, reporter, stop)
            stage.begin(latest)
            latest = None
            stage.run()
            place.stage, place.step, place.elapsed_s, place.best, place.bad = (
                place.stage + 1,
                0,
                0.0,
                None,
                [],
            )
    if active:
        run.export("last", place)
    run.engine.barrier()
    return place


class _StageRun:
    def __init__(
        self, run: Run, place: Place, checkpoints: Checkpoints, reporter: Reporter, stop: _Stop
    ) -> None:
        self.of, self.config, self.engine = run, run.config, run.engine
        self.place, self.checkpoints, self.reporter, self.stop = place, checkpoints, reporter, stop
        self.stage: Stage = run.config.stages[place.stage]
        config = self.config
        self.shape = Shape(
            config.batch // config.questions_per_scan,
            config.accumulation,
            self.engine.world,
            self.engine.rank,
        )
        self.order = Order(run.source, config.questions_per_scan, config.seed, place.stage)
        self.steps = self._steps()
        self.filler: Named | None = None

    def _steps(self) -> int | None:
        if self.stage.epochs is not None:
            return max(1, round(self.stage.epochs * self.order.length / self.shape.step_units))
        return self.stage.steps

    def begin(self, checkpoint: Path | None) -> None:
        """Freeze, make optimizers, and go on from ``checkpoint`` if it is of this stage."""
        run, stage = self.of, self.stage
        self.engine.start(run.model, stage)
        if checkpoint is not None:
            self.checkpoints.load(self.engine, checkpoint)
        so_far = self.place.bad[self.engine.rank] if self.place.bad else BadDataReport()
        self.counter = BadDataCounter(self.config.data.on_bad, so_far)
        frozen = stage.rates.encoder == 0
        cache = TokenCache(run.cache, run.model.tower.encoder, self.config.precision) if frozen else None
        self.feeder = Feeder(self.config, stage, run.model, run.tokenizer, self.counter, cache)
        accumulation = self.config.accumulation
        left = None if self.steps is None else (self.steps - self.place.step) * accumulation
        reader = Reader(self.order, self.shape, cache)
        self.loaded = stream(reader, self.place.step * accumulation, left, self.config.data.workers)

    def run(self) -> None:
        place, config = self.place, self.config
        self.reporter.stage(self.stage.name)
        self.started = time.monotonic() - place.elapsed_s
        while not self._over():
            self._step()
            self._end_of_epoch()
            place.elapsed_s = time.monotonic() - self.started
            over = self._over()
            if over or place.total_steps % config.validate_every == 0:
                self._validate()
            if over or place.total_steps % config.save_every == 0:
                self._save(over)
            self._heed()
        self._report_bad()
        self.engine.end()
        if self.engine.main:
            log.info("stage %s is done after %d steps", self.stage.name, place.step)

    def _over(self) -> bool:
        return self._progress() >= 1

    def _progress(self) -> float:
        if self.steps is not None:
            return self.place.step / self.steps
        minutes = self.stage.minutes or 0.0
        mine = (time.monotonic() - self.started) / (60 * minutes)
        return min(self.engine.total([mine], largest=True)[0], 1.0)

    def _step(self) -> None:
        """One update from this process's forward passes."""
        batches = [b for _ in range(self.config.accumulation) for b in self.feeder.batches(next(self.loaded))]
        totals = _counts(batches)
        text_tokens, organs, scans, samples = (int(n) for n in self.engine.total(totals))
        calls = int(self.engine.total([float(len(batches))], largest=True)[0])
        self.place.step += 1
        self.place.total_steps += 1
        if calls == 0:
            return
        sums = self._backward(self._filled(batches, calls), len(batches), (text_tokens, organs, scans))
        progress = (self.place.step - 0.5) / self.steps if self.steps else min(self._progress(), 1.0)
        norm = self.engine.step(rate_share(self.stage, progress))
        if not math.isfinite(norm):
            self._fail("gradient", [name for _, names in batches for name in names])
        length = sum(len(b.row.ids) for b, _ in batches if b.row is not None)
        self._account(sums, (text_tokens, organs, scans), norm, length, samples)

    def _filled(self, batches: list[Named], calls: int) -> list[Named]:
        """As many forward passes as in every other process; those too many count nothing."""
        if batches:
            self.filler = batches[-1]
        if len(batches) == calls:
            return batches
        if self.filler is None:
            raise DataError("this process has had no good sample yet: mend the data, or use fewer processes")
        return [*batches, *[self.filler] * (calls - len(batches))]

    def _backward(self, batches: list[Named], real: int, totals: tuple[int, int, int]) -> list[float]:
        """Backward through all; the summed losses. Raises TrainingError when one is no number."""
        text_tokens, organs, scans = totals
        found = [0.0, 0.0, 0.0]
        wrong: list[str] = []
        with packed_mode(self.of.model.llm):
            for k, (batch, names) in enumerate(batches):
                sums = self.engine.forward(to_device(batch, self.engine.device))
                loss = sums.loss(self.stage.alpha, text_tokens, organs, self.stage.dense, scans)
                self.engine.backward(loss if k < real else loss * 0.0, last=k + 1 == len(batches))
                if k < real:
                    found = [a + b for a, b in zip(found, _values(sums), strict=True)]
                    wrong += [] if bool(torch.isfinite(loss.detach())) else list(names)
        if self.engine.total([float(bool(wrong))])[0]:
            self._fail("loss", wrong)
        return self.engine.total(found)

    def _fail(self, what: str, mine: Sequence[str]) -> None:
        names = [name for each in self.engine.gather(list(mine)) for name in each]
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        last = self.checkpoints.latest()
        kept = f"{last} is the last good checkpoint" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"the {what} is no number in step {self.place.total_steps} of samples {shown}; {kept}: "
            "take the samples out or lower the learning rates, then train on with another --out"
        )

    def _account(
        self, sums: list[float], totals: tuple[int, int, int], norm: float, length: int, samples: int
    ) -> None:
        (text, cls, dense), (text_tokens, organs, scans) = sums, totals
        values = {"text": text / max(text_tokens, 1), "cls": cls / max(organs, 1), "norm": norm}
        if self.stage.dense:
            values["dense"] = dense / max(scans, 1)
        tokens = int(self.engine.total([float(length)])[0])
        self.place.samples += samples
        self.place.tokens += tokens
        self.reporter.step(self.place.total_steps, self._progress(), values, tokens=tokens, samples=samples)

    def _end_of_epoch(self) -> None:
        """Tell what was bad in an epoch when its last unit has been seen."""
        before, now = (
            n * self.shape.step_units // self.order.length for n in (self.place.step - 1, self.place.step)
        )
        if now > before:
            self._report_bad()

    def _report_bad(self) -> None:
        """What all processes have seen since the last report; DataError when none of it was good."""
        reports = self.engine.gather(self.counter.so_far)
        self.counter.so_far = sum(reports[1:], reports[0])
        if self.counter.so_far.good + self.counter.so_far.bad and self.engine.main:
            self.counter.end_epoch()
        self.counter.so_far = BadDataReport()

    def _validate(self) -> None:
        run, place = self.of, self.place
        losses = validate(run, self.stage, self.feeder)
        self.reporter.validation(place.total_steps, losses)
        score = losses["mean"]
        if not math.isfinite(score):
            self._fail("validation loss", ["of the held-out side"])
        if place.best is None or score < place.best:
            place.best = score
            if self.engine.main and place.stage == len(self.config.stages) - 1:
                run.export("best", place)
            self.engine.barrier()

    def _save(self, over: bool) -> Path:
        """A checkpoint to go on from; at a stage's end it is of the next stage's beginning in all but the optimizer."""
        self.place.bad = self.engine.gather(self.counter.so_far)
        return self.checkpoints.save(self.engine, self.place)

    def _heed(self) -> None:
        """After ctrl-c in any process: save and stop."""
        if self.engine.total([float(self.stop.asked)])[0]:
            folder = self._save(self._over())
            raise Cancelled(
                f"interrupted after step {self.place.total_steps}; {folder} is saved: "
                "the same command goes on from there"
            )


def _counts(batches: Sequence[Named]) -> list[float]:
    """(text tokens, organs, scans with patches, samples) of forward passes."""
    return [
        float(sum(b.row.text_tokens for b, _ in batches if b.row is not None)),
        float(sum(len(b.organs.labels) for b, _ in batches)),
        float(sum(int(b.dense.counted.sum()) for b, _ in batches if b.dense is not None)),
        float(sum(len(names) for _, names in batches)),
    ]


def _values(sums: Sums) -> list[float]:
    dense = 0.0 if sums.dense is None else float(sums.dense.detach())
    return [float(sums.text.detach()), float(sums.cls.detach()), dense]


class _Stop:
    """While it lasts, ctrl-c or SIGTERM asks the training to save and stop; a second ctrl-c ends it at once.

    The signal may come while a line is written to stderr, which can't be written to a second time then: what is told
    goes past Python's files.
    """

    asked = False
    _interrupts = 0

    def __enter__(self) -> _Stop:
        self._before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._heard)
            except ValueError:  # not in the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _frame: object) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.asked = True
        os.write(_STDERR, b"stopping after this step; once more stops at once\n")
