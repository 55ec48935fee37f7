"""Muon for matrices and convolutions, AdamW for the rest: nano learns faster from the same data than by AdamW alone.

Muon makes the update of a weight matrix orthogonal (Jordan et al. 2024); its step is scaled to AdamW's size, so
that both take rates of the same order (Liu et al. 2025, arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Named = Iterable[tuple[str, nn.Parameter]]


def _as_matrix(values: Tensor) -> Tensor:
    """[out, in] of a linear weight or [out, in, d, h, w] of a convolution, as a matrix with the same memory."""
    if values.ndim == 2:
        return values
    order = (0, 2, 3, 4, 1) if values.is_contiguous(memory_format=torch.channels_last_3d) else range(5)
    matrix = values.permute(*order).flatten(1)
    return matrix


class MuonAdamW:
    """Both optimizers behind one ``step``; rates are given per step by ``set_rate``.

    ``matrices`` get Muon at ``lr``; ``rest`` (heads, embeddings, norms, biases) gets AdamW at ``adam_lr``, and
    its vectors no weight decay.
    """

    def __init__(
        self, matrices: Named, rest: Named, *, lr: float, adam_lr: float, weight_decay: float = 0.05
    ) -> None:
        self.parameters = [p for _, p in matrices]
        others = [p for _, p in rest]
        self._views = [_as_matrix(p.detach()) for p in self.parameters]
        for parameter, view in zip(self.parameters, self._views, strict=True):
            if view.data_ptr() != parameter.data_ptr():
                raise ValueError(f"a weight of shape {tuple(parameter.shape)} is not dense in memory")
        self._muon = torch.optim.Muon(
            self._views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=adam_lr, betas=(0.9, 0.98))
        self._rates = (lr, adam_lr)
        self.parameters += others

    def set_rate(self, share: float) -> None:
        """Learning rates become ``share`` of what they were given."""
        for optimizer, rate in zip((self._muon, self._adam), self._rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for parameter, view in zip(self.parameters, self._views, strict=False):
            view.grad = None if parameter.grad is None else _as_matrix(parameter.grad).reshape(view.shape)
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def split(named: Named, adam: tuple[str, ...] = ()) -> tuple[list[tuple[str, nn.Parameter]], ...]:
    """(matrices for Muon, the rest); a parameter goes to the rest when its name holds one of ``adam``."""
    matrices: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named:
        plain = parameter.ndim in (2, 5) and not any(word in name for word in adam)
        (matrices if plain else rest).append((name, parameter))
    return matrices, rest


def trapezoid(progress: float, warmup: float, decay: float) -> float:
    """Share of the full rate at ``progress`` 0..1: up over ``warmup``, level, down to 0.1 % over ``decay``."""
    return min(progress / warmup + 0.01, (1 - progress) / decay + 1e-3, 1.0)
