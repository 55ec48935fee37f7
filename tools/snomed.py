"""SNOMED CT codes of the 117 structures, as DICOM objects need them: type, side, category, and back from code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, NamedTuple

from tumorchain_agent.tools.organs import STRUCTURES

SCHEME: Final = "SCT"


class Code(NamedTuple):
    """A coded concept of SNOMED CT."""

    value: str
    meaning: str


ANATOMICAL_STRUCTURE: Final = Code("123037004", "Anatomical Structure")
ALTERED_STRUCTURE: Final = Code("49755003", "Morphologically Altered Structure")
LATERALITY: Final = Code("272741003", "Laterality")
SIDES: Final = {"left": Code("7771000", "Left"), "right": Code("24028007", "Right")}
_CATEGORIES: Final = {code.value: code for code in (ANATOMICAL_STRUCTURE, ALTERED_STRUCTURE)}


@dataclass(frozen=True)
class StructureCodes:
    """One TotalSegmentator structure in codes."""

    name: str
    category: Code
    type: Code
    side: Code | None
    """Modifies ``site`` where there is one, else ``type``."""
    site: Code | None
    """Where something that is no organ lies: a cyst's kidney."""
    rgb: tuple[int, int, int]
    """Recommended display colour."""

    @property
    def anatomy(self) -> Code:
        """The organ itself, or the one that it lies in."""
        return self.site or self.type


def _codes(name: str, entry: dict[str, Any]) -> StructureCodes:
    site = entry.get("site")
    side = entry.get("side")
    red, green, blue = entry["rgb"]
    return StructureCodes(
        name=name,
        category=_CATEGORIES[entry.get("category", ANATOMICAL_STRUCTURE.value)],
        type=Code(entry["code"], entry["meaning"]),
        side=SIDES[side] if side else None,
        site=Code(site["code"], site["meaning"]) if site else None,
        rgb=(red, green, blue),
    )


def _read() -> dict[str, StructureCodes]:
    text = resources.files(__package__).joinpath("data/snomed.json").read_text(encoding="utf-8")
    return {name: _codes(name, entry) for name, entry in json.loads(text)["structures"].items()}


CODES: Final[dict[str, StructureCodes]] = _read()
"""TotalSegmentator structure → codes, all 117."""

_BY_CODE: Final = {
    (each.type.value, each.site.value if each.site else None, each.side.value if each.side else None): key
    for key, each in ((key, CODES[name]) for key, name in STRUCTURES.items())
}


CODE_VALUES: Final = frozenset(
    code.value for each in CODES.values() for code in (each.type, each.site, each.side) if code is not None
)
"""Every code value of types, sites and sides."""


def structure_of(code: str, site: str | None = None, side: str | None = None) -> int | None:
    """TotalSegmentator id of a SNOMED CT code with its site's and its side's, or ``None``.

    >>> STRUCTURES[structure_of("64033007", side="7771000")]
    'kidney_left'
    """
    return _BY_CODE.get((code, site, side), _BY_CODE.get((code, None, side)))
