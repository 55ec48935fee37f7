"""The deterministic fill of the numeric oracles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def fill(model: nn.Module) -> None:
    """Parameters in the order of their keys: 0.05 sin(0.1 j + i), norms' weights plus 1."""
    for i, (key, value) in enumerate(sorted(model.state_dict().items())):
        j = torch.arange(value.numel(), dtype=torch.float64)
        offset = 1.0 if value.ndim == 1 and key.endswith(".weight") else 0.0
        value.copy_((offset + 0.05 * torch.sin(0.1 * j + i)).view(value.shape))


def ramp(shape: Sequence[int]) -> Tensor:
    """0.5 + 0.5 sin(0.01 j)."""
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.01 * j)).view(*shape)


def error(actual: Tensor, expected: Sequence[float] | float) -> float:
    return float((actual - torch.tensor(expected, dtype=torch.float64)).abs().max())
