"""The JSON object in a model's reply, whatever is around it: a code fence, prose, the thoughts of a reasoning model."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_THOUGHTS: Final = re.compile(r"\A.*</think>|<think>.*\Z", re.DOTALL)
"""Some servers leave out the opening tag; a reply that is cut off lacks the closing one."""


def without_thoughts(text: str) -> str:
    """What a reasoning model says after its thoughts."""
    return _THOUGHTS.sub("", text).strip()


def json_object(text: str) -> dict[str, Any]:
    """Raises ValueError when there is none."""
    spoken = without_thoughts(text)
    value = json.loads(spoken[spoken.find("{") : spoken.rfind("}") + 1])
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def json_in(text: str) -> dict[str, Any]:
    """The JSON object in a reply; empty when there is none."""
    try:
        return json_object(text)
    except ValueError:
        return {}
