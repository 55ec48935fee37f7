"""``make`` as a user runs it, also where the tests themselves were started by make."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_make(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run make without the flags and variables that an outer make hands down."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "SCAN", "Q", "VENV", "ARGS", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    return subprocess.run(
        ["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
