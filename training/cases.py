"""Phantoms as the LLM sees them: pooled vision tokens, ROI tokens of the organs, Cls's verdicts, and the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.roi import global_pool, mean_roi, roi_tokens
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
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


@dataclass(frozen=True)
class _Drawn:
    volume: Tensor
    coverage: Tensor
    truth: Truth


class _Draws(IterableDataset[_Drawn]):
    def __init__(self, pool: Pool, seed: int, count: int) -> None:
        self.pool, self.seed, self.count = pool, seed, count

    def __iter__(self) -> Iterator[_Drawn]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            calm_worker()
        for i in range(worker, self.count, workers):
            case = self.pool.draw(np.random.default_rng([self.seed, i]), diseases=ONE_TUMOR)
            shares = cell_shares(merged_labels(case), len(TABLE) + 1)[[_IDS[o] for o in ORGANS]]
            volume = torch.from_numpy(windowed(to_model_axes(case.hu))[None])
            yield _Drawn(volume, torch.from_numpy(shares), case.truth)


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
def token_cases(model: VisionModel, pool: Pool, count: int, seed: int, workers: int = 1) -> list[TokenCase]:
    """Draw ``count`` patients and encode them once; same seed, same patients."""
    model.eval()
    loader = DataLoader(_Draws(pool, seed, count), 8, num_workers=workers, collate_fn=list)
    cases = []
    for drawn in loader:
        volumes = torch.stack([d.volume for d in drawn])
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.encoder(volumes).float()
        cases += [describe(model, t, d.coverage, d.truth) for t, d in zip(tokens, drawn, strict=True)]
    return cases
