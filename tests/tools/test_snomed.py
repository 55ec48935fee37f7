"""SNOMED CT codes of the structures against the dictionary that pydicom ships."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tumorchain_agent.tools.organs import FIVE, STRUCTURES, organ_structures
from tumorchain_agent.tools.snomed import CODES, Code, structure_of

NOT_IN_PYDICOM = {
    "Deep muscle of back", "Gluteus maximus muscle", "Gluteus medius muscle", "Gluteus minimus muscle",
    "Iliopsoas muscle", "Portal vein and splenic vein", "S1 vertebra", "First rib", "Second rib", "Third rib",
    "Fourth rib", "Fifth rib", "Sixth rib", "Seventh rib", "Eighth rib", "Ninth rib", "Tenth rib",
    "Eleventh rib", "Twelfth rib",
}  # fmt: skip


def every_code() -> Iterator[Code]:
    for each in CODES.values():
        yield from (code for code in (each.type, each.site, each.side, each.category) if code is not None)


def test_every_structure_has_codes_that_lead_back_to_it_alone() -> None:
    assert list(CODES) == list(STRUCTURES.values())
    for key, name in STRUCTURES.items():
        each = CODES[name]
        site, side = (code.value if code else None for code in (each.site, each.side))
        assert structure_of(each.type.value, site, side) == key
    assert all(organ_structures(organ)[0] in CODES for organ in FIVE)


def test_sides_are_those_of_the_names() -> None:
    for name, each in CODES.items():
        named = next((side for side in ("Left", "Right") if side.lower() in name), None)
        told = f"{each.type.meaning} {each.side.meaning if each.side else ''}".lower()
        assert named is None or named.lower() in told, name


def test_codes_mean_in_pydicoms_dictionary_what_they_say() -> None:
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    table: Any = import_module("pydicom.sr._concepts_dict").concepts["SCT"]
    meanings: dict[str, set[str]] = {}
    for entries in table.values():
        for value, (meaning, *_) in entries.items():
            meanings.setdefault(value, set()).add(meaning.lower())
    unknown = {code.meaning for code in every_code() if code.value not in meanings}
    assert unknown == NOT_IN_PYDICOM
    wrong = [
        code
        for code in every_code()
        if code.value in meanings and not any(_same(code.meaning, known) for known in meanings[code.value])
    ]
    assert wrong == []


def _same(ours: str, theirs: str) -> bool:
    """Equal, or every word of one in the other ("body structure" stands for an anatomical one)."""
    if ours == "Anatomical Structure":
        return theirs.startswith("body structure")
    if ours == "Morphologically Altered Structure":
        return theirs == "morphologically abnormal structure"
    return set(ours.lower().split()) <= set(theirs.replace("(", " ").split())


def test_codes_are_totalsegmentators_but_for_the_two_that_were_wrong(real: Path) -> None:
    file = real / "totalsegmentator" / "totalsegmentator_snomed_mapping.csv"
    with file.open(encoding="utf-8") as lines:
        rows = {row["Structure"]: row for row in csv.DictReader(lines)}
    other = {
        name
        for name, each in CODES.items()
        if rows[name]["SegmentedPropertyTypeCodeSequence.CodeValue"] != each.type.value
    }
    assert other == {"subclavian_artery_left", "subclavian_artery_right", "atrial_appendage_left"}
