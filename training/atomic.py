"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tumorchain_agent.errors import OutputError


@contextmanager
def whole_file(path: Path, remedy: str = "free space, then run again") -> Iterator[IO[bytes]]:
    """A stream that takes the place of ``path`` when the block ends without an error, else leaves no trace.

    Raises OutputError with the ``remedy`` when the place can't be written.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{path} can't be written ({reason}); {remedy}") from error
    finally:
        draft.unlink(missing_ok=True)


def save_torch(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` into a whole file."""
    import torch

    with whole_file(path) as file:
        torch.save(state, file)
