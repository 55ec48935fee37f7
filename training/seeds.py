"""First seeds of the phantoms for each purpose; the ranges don't overlap."""

from __future__ import annotations

from typing import Final

VALIDATION_SEED: Final = 900_000
"""Anatomies that trainings are watched on."""
TRAINING_SEED: Final = 1_000_000
"""Anatomies that models, and the suite's probes, learn from."""
DISTRIBUTION_SEED: Final = 3_000_000
"""Scans that describe the training distribution."""
QUICK_SEED: Final = 5_000_000
"""``evaluate --quick``."""
HELD_OUT_SEED: Final = 9_000_000
"""``evaluate --suite phantom``: no training and no choice between trainings ever sees them."""
