"""Dense supervision: what each vision token knows of its patch, from the label map and from lesions where known.

The heads are used in training only and are no part of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tumorchain_agent.tools.organs import ORGANS
from tumorchain_agent.training.targets import ATTRIBUTES

UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class DenseTargets:
    """What is true of each patch of B scans, in token order."""

    organs: Tensor
    """[B, 2048, 56]: share of the patch that each organ of Table 10 covers."""
    lesion: Tensor
    """[B, 2048]: share that tumors and metastases cover; negative where that isn't known."""
    attributes: Tensor
    """int64 [B, 2048, len(ATTRIBUTES)]: class of the lesion's property, −1 where none applies."""
    counted: Tensor
    """[B]: 1, or 0 for a scan that another batch of the step has counted already."""


class DenseHeads(nn.Module):
    """One Linear a target on the vision tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.organ = nn.Linear(width, len(ORGANS))
        self.lesion = nn.Linear(width, 1)
        self.attributes = nn.ModuleList(nn.Linear(width, len(names)) for names in ATTRIBUTES.values())
        nn.init.constant_(self.lesion.bias, -4.0)

    def forward(self, tokens: Tensor, targets: DenseTargets) -> Tensor:
        """Sum over scans of their mean losses, from tokens [B, 2048, C]; every head takes part in every call."""
        organs = F.binary_cross_entropy_with_logits(
            self.organ(tokens).float(), (targets.organs * 2).clamp(max=1), reduction="none"
        )
        wanted = (targets.lesion * 4).clamp(0, 1)
        weight = (1 + 7 * wanted) * (targets.lesion >= 0)
        lesion = F.binary_cross_entropy_with_logits(
            self.lesion(tokens).float().squeeze(-1), wanted, weight, reduction="none"
        )
        total = organs.mean((1, 2)) + 4 * lesion.mean(1)
        for k, head in enumerate(self.attributes):
            classes = targets.attributes[..., k]
            known = (classes != UNKNOWN).sum(1)
            each = F.cross_entropy(
                head(tokens).float().transpose(1, 2), classes, ignore_index=UNKNOWN, reduction="none"
            )
            total = total + 0.15 * each.sum(1) / known.clamp_min(1)
        return (total * targets.counted).sum()


def stack(targets: list[DenseTargets]) -> DenseTargets:
    """Those of several scans as one batch."""
    return DenseTargets(
        torch.cat([t.organs for t in targets]),
        torch.cat([t.lesion for t in targets]),
        torch.cat([t.attributes for t in targets]),
        torch.cat([t.counted for t in targets]),
    )
