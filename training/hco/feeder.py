"""Units that workers have read → forward passes: bad data is counted, questions are drawn, texts are encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tumorchain_agent.model.generate import Sampling
from tumorchain_agent.tools.roi import mean_mixture
from tumorchain_agent.training.data.policy import BadDataCounter, BadSample, Reason
from tumorchain_agent.training.data.scans import Unusable
from tumorchain_agent.training.hco.batches import Loaded, Prepared, joint_batches
from tumorchain_agent.training.hco.config import Stage, TrainConfig
from tumorchain_agent.training.hco.joint import JointBatch, JointModel
from tumorchain_agent.training.hco.own import first_rounds
from tumorchain_agent.training.hco.rows import Encoded, encode
from tumorchain_agent.training.hco.samples import (
    Item,
    of_phantom,
    of_record,
    turns,
    with_own_first_round,
    with_zoom,
)
from tumorchain_agent.training.hco.scans import ScanData, TokenCache
from tumorchain_agent.training.hco.sources import abnormal_organs
from tumorchain_agent.training.modes import FULL, Mode
from tumorchain_agent.training.phantom.patient import ORGANS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Named = tuple[JointBatch, tuple[str, ...]]
"""A forward pass and the names of its samples."""


class Feeder:
    """Prepares what a stage trains on."""

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        model: JointModel,
        tokenizer: PreTrainedTokenizerFast,
        counter: BadDataCounter,
        tokens: TokenCache | None,
    ) -> None:
        self.config, self.stage, self.model, self.tokenizer = config, stage, model, tokenizer
        self.counter, self.cache = counter, tokens
        self.device = next(model.parameters()).device

    def batches(self, loaded: Sequence[Loaded]) -> list[Named]:
        """The forward passes of some units; none when no sample of them is good."""
        prepared = [p for each in self.with_tokens(loaded) if (p := self.prepared(each))]
        if not prepared:
            return []
        text, dense = self.stage.form != "vision", self.stage.dense > 0
        return joint_batches(prepared, self.config.row_tokens, text=text, dense_targets=dense)

    @torch.no_grad()
    def with_tokens(self, loaded: Sequence[Loaded]) -> list[Loaded]:
        """Those whose scan is good; with the encoder frozen, with its tokens, rounded as the cache keeps them."""
        good = [self._closer(each) for each in self._good_scans(loaded)]
        if self.cache is None:
            return good
        fresh = [k for k, each in enumerate(good) if each.tokens is None]
        tokens = self._encoded({good[k].key: _scan(good[k]) for k in fresh})
        for k in fresh:
            good[k] = replace(good[k], tokens=tokens[good[k].key])
        return good

    def _encoded(self, scans: Mapping[str, ScanData]) -> dict[str, Tensor]:
        """Vision tokens by key, rounded as the cache keeps them and kept there if that is wanted."""
        if not scans:
            return {}
        volumes = torch.stack([scan.unit_volume() for scan in scans.values()]).to(self.device)
        found = dict(zip(scans, self.model.encode(volumes).half().cpu(), strict=True))
        if self.cache is not None and self.config.data.cache_tokens:
            for key, tokens in found.items():
                self.cache.put(key, tokens)
        return found

    def _closer(self, each: Loaded) -> Loaded:
        """In a stage of form ``vision`` some scans are seen as the crop of an organ; which ones, seed and unit tell."""
        scan = _scan(each)
        if not self.stage.zoom_share or not scan.crops:
            return each
        rng = np.random.default_rng([41, self.config.seed, each.number])
        if rng.random() >= self.stage.zoom_share:
            return each
        organ = str(rng.choice(sorted(scan.crops)))
        crop = replace(scan.crops[organ], present=scan.present, truth=scan.truth)
        key, tokens = each.crop_key(organ), each.crop_tokens.get(organ)
        return replace(each, scan=crop, key=key, tokens=tokens, crop_tokens={})

    def _good_scans(self, loaded: Sequence[Loaded]) -> Iterator[Loaded]:
        for each in loaded:
            wrong = each.scan if isinstance(each.scan, Unusable) else _not_finite(each.scan)
            if wrong is None:
                yield each
                continue
            for name in [record.id for record in each.records] or [f"scan {each.unit.scan}"]:
                self.counter.add(BadSample(sample=name, reason=wrong.reason, message=wrong.message))

    def prepared(self, each: Loaded) -> Prepared | None:
        """A scan with its encoded conversations; ``None`` when no question of it is good."""
        scan = _scan(each)
        items = list(self.counter.good(self.items(each)))
        if not items:
            return None
        items = self._own(each, items)
        texts = items if self.stage.form != "vision" else []
        encoded = tuple(
            self._conversation(item, scan, self._shows_crops(each, k)) for k, item in enumerate(texts)
        )
        abnormal = dict(scan.abnormal)
        if each.records:
            abnormal = abnormal_organs(each.records[0], scan)
        prepared = Prepared(scan, abnormal, encoded, each.tokens, tuple(item.name for item in items))
        return replace(prepared, crop_tokens=self._crop_tokens(each, prepared.shown_crops))

    def _shows_crops(self, each: Loaded, question: int) -> bool:
        """By seed, unit and question alone."""
        rng = np.random.default_rng([43, self.config.seed, each.number, question])
        return bool(rng.random() < self.stage.zoom_shown)

    def _conversation(self, item: Item, scan: ScanData, crops: bool) -> Encoded:
        found = turns(item, self.stage.form, scan.coverage, present=scan.present)
        sides_mm = {organ: crop.side_mm for organ, crop in scan.crops.items()} if crops else {}
        own = {organ: crop.coverage[organ] for organ, crop in scan.crops.items()}
        shown = with_zoom(found, sides_mm)
        return encode(item.name, shown, scan.coverage, self.tokenizer, own, self.config.zoom)

    @torch.no_grad()
    def _crop_tokens(self, each: Loaded, organs: Sequence[str]) -> dict[str, Tensor]:
        """Of the crops that are shown, with the encoder frozen."""
        if self.cache is None:
            return {}
        crops, known = _scan(each).crops, each.crop_tokens
        fresh = {each.crop_key(organ): crops[organ] for organ in organs if organ not in known}
        encoded = self._encoded(fresh)
        return {organ: known[organ] if organ in known else encoded[each.crop_key(organ)] for organ in organs}

    def items(self, each: Loaded) -> Iterator[Item | BadSample]:
        """The questions of a unit, each in a mode of its own."""
        scan, modes = _scan(each), [self._mode(each, pick) for pick in each.unit.picks]
        if each.records:
            for record, mode in zip(each.records, modes, strict=True):
                yield of_record(record, scan, mode)
            return
        suspicion = self._suspicion(each)
        for pick, mode in zip(each.unit.picks, modes, strict=True):
            yield of_phantom(scan, [self.config.seed, pick], suspicion, f"{scan.name}/{pick}", mode)

    def _mode(self, each: Loaded, pick: int) -> Mode:
        """By seed, unit and question; ``instruct`` is without reasoning, and findings alone are in no mode."""
        if self.stage.form not in ("instruct", "cot"):
            return FULL
        drawn = self.stage.modes.draw(np.random.default_rng([37, self.config.seed, each.number, pick]))
        return replace(drawn, cot=drawn.cot and self.stage.form == "cot")

    def _suspicion(self, each: Loaded) -> dict[str, float] | None:
        """p(abnormal) of the five organs by Cls as it is now, where that is wanted and tokens are known."""
        phantoms = self.config.data.phantoms
        if phantoms is None or phantoms.suspicion == "neutral" or each.tokens is None:
            return None
        coverage = _scan(each).coverage
        there = [organ for organ in ORGANS if organ in coverage]
        if not there:
            return {}
        means = torch.cat([mean_mixture(coverage[organ]).of(each.tokens.float()) for organ in there])
        weight = self.model.tower.cls.weight
        with torch.no_grad():
            p = self.model.tower.classify(means.to(weight)).float().softmax(-1)[:, 1]
        return dict(zip(there, p.tolist(), strict=True))

    def _own(self, each: Loaded, items: list[Item]) -> list[Item]:
        """The items, some with the model's own first round; which ones depends on seed and unit alone."""
        stage = self.stage
        if stage.form != "cot" or stage.own_first_rounds == 0:
            return items
        rng = np.random.default_rng([29, self.config.seed, each.number])
        chosen = [
            k for k, item in enumerate(items) if rng.random() < stage.own_first_rounds and len(item.texts) > 1
        ]
        if not chosen:
            return items
        samplings = [
            Sampling(stage.own_temperature, 1.0, stage.own_tokens, int(rng.integers(2**31))) for _ in chosen
        ]
        questions = [items[k].question for k in chosen]
        said = first_rounds(self.model, self.tokenizer, self._tokens(each), questions, samplings)
        for k, text in zip(chosen, said, strict=True):
            items[k] = with_own_first_round(items[k], text)
        return items

    @torch.no_grad()
    def _tokens(self, each: Loaded) -> Tensor:
        if each.tokens is not None:
            return each.tokens.float().to(self.device)
        return self.model.encode(_scan(each).unit_volume()[None].to(self.device))[0]


def _scan(each: Loaded) -> ScanData:
    if isinstance(each.scan, Unusable):
        raise ValueError(f"{each.scan.message} was not sorted out")
    return each.scan


def _not_finite(scan: ScanData) -> Unusable | None:
    """NaN can't be in a volume that was opened from a scan; it can in one that another program cached."""
    for each in (scan, *scan.crops.values()):
        volume = each.volume
        if volume is not None and volume.dtype is not torch.uint8 and not bool(torch.isfinite(volume).all()):
            return _holds_nan(scan)
    return None


def _holds_nan(scan: ScanData) -> Unusable:
    return Unusable(Reason.NOT_FINITE, f"{scan.name} holds NaN or infinity; make it again from its scan")
