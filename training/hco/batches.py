"""What a step is made of: a function of seed and step alone, whatever was interrupted before.

Step s takes the units s·N … s·N + N − 1 of an endless sequence, N = processes · accumulation · (batch ÷ questions a
scan); each epoch is a permutation of its own. Processes take turns, so that one process with twice the accumulation
sees in each step what two processes see.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.scans import Unusable
from tumorchain_agent.training.hco import dense
from tumorchain_agent.training.hco.joint import JointBatch
from tumorchain_agent.training.hco.rows import Encoded, Questions, best_fit, make_organs, make_row
from tumorchain_agent.training.hco.scans import ScanData, TokenCache
from tumorchain_agent.training.hco.sources import RecordSource, Source, Unit, load

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Holder = TypeVar("Holder", bound=DataclassInstance)


class Order:
    """The endless sequence of units."""

    def __init__(self, source: Source, questions: int, *seed: int) -> None:
        self.source, self.questions, self.seed = source, questions, seed
        self.length = len(source.units(0, questions))
        """Units of an epoch."""
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "questions": self.questions, "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"], state["questions"], *state["seed"])  # type: ignore[misc]

    def unit(self, number: int) -> Unit:
        epoch, place = divmod(number, self.length)
        return self._epoch(epoch)[place]

    def _shuffled(self, epoch: int) -> list[Unit]:
        units = self.source.units(epoch, self.questions)
        order = np.random.default_rng([23, *self.seed, epoch]).permutation(len(units))
        return [units[int(i)] for i in order]


@dataclass(frozen=True)
class Shape:
    """How a step is divided."""

    units: int
    """Of a forward pass."""
    accumulation: int
    world: int = 1
    rank: int = 0

    @property
    def step_units(self) -> int:
        return self.units * self.accumulation * self.world

    def numbers(self, index: int) -> range:
        """Unit numbers of this process's forward pass ``index``, counted from the stage's start."""
        step, part = divmod(index, self.accumulation)
        first = step * self.step_units + (part * self.world + self.rank) * self.units
        return range(first, first + self.units)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A unit with what a worker read for it."""

    number: int
    unit: Unit
    key: str
    scan: ScanData | Unusable
    records: tuple[CoTSample, ...]
    tokens: Tensor | None
    crop_tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """Organ → vision tokens of its crop, where they are known."""

    def crop_key(self, organ: str) -> str:
        """Name of a crop's tokens in the cache."""
        return f"{self.key}-{organ}"


Numbered = tuple[int, Unit]


class Reader(Dataset[list[Loaded]]):
    """Forward passes by their units, which this process looks up and worker processes read."""

    def __init__(self, order: Order, shape: Shape, tokens: TokenCache | None) -> None:
        self.order, self.shape, self.tokens = order, shape, tokens

    def __getitem__(self, units: list[Numbered]) -> list[Loaded]:
        return [self.read(number, unit) for number, unit in units]

    def units(self, index: int) -> list[Numbered]:
        """Those of forward pass ``index``."""
        return [(number, self.order.unit(number)) for number in self.shape.numbers(index)]

    def read(self, number: int, unit: Unit) -> Loaded:
        """The volume is left out where the encoder's tokens are known."""
        source = self.order.source
        key = source.key(unit.scan)
        tokens = self.tokens.get(key) if self.tokens is not None else None
        known = self._crop_tokens(key)
        scan = load(source, unit.scan, volume=tokens is None, crops=self._zoomed() - known.keys())
        records = (
            tuple(source.record(pick) for pick in unit.picks) if isinstance(source, RecordSource) else ()
        )
        return Loaded(number, unit, key, scan, records, tokens, known)

    def _zoomed(self) -> frozenset[str]:
        zoom = self.order.source.zoom
        return frozenset() if zoom is None else frozenset(zoom.organs)

    def _crop_tokens(self, key: str) -> dict[str, Tensor]:
        if self.tokens is None:
            return {}
        found = {organ: self.tokens.get(f"{key}-{organ}") for organ in sorted(self._zoomed())}
        return {organ: tokens for organ, tokens in found.items() if tokens is not None}


def stream(reader: Reader, first: int, count: int | None, workers: int) -> Iterator[list[Loaded]]:
    """Forward passes from index ``first`` on, in order; ``count`` of them or endless."""
    indices = itertools.count(first) if count is None else range(first, first + count)
    units: Any = (reader.units(index) for index in indices)
    loader: DataLoader[list[Loaded]] = DataLoader(
        reader,
        batch_size=None,
        sampler=units,
        num_workers=workers,
        worker_init_fn=_leave_ctrl_c_to_the_main_process,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _leave_ctrl_c_to_the_main_process(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A good scan with its encoded conversations."""

    scan: ScanData
    abnormal: dict[str, int]
    encoded: tuple[Encoded, ...]
    tokens: Tensor | None
    names: tuple[str, ...]
    crop_tokens: Mapping[str, Tensor] = field(default_factory=dict)
    """Of crops that the conversations show, where the encoder is frozen."""

    @property
    def shown_crops(self) -> tuple[str, ...]:
        """Organs whose crops the conversations show."""
        return tuple(dict.fromkeys(organ for each in self.encoded for organ in each.crops if organ))


def joint_batches(
    prepared: Sequence[Prepared], row_tokens: int, *, text: bool, dense_targets: bool
) -> list[tuple[JointBatch, tuple[str, ...]]]:
    """The forward passes of some scans, each with its samples' names: one, or more where a row would be too long.

    A scan's organs and patches count once, however many rows its questions take.
    """
    asked = [Questions(k, p.encoded, p.scan.coverage, p.abnormal) for k, p in enumerate(prepared)]
    rows = best_fit(asked, row_tokens) if text else [asked]
    counted: set[int] = set()
    found = []
    for items in rows:
        scans = list(dict.fromkeys(item.scan for item in items))
        crops = list(
            dict.fromkeys((i.scan, organ) for i in items for e in i.encoded for organ in e.crops if organ)
        )
        mine = [_placed(item, scans, crops) for item in items]
        fresh = [k for k in scans if k not in counted]
        counted |= set(fresh)
        organs = make_organs([replace(asked[k], scan=scans.index(k)) for k in fresh])
        row = make_row(mine) if text else None
        each = [prepared[k].scan.dense_targets(counted=k in fresh) for k in scans] if dense_targets else []
        targets = dense.stack(each) if each else None
        names = row.names if row is not None else tuple(n for k in scans for n in prepared[k].names)
        closer = [(prepared[k], organ) for k, organ in crops]
        seen = _seen([prepared[k] for k in scans], closer)
        found.append((JointBatch(row, organs, *seen, dense=targets), names))
    return found


def _placed(item: Questions, scans: Sequence[int], crops: Sequence[tuple[int, str]]) -> Questions:
    """Numbered as the batch is: whole scans first, then crops."""
    mine = {organ: len(scans) + n for n, (scan, organ) in enumerate(crops) if scan == item.scan}
    return replace(item, scan=scans.index(item.scan), crops=mine)


def _seen(
    prepared: Sequence[Prepared], crops: Sequence[tuple[Prepared, str]]
) -> tuple[Tensor | None, Tensor | None]:
    """(volumes, tokens) of a batch's scans and then crops: one of them."""
    known = [p.tokens for p in prepared] + [p.crop_tokens.get(organ) for p, organ in crops]
    tokens = [each for each in known if each is not None]
    if len(tokens) == len(known):
        return None, torch.stack(tokens)
    data = [p.scan for p in prepared] + [p.scan.crops[organ] for p, organ in crops]
    return torch.stack([each.unit_volume() for each in data]), None


def to_device(holder: Holder, device: torch.device) -> Holder:
    """A copy of a dataclass whose tensors, also those of dataclasses inside, are on ``device``."""
    moved: dict[str, Any] = {}
    for each in fields(holder):
        value = getattr(holder, each.name)
        if isinstance(value, Tensor):
            moved[each.name] = value.to(device, non_blocking=True)
        elif hasattr(value, "__dataclass_fields__"):
            moved[each.name] = to_device(value, device)
    return replace(holder, **moved)
