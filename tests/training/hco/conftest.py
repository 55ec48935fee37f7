"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.hco import tiny


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy cohort with four questions a patient; tests only read it. Its scans are preprocessed once for all."""
    return tiny.cohort(tmp_path_factory.mktemp("cohort"), questions=4)
