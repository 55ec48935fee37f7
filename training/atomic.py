"""Checkpoints of a training are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_torch(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` to a temporary name beside ``path``, then rename over it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
