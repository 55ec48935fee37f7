"""Phantoms as the LLM sees them: pooled vision tokens, ROI tokens of the organs, zoomed or not, Cls, and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.roi import global_pool, mean_roi, roi_tokens
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.phantom.crops import PhantomCrop, crop_case
from tumorchain_agent.training.phantom.patient import ORGANS, Case, Truth
from tumorchain_agent.training.phantom.volume import Pool, cell_shares, merged_labels, to_model_axes, windowed
from tumorchain_agent.training.vision_stage import VisionModel
from tumorchain_agent.training.workers import calm_worker

_IDS = {name: number for number, name in TABLE.items()}
ONE_TUMOR = (0.4, 0.6)
"""Odds of no tumour and of one, as in the evaluation cohort."""


@dataclass(frozen=True)
class TokenCase:
    """One patient; tokens in the encoder's width C, before the projector (float16)."""

    truth: Truth
    whole: Tensor
    """[256, C]: τ_v pooled 2 × 2 × 2."""
    roi: dict[str, Tensor]
    """Organ in the scan → [n, C]."""
    means: dict[str, Tensor]
    """Organ → [C], what Cls reads."""
    suspicion: dict[str, float]
    """Organ → p(abnormal) by Cls."""
    zoomed: dict[str, tuple[float, Tensor]] = field(default_factory=dict)
    """Organ → width of its crop in mm, and its [n, C] tokens, pooled; empty without ROI zoom."""


@dataclass(frozen=True)
class _Drawn:
    volume: Tensor
    coverage: Tensor
    truth: Truth
    crops: tuple[_DrawnCrop, ...] = ()


@dataclass(frozen=True)
class _DrawnCrop:
    organ: str
    volume: Tensor
    coverage: Tensor
    """[8, 16, 16]."""
    side_mm: float


class _Draws(IterableDataset[_Drawn]):
    def __init__(self, pool: Pool, seed: int, count: int, zoom: Zoom | None = None) -> None:
        self.pool, self.seed, self.count, self.zoom = pool, seed, count, zoom

    def __iter__(self) -> Iterator[_Drawn]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            calm_worker()
        for i in range(worker, self.count, workers):
            rng = np.random.default_rng([self.seed, i])
            case = self.pool.draw(rng, diseases=ONE_TUMOR)
            shares = cell_shares(merged_labels(case), len(TABLE) + 1)[[_IDS[o] for o in ORGANS]]
            volume = torch.from_numpy(windowed(to_model_axes(case.hu))[None])
            yield _Drawn(volume, torch.from_numpy(shares), case.truth, self._crops(case, rng))

    def _crops(self, case: Case, rng: np.random.Generator) -> tuple[_DrawnCrop, ...]:
        if self.zoom is None:
            return ()
        found = [crop_case(case, organ, self.zoom, rng) for organ in self.zoom.organs]
        return tuple(_drawn(crop) for crop in found if crop is not None)


def _drawn(crop: PhantomCrop) -> _DrawnCrop:
    volume, own = torch.from_numpy(crop.volume[None]), torch.from_numpy(crop.own_coverage)
    return _DrawnCrop(crop.organ, volume, own, crop.side_mm)


def describe(model: VisionModel, tokens: Tensor, coverage: Tensor, truth: Truth) -> TokenCase:
    """A case from vision tokens [2048, C] and coverage [5, 8, 16, 16] by the same Γ and Cls as inference."""
    roi, means, suspicion = {}, {}, {}
    for k, organ in enumerate(ORGANS):
        share = coverage[k].numpy()
        found = roi_tokens(tokens, share)
        if len(found.tokens) == 0:
            continue
        roi[organ] = found.tokens.half()
        means[organ] = mean_roi(tokens, share)
        logits = model.cls(means[organ])
        suspicion[organ] = float(torch.softmax(logits.float(), -1)[1])
    return TokenCase(truth, global_pool(tokens).half(), roi, means, suspicion)


@torch.inference_mode()
def token_cases(
    model: VisionModel, pool: Pool, count: int, seed: int, workers: int = 1, zoom: Zoom | None = None
) -> list[TokenCase]:
    """Draw ``count`` patients and encode them once; same seed, same patients. With ``zoom`` their crops, too."""
    model.eval()
    loader = DataLoader(_Draws(pool, seed, count, zoom), 8, num_workers=workers, collate_fn=list)
    cases = []
    for drawn in loader:
        tokens = _encoded(model, [d.volume for d in drawn])
        for each, patient in zip(tokens, drawn, strict=True):
            case = describe(model, each, patient.coverage, patient.truth)
            cases.append(replace(case, zoomed=_zoomed(model, patient, zoom, case)) if zoom else case)
    return cases


def _encoded(model: VisionModel, volumes: Sequence[Tensor]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        found: Tensor = model.encoder(torch.stack(list(volumes)))
    return found.float()


def _zoomed(
    model: VisionModel, patient: _Drawn, zoom: Zoom, case: TokenCase
) -> dict[str, tuple[float, Tensor]]:
    """Organs that have tokens of the whole scan, as at inference."""
    crops = [crop for crop in patient.crops if crop.organ in case.roi]
    if not crops:
        return {}
    tokens = _encoded(model, [crop.volume for crop in crops])
    return {
        crop.organ: (crop.side_mm, zoom.mixture(crop.coverage.numpy()).of(each).half())
        for crop, each in zip(crops, tokens, strict=True)
    }
