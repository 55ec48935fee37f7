"""Configurations of trainings from YAML files, ``--set a.b=c`` on top; a key that nobody knows is an error."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from tumorchain_agent.errors import InputError
from tumorchain_agent.training.hco.config import TrainConfig

LENGTHS: Final = ("steps", "epochs", "minutes")
"""Ways to say how long a stage lasts; ``--set`` of one takes the place of another."""


def load_config(source: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """A YAML file, or a committed configuration by its name (``nano``, ``3b``, ``7b``), with ``a.b=c`` applied.

    A list's items go by name or number: ``stages.cot.steps=10``. Raises InputError for a key that isn't known,
    naming the nearest one, and for a value that doesn't fit.
    """
    values = _read(source)
    for change in changes:
        _apply(values, change)
    try:
        return TrainConfig.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from error


def committed() -> list[str]:
    """Names of the configurations that the package holds."""
    folder = resources.files(__package__).joinpath("configs")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def _read(source: str | Path) -> dict[str, Any]:
    import yaml

    if str(source) in committed():
        text = resources.files(__package__).joinpath(f"configs/{source}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{source} can't be read: name a YAML file or one of {', '.join(committed())}"
            ) from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not YAML ({' '.join(str(error).split())[:200]}): mend it") from error
    if not isinstance(values, dict):
        raise InputError(f"{source} holds no keys: see the committed configurations for an example")
    return values


def _apply(values: dict[str, Any], change: str) -> None:
    import yaml

    path, equals, text = change.partition("=")
    if not equals or not all(path.split(".")):
        raise InputError(f"--set {change!r} is not of the form a.b=c")
    *way, last = path.split(".")
    here: Any = values
    for name in way:
        here = _step(here, name, change)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {change!r}: the value is not YAML; quote it") from error
    if isinstance(here, list):
        here[here.index(_step(here, last, change))] = value
    elif isinstance(here, dict):
        if last in LENGTHS:
            for other in LENGTHS:
                here.pop(other, None)
        here[last] = value
    else:
        raise InputError(f"--set {change!r}: {path.rpartition('.')[0]} holds a value, not keys")


def _step(here: Any, name: str, change: str) -> Any:
    if isinstance(here, dict):
        return here.setdefault(name, {})
    if isinstance(here, list):
        for number, each in enumerate(here):
            if name == str(number) or (isinstance(each, dict) and each.get("name") == name):
                return each
        known = ", ".join(str(each.get("name")) for each in here if isinstance(each, dict))
        raise InputError(f"--set {change!r}: there is no {name}; known: {known}")
    raise InputError(f"--set {change!r}: {name} is below a value that holds no keys")


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, an unknown key before all others."""
    found = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")[0]
    where = ".".join(str(part) for part in found["loc"])
    if found["type"] != "extra_forbidden":
        return f"{where or 'it'}: {found['msg'].removeprefix('Value error, ')}"
    known = _known_keys(TrainConfig)
    name = str(found["loc"][-1])
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown key {where}; the nearest known key is {known[near[0]]}"


def _known_keys(model: type[BaseModel], before: str = "") -> Mapping[str, str]:
    """Name → where it belongs, of every key."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        found.setdefault(name, f"{before}{name}")
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                below = _known_keys(kind, f"{before}{name}.")
                found |= {key: where for key, where in below.items() if key not in found}
    return found
