"""Files and folders for the user alone, whatever the umask."""

from __future__ import annotations

import os
from pathlib import Path


def private_folder(folder: Path) -> None:
    """Make it, and what is missing above it, with mode 0700; a folder that exists keeps its mode."""
    if not folder.parent.exists():
        private_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)


def private_file(file: Path) -> None:
    """Make it, empty, with mode 0600, for a library that would make it with another; one that exists stays."""
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
