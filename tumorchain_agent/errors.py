"""The one error tree. Every message names the culprit and the remedy in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

Fault = Literal["missing", "cut_off", "not_finite"]
"""What is wrong with a file, where the caller may want to tell such files apart and count them."""

_NAMED = 10
"""So many of a kind stand in a message; the rest is counted."""


class TumorChainError(Exception):
    """Anything the user can do something about. ``str(error)`` is one line: the culprit, then the remedy."""

    exit_code = 1

    @property
    def code(self) -> str:
        """Stable machine-readable name, for tool errors and JSON output, e.g. ``"InputError"``."""
        return type(self).__name__


class InputError(TumorChainError):
    """A file, question or option that can't be used as given."""

    exit_code = 2

    def __init__(self, message: str = "", fault: Fault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class ScanError(InputError):
    """The scan can't be read as one CT volume."""


class LabelMapError(InputError):
    """The label map doesn't fit the scan or holds unknown ids."""


class UnknownOrganError(InputError):
    """A name that matches none of the 56 organs of Table 10."""


class QuestionError(InputError):
    """The question is empty or too long."""


class DataError(InputError):
    """A file, line or sample of training data that can't be used."""


class OutputError(InputError):
    """The output folder can't be written."""


class CheckpointError(InputError):
    """A checkpoint folder that is incomplete, damaged, or not the one the evidence was made with."""


class WeightsError(CheckpointError):
    """Weights whose names or shapes aren't those of the network: ``details`` names every single one."""

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)

    @classmethod
    def listing(cls, culprit: object, problems: Mapping[str, Sequence[str]], remedy: str) -> WeightsError:
        """From the kind of a problem (singular) to all that have it; kinds without any are left out."""
        found = {kind: names for kind, names in problems.items() if names}
        counted = "; ".join(_count(kind, names) for kind, names in found.items())
        details = [f"{kind}: {name}" for kind, names in found.items() for name in names]
        return cls(f"{culprit}: {counted}; {remedy}", details)


def _count(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more, which --verbose lists" if len(names) > _NAMED else ""
    return f"{len(names)} × {kind}: {', '.join(names[:_NAMED])}{more}"


class SegmentationError(TumorChainError):
    """The segmentation worker failed or its weights are missing."""


class ChatModelError(TumorChainError):
    """The LLM endpoint failed, refused, or answered with nothing."""


class EndpointError(InputError, ChatModelError):
    """The LLM's address or model name is wrong: nobody answers there, or nobody of that name."""


class ServingError(TumorChainError):
    """vLLM could not be started, or ended by itself."""


class TrainingError(TumorChainError):
    """Training can't go on as it is: the loss is no number any more."""


class Cancelled(TumorChainError):
    """The caller cancelled; nothing half-written was left behind."""

    exit_code = 130
