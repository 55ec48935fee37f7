"""What pydantic finds wrong with a line, in words that say how to mend it."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from tumorchain_agent.training.data.record import CoTRound, CoTSample

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_SHOWN = 60
"""Characters of a wrong value that are repeated."""


def explain(error: ValidationError) -> str:
    """All that is wrong with a line, in one line."""
    details = error.errors(include_url=False)
    missing = [_place(detail["loc"]) for detail in details if detail["type"] == "missing"]
    found = [_missing(missing)] if missing else []
    found += [_one(detail) for detail in details if detail["type"] != "missing"]
    return "; ".join(dict.fromkeys(found))


def _missing(fields: list[str]) -> str:
    verb, them = ("are", "them") if len(fields) > 1 else ("is", "it")
    return f"{', '.join(fields)} {verb} missing; add {them}"


def _one(detail: ErrorDetails) -> str:
    where, value = _place(detail["loc"]), _short(detail["input"])
    match detail["type"]:
        case "json_invalid":
            return f"not JSON ({detail['ctx']['error']}); write one object a line, in UTF-8"
        case "model_type" if not where:
            return "not a JSON object; write one object a line"
        case "extra_forbidden":
            return f"{where} is no field{_near(where)}; what you want to keep beside goes into provenance"
        case "literal_error":
            return f"{where} is {value}; write {detail['ctx']['expected']}"
        case "string_pattern_mismatch" if not str(detail["input"]).strip():
            return f"{where} is empty; fill it in"
        case "value_error":
            message = detail["msg"].removeprefix("Value error, ")
            return f"{where}: {message}" if where else message
    wanted = detail["msg"].removeprefix("Input ").removeprefix("String ")
    return f"{where} is {value}; it {wanted}"


def _place(location: tuple[int | str, ...]) -> str:
    """``rounds[1].organs[0]``"""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".").removesuffix(".[key]")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _near(field: str) -> str:
    """``: did you mean rounds?``, or nothing."""
    known = [*CoTSample.model_fields, *CoTRound.model_fields]
    near = difflib.get_close_matches(field.rpartition(".")[2], known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
