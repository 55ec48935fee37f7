"""The folder that an answer is written to: checked before any work is done, filled in one step at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tumorchain_agent.errors import OutputError

ANSWER, TRACE, REPORT, MASKS, PICTURES = "answer.json", "trace.jsonl", "report.html", "masks", "pictures"
DICOM = "dicom"
_PARTIAL = ".tumorchain-partial-"


@dataclass(frozen=True)
class OutputFolder:
    """A folder that may be written to: new, empty, or one with an earlier answer, which is replaced."""

    path: Path

    @classmethod
    def check(cls, path: Path) -> OutputFolder:
        """The folder, untouched. OutputError when it holds something else or can't be written."""
        path = Path(os.path.abspath(path))
        existing = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
        if not existing.is_dir():
            raise OutputError(f"--out {path}: {existing} is a file, not a folder; name another folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise OutputError(
                f"--out {path}: {existing} is not writable; name another folder or change its rights"
            )
        if existing == path and not _is_ours(path):
            raise OutputError(
                f"--out {path} holds files but no {ANSWER} of an earlier answer; name a new or empty folder"
            )
        return cls(path)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A private folder to write into: the output at the end, gone when the block fails."""
        inside = self.path.is_dir()
        partial = (self.path if inside else self.path.parent) / f"{_PARTIAL}{self.path.name}-{os.getpid()}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            if inside:
                _move_into(self.path, partial)
            else:
                os.rename(partial, self.path)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise OutputError(
                f"--out {self.path} can't be written ({reason}); free space or name another folder, "
                "then run again: nothing is computed twice"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    names = [entry.name for entry in path.iterdir()]
    return not names or ANSWER in names or any(name.startswith(_PARTIAL) for name in names)


def _move_into(folder: Path, partial: Path) -> None:
    """Replace the earlier answer: its answer.json goes first and the new one comes last; other files stay."""
    old = partial / "old"
    old.mkdir()
    for name in (ANSWER, TRACE, REPORT, MASKS, PICTURES, DICOM):
        if (folder / name).exists():
            os.rename(folder / name, old / name)
    fresh = [entry for entry in partial.iterdir() if entry != old]
    for entry in sorted(fresh, key=lambda each: each.name == ANSWER):
        os.rename(entry, folder / entry.name)
    for left_over in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left_over, ignore_errors=True)
