"""The 56 organs as ``list_organs`` tells them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Final

from tumorchain_agent.errors import UnknownOrganError
from tumorchain_agent.mcp_server.results import LicensedTask, OrganInfo
from tumorchain_agent.tools.organs import ORGANS, display_name, organ_structures, resolve_organ

MAX_SYNONYMS: Final = 4

_OPTIONAL: Final = re.compile(r"\([^()\[\]]*\)")
_CHOICE: Final = re.compile(r"\[([^\[\]|]*)(?:\|[^\[\]]*)?\]")


NO_WEIGHTS: Final = "no segmentation weights are usable here: see segmentation_choices, or pass masks"


UNKNOWN: Final = "the installed weights were never trained on it: install TotalSegmentator's, or pass masks"


def organ_infos(
    present: Collection[str] | None,
    segmentable: bool,
    unknown: Collection[str] = (),
    deferred: Collection[str] = (),
) -> tuple[OrganInfo, ...]:
    """Every organ; ``present`` are those that the scan holds, ``None`` when it hasn't been segmented.

    ``unknown`` are organs that the weights in use can't find, ``deferred`` those that have not been looked for.
    """
    return tuple(
        OrganInfo(
            organ_id=number,
            name=name,
            display_name=display_name(name),
            synonyms=_synonyms()[name],
            structures=organ_structures(name),
            present=None if present is None or name in deferred else name in present,
            segmentable=segmentable and name not in unknown,
            unavailable_because=(UNKNOWN if name in unknown else None) if segmentable else NO_WEIGHTS,
        )
        for number, name in ORGANS.items()
    )


@cache
def licensed_tasks() -> tuple[LicensedTask, ...]:
    """Tasks for which the installed TotalSegmentator wants a licence number."""
    from totalsegmentator.map_to_binary import commercial_models

    why = "TotalSegmentator wants a licence number of its authors for it; not run here, pass masks instead"
    return tuple(LicensedTask(task=task, why=why) for task in sorted(commercial_models))


@cache
def _synonyms() -> dict[str, tuple[str, ...]]:
    """A few names for each organ besides its own that the tools take."""
    text = resources.files("tumorchain_agent.tools").joinpath("data/organs.json").read_text(encoding="utf-8")
    found: dict[str, tuple[str, ...]] = {}
    for entry in json.loads(text)["organs"]:
        names = dict.fromkeys(_plain(term) for term in entry["terms"])
        own = {entry["display"], entry["name"], entry["name"].replace("_", " ")}
        fitting = [name for name in names if name not in own and _names(name, entry["name"])]
        found[entry["name"]] = tuple(fitting[:MAX_SYNONYMS])
    return found


def _plain(template: str) -> str:
    """``"[main|left] portal vein(s)"`` → ``"main portal vein"``."""
    return " ".join(_CHOICE.sub(r"\1", _OPTIONAL.sub("", _CHOICE.sub(r"\1", template))).split())


def _names(text: str, organ: str) -> bool:
    try:
        return resolve_organ(text) == organ
    except UnknownOrganError:
        return False
