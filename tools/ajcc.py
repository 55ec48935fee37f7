"""AJCC 8 categories and stage groups of the five organs, as data (data/ajcc8.json) and one look-up."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

from tumorchain_agent.tools.organs import display_name

Basis = Literal["clinical", "pathological"]
Axis = Literal["T", "N", "M"]
AXES: Final[tuple[Axis, ...]] = ("T", "N", "M")


@cache
def _rules() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("data/ajcc8.json").read_text(encoding="utf-8")
    organs: dict[str, dict[str, Any]] = json.loads(text)["organs"]
    return organs


def has_table(organ: str, basis: Basis = "clinical") -> bool:
    """Whether there is a stage table for the organ."""
    return organ in _rules() and bool(_tables(organ, basis, None))


def criteria(organ: str, axis: Axis) -> dict[str, str]:
    """Category → short criterion for one of the five organs, e.g. ``criteria("pancreas", "T")["T2"]``."""
    return dict(_rules()[organ][axis])


def applies_to(organ: str) -> tuple[str, tuple[str, ...]]:
    """The disease that the organ's table is for, and words for diseases that it isn't for."""
    rule = _rules()[organ]
    return rule["applies_to"], tuple(rule["not_for"])


def _meanings(organ: str, axis: Axis, value: str) -> tuple[str, ...]:
    """The table's categories that a stated value may stand for: TX all, T1 its sub-letters, else itself."""
    known = _rules()[organ][axis]
    if value == f"{axis}X":
        return tuple(known)
    if value in known:
        return (value,)
    return tuple(name for name in known if name.startswith(value) and len(name) == len(value) + 1)


def _matches(rule: str, value: str) -> bool:
    if rule == "any":
        return True
    if "-" in rule:
        low, high = rule[1:].split("-")
        return low <= value[1] <= high
    return value.startswith(rule)


def _lookup(rows: Iterable[tuple[str, str, str, str]], values: tuple[str, ...]) -> str | None:
    for *rules, stage in rows:
        if all(_matches(rule, value) for rule, value in zip(rules, values, strict=True)):
            return stage
    return None


def _tables(organ: str, basis: Basis, histology: str | None) -> list[Any]:
    stages = _rules()[organ]["stages"]
    tables = stages.get("both") or stages.get(basis, {})
    chosen = [
        rows for name, rows in tables.items() if histology and name[:5] == histology.strip().lower()[:5]
    ]
    return chosen or list(tables.values())


def possible_stages(
    organ: str, t: str, n: str, m: str, *, histology: str | None = None, basis: Basis = "clinical"
) -> tuple[str, ...]:
    """Every stage group that the categories leave open, ascending; empty for an impossible combination."""
    if organ not in _rules():
        return ()
    meanings = [_meanings(organ, axis, value) for axis, value in zip(AXES, (t, n, m), strict=True)]
    tables = _tables(organ, basis, histology)
    found = (_lookup(rows, each) for rows in tables for each in itertools.product(*meanings))
    return tuple(sorted({stage for stage in found if stage}))


def main_group(stage: str) -> str:
    """``"IIB"`` → ``"II"``."""
    return stage.rstrip("ABCD")


def agree(stated: str, stage: str) -> bool:
    """Whether a stated stage is the table's, or its main group."""
    return stated in (stage, main_group(stage))


def stage_group(
    organ: str, t: str, n: str, m: str, *, histology: str | None = None, basis: Basis = "clinical"
) -> str | None:
    """AJCC 8 stage group, e.g. ``("pancreas", "T2", "N1", "M0")`` → ``"IIB"``.

    A category without its sub-letter, or X, gives a stage only where all that it may stand for agree; where
    only the letter is open the main group is given ("IV" for M1 of the colon). ``histology`` ("squamous",
    "adenocarcinoma") matters for the esophagus. None: no such combination, not determined, or no table.
    """
    stages = possible_stages(organ, t, n, m, histology=histology, basis=basis)
    if len(stages) == 1:
        return stages[0]
    mains = {main_group(stage) for stage in stages}
    return mains.pop() if len(mains) == 1 else None


def check(
    organ: str,
    t: str,
    n: str,
    m: str,
    stage: str | None = None,
    *,
    histology: str | None = None,
    basis: Basis = "clinical",
) -> tuple[str, ...]:
    """What can't be right in a TNM of one of the five organs, as sentences; empty when nothing is."""
    name = display_name(organ)
    flags = tuple(
        f"{value} is no AJCC 8 category for the {name} ({', '.join(_rules()[organ][axis])})."
        for axis, value in zip(AXES, (t, n, m), strict=True)
        if not _meanings(organ, axis, value)
    )
    if flags or not _tables(organ, basis, histology):
        return flags
    stages = possible_stages(organ, t, n, m, histology=histology, basis=basis)
    if not stages and t != "T0":
        return (f"{t} {n} {m} is no combination of the AJCC 8 table for the {name}.",)
    if stage and stages and not any(agree(stage, each) for each in stages):
        allowed = " or ".join(stages)
        return (f"The text states stage {stage}; {t} {n} {m} of the {name} is stage {allowed} in AJCC 8.",)
    return ()
