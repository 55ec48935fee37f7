"""What is finished, patient by patient, as JSON lines: a run that was cut off, or is given more to do, goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from tumorchain_agent.errors import OutputError
from tumorchain_agent.records import Record
from tumorchain_agent.training.phantom.export import GENERATOR
from tumorchain_agent.training.suite.patients import Variant

FILE = "finished.jsonl"
VERSION = f"{GENERATOR}.1"
"""Of the phantoms and of what they are asked; lines of another one can't be gone on from."""
Line = TypeVar("Line", bound="Finished")


class Finished(Record):
    """What every line has; ``key`` tells lines of a kind apart that are about the same patient."""

    kind: str
    version: str = VERSION
    checkpoint_id: str
    masks: str
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        return (self.kind, self.checkpoint_id, self.masks, str(self.seed))


class Answered(Record):
    """A question and what was answered."""

    subtask: str
    question: str
    asked_organ: str | None
    truth: dict[str, str]
    read: dict[str, str] | None
    """``None`` when no class could be read out of the last text."""
    organs: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    cut_off: bool


class PatientFacts(Record):
    """What the strata need."""

    organ: str | None
    size_mm: float
    edge: bool
    """Small, and at its organ's surface."""
    pushes: bool
    """The tumor pushes a neighbour aside."""
    mimic: bool
    """There is a benign finding that looks like a tumor."""


class Answers(Finished):
    """All questions of a patient in one column."""

    kind: Literal["answers"] = "answers"
    column: str
    """Mode, and whether the image was shown."""
    facts: PatientFacts
    answers: tuple[Answered, ...]

    @property
    def key(self) -> tuple[str, ...]:
        return (*super().key, self.column)


class OrganFeatures(Record):
    """Statistics of an organ's ROI tokens before the projector."""

    intensity: float
    p_abnormal: float
    mean: tuple[float, ...]
    most: tuple[float, ...]
    sd: tuple[float, ...]


class Features(Finished):
    """What a probe reads, and by what organs of different patients are matched."""

    kind: Literal["features"] = "features"
    facts: PatientFacts
    abnormal: tuple[str, ...]
    organs: dict[str, OrganFeatures]


class Pair(Record):
    """The organ that is true and the one answered in a variant of a patient; ``no tumor`` is one as well."""

    variant: Variant
    truth: str
    read: str | None


class Pairs(Finished):
    """A patient with a tumor and its counterfactuals, all asked the same."""

    kind: Literal["pairs"] = "pairs"
    mode: str
    variants: tuple[Pair, ...]

    @property
    def key(self) -> tuple[str, ...]:
        return (*super().key, self.mode)


class Swap(Finished):
    """A patient asked about an organ with its own tokens and with a partner's."""

    kind: Literal["swap"] = "swap"
    mode: str
    partner: int
    organ: str
    own: str | None
    partners: str | None
    """What the partner's own answer is."""
    swapped: str | None
    """With the partner's tokens of this organ after the own first round."""

    @property
    def key(self) -> tuple[str, ...]:
        return (*super().key, self.mode, str(self.partner), self.organ)


class Unfounded(Finished):
    """A patient without a tumor, asked about one as if there were one."""

    kind: Literal["unfounded"] = "unfounded"
    mode: str
    answer: Answered

    @property
    def key(self) -> tuple[str, ...]:
        return (*super().key, self.mode)


_KINDS: dict[str, type[Finished]] = {
    "answers": Answers,
    "features": Features,
    "pairs": Pairs,
    "swap": Swap,
    "unfounded": Unfounded,
}


class FinishedLines:
    """Lines in memory and, with a folder, on disk: appended whole, and read again at the next start."""

    def __init__(self, folder: Path | None) -> None:
        """Raises OutputError when the folder can't be written or its file is of another version's phantoms."""
        self._path = folder / FILE if folder else None
        self._lines: dict[tuple[str, ...], Finished] = {}
        if self._path is not None:
            self._open(self._path)

    def get(self, like: type[Line], *key: str) -> Line | None:
        """The line of a kind with this rest of its key."""
        kind = like.model_fields["kind"].default
        found = self._lines.get((kind, *key))
        return found if isinstance(found, like) else None

    def add(self, *lines: Finished) -> None:
        """Keep lines; all of them are on disk when this returns."""
        for line in lines:
            self._lines[line.key] = line
        if self._path is None or not lines:
            return
        text = "".join(f"{line.model_dump_json()}\n" for line in lines)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self._path} can't be written ({error.strerror}); free space, then run again: "
                "it goes on from there"
            ) from error

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and any(path.parent.iterdir()):
                raise OutputError(f"--out {path.parent} holds other files and no {FILE}; name a new folder")
            found = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise OutputError(
                f"--out {path.parent} can't be used ({error.strerror}); name another"
            ) from error
        whole = found[: found.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            record = _parsed(path, number, line)
            self._lines[record.key] = record
        if len(whole) < len(found):
            with path.open("r+b") as file:
                file.truncate(len(whole))


def _parsed(path: Path, number: int, line: bytes) -> Finished:
    try:
        values: dict[str, Any] = json.loads(line)
        record = _KINDS[values["kind"]].model_validate_json(line)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise OutputError(f"line {number} of {path} is damaged ({reason}); delete it, or the file") from error
    if record.version != VERSION:
        raise OutputError(f"{path} is of another version's phantoms or questions; name another --out")
    return record
