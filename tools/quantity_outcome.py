"""What a rule of measuring finds: shared by the rules on organs and those on lesions."""

from __future__ import annotations

from dataclasses import dataclass

from tumorchain_agent.tools.lesion_facts import Lesion


@dataclass(frozen=True)
class Outcome:
    """A number with its unit or a label, the sentence that tells it, and what it rests on."""

    text: str
    number: float | None = None
    unit: str = ""
    label: str | None = None
    organs: tuple[str, ...] = ()
    lesions: tuple[Lesion, ...] = ()
    segments: bool = False
    sized: bool = False
    """Rests on an organ's extent, so that the scan's edge may make it a lower bound."""


def cubic(ml: float, unit: str | None) -> tuple[float, str]:
    """A volume in the unit asked for, cm³ by default."""
    return (ml * 1000, "mm3") if unit == "mm3" else (ml, unit if unit == "ml" else "cm3")
