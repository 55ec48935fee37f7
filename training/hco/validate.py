"""Losses on held-out patients, task by task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tumorchain_agent.training.data.policy import BadDataCounter, OnBadData
from tumorchain_agent.training.hco.batches import Loaded, Order, Reader, Shape, joint_batches, to_device
from tumorchain_agent.training.hco.config import Stage, TrainConfig
from tumorchain_agent.training.hco.feeder import Feeder
from tumorchain_agent.training.tasks import TASK_OF

if TYPE_CHECKING:
    from tumorchain_agent.training.hco.trainer import Run

HELD_OUT_SEED = 31


@torch.no_grad()
def validate(run: Run, stage: Stage, feeder: Feeder) -> dict[str, float]:
    """Text loss of each task, ``cls``, ``dense``, and ``mean``: eq. 8 with the tasks' losses averaged.

    The same units in every call; rounds are the truth's, and Cls's suspicion is left out, so that losses compare.
    """
    model, engine = run.model, run.engine
    training = [module for module in model.modules() if module.training]
    model.eval()
    quiet = Feeder(
        _neutral(run.config),
        stage.model_copy(update={"own_first_rounds": 0.0}),
        model,
        run.tokenizer,
        BadDataCounter(OnBadData.SKIP),
        feeder.cache,
    )
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for loaded in _units(run, feeder):
        for task, each in _by_task(quiet, loaded):
            _add(run, stage, quiet, task, each, sums)
    for module in training:
        module.training = True
    names = [*sorted(set(TASK_OF.values())), "external", "cls", "dense"]
    flat = engine.total([value for name in names for value in sums[name]])
    pairs = {name: (flat[2 * k], flat[2 * k + 1]) for k, name in enumerate(names)}
    losses = {name: total / count for name, (total, count) in pairs.items() if count}
    texts = [value for name, value in losses.items() if name not in ("cls", "dense")]
    mean = sum(texts) / len(texts) if texts else 0.0
    mean += stage.alpha * losses.get("cls", 0.0) + stage.dense * losses.get("dense", 0.0)
    return losses | {"mean": mean}


def _neutral(config: TrainConfig) -> TrainConfig:
    """Phantoms' questions don't depend on Cls as it is now."""
    if config.data.phantoms is None:
        return config
    phantoms = config.data.phantoms.model_copy(update={"suspicion": "neutral"})
    return config.model_copy(update={"data": config.data.model_copy(update={"phantoms": phantoms})})


def _units(run: Run, feeder: Feeder) -> Iterator[Loaded]:
    """This process's share of the held-out units."""
    order = Order(run.held_out, run.config.questions_per_scan, run.config.seed, HELD_OUT_SEED)
    reader = Reader(order, Shape(1, 1), feeder.cache)
    count = min(run.config.validation_units, order.length)
    for number in range(run.engine.rank, count, run.engine.world):
        yield reader.read(number, order.unit(number))


def _by_task(feeder: Feeder, loaded: Loaded) -> Iterator[tuple[str, Loaded]]:
    """A unit divided into units of one task each; phantoms' picks and records go with their tasks."""
    found = feeder.with_tokens([loaded])
    if not found:
        return
    tasks: dict[str, list[int]] = defaultdict(list)
    for k, item in enumerate(feeder.items(found[0])):
        tasks[getattr(item, "task", "external")].append(k)
    for task, places in tasks.items():
        unit = replace(loaded.unit, picks=tuple(loaded.unit.picks[k] for k in places))
        records = tuple(loaded.records[k] for k in places) if loaded.records else ()
        yield task, replace(found[0], unit=unit, records=records)


def _add(
    run: Run, stage: Stage, feeder: Feeder, task: str, each: Loaded, sums: dict[str, list[float]]
) -> None:
    prepared = feeder.prepared(each)
    if prepared is None:
        return
    text, dense = stage.form != "vision", stage.dense > 0
    for batch, _ in joint_batches([prepared], run.config.row_tokens, text=text, dense_targets=dense):
        found = run.model(to_device(batch, run.engine.device))
        parts = {task: (found.text, found.text_tokens), "cls": (found.cls, found.organs)}
        if found.dense is not None:
            parts["dense"] = (found.dense, found.scans)
        for name, (total, count) in parts.items():
            sums[name][0] += float(total)
            sums[name][1] += count
