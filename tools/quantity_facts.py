"""What is known of one scan by measurement: organs, lesions, liver segments; and what isn't known at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import Measurement
from tumorchain_agent.tools.lesion_facts import FOCAL, SOLID, Lesion, nearest_organ, share_in
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.tools.quantity_questions import Query
from tumorchain_agent.tools.scan import CT


class NotMeasured(Exception):
    """A quantity that can't be told from what is there; the text says why. Never a number in its place."""


@dataclass(frozen=True)
class Facts:
    """Measurements by Table 10 name with the URIs that they are cited by, and lesions where masks of them are given.

    ``lesion_organs`` are the organs whose lesions the masks would show: an empty set means that lesions are unknown,
    which is not that there are none.
    """

    measurements: Mapping[str, Measurement]
    uris: Mapping[str, str] = field(default_factory=dict)
    lesions: tuple[Lesion, ...] = ()
    lesion_organs: frozenset[str] = frozenset()
    lesion_kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Organ → kinds that its masks tell apart."""
    segments: NDArray[np.integer[Any]] | None = None
    """[x, y, z] Couinaud segments 1..8, 0 elsewhere."""
    segments_source: str = ""
    ct: CT | None = None
    labels: NDArray[np.uint8] | None = None

    def organ(self, name: str) -> Measurement:
        """Raises NotMeasured when the organ isn't there or was never looked for."""
        found = self.measurements.get(name)
        if found is None:
            raise NotMeasured(f"{display_name(name)} was not measured")
        if not found.present:
            raise NotMeasured(f"{display_name(name)} is not in the scan: not assessed, which is not normal")
        return found

    def volume(self, name: str) -> float:
        """ml."""
        return _known(self.organ(name).volume_ml, name, "volume")

    def hu(self, name: str) -> float:
        """Mean HU."""
        return _known(self.organ(name).mean_hu, name, "mean HU")

    def diameter(self, name: str) -> float:
        """Largest, in 3-D, mm."""
        return _known(self.organ(name).largest_diameter_mm, name, "diameter")

    def asked(self, query: Query) -> list[Lesion]:
        """The lesions that a question is about; may be none. Raises NotMeasured where lesions aren't known."""
        organs = query.organs or tuple(self.lesion_organs)
        unknown = [organ for organ in organs if organ not in self.lesion_organs]
        if unknown or not organs:
            names = ", ".join(map(display_name, unknown)) or "the scan"
            raise NotMeasured(f"lesions of {names} are not segmented: not measured")
        for organ in organs:
            self._check_kind(organ, query.lesion)
            measured = self.measurements.get(organ)
            if measured is not None and not measured.present:
                raise NotMeasured(
                    f"{display_name(organ)} is not in the scan: not assessed, which is not normal"
                )
        found = [each for each in self.lesions if each.organ in organs and _is(each, query.lesion)]
        return [each for each in found if not query.parts or self._in_parts(each, query.parts)]

    def _check_kind(self, organ: str, lesion: str | None) -> None:
        kinds = self.lesion_kinds.get(organ, frozenset())
        if lesion in ("pdac", "pnet", "metastasis", "cyst") and kinds and lesion not in kinds:
            raise NotMeasured(f"the masks of {display_name(organ)} don't tell which lesions are {lesion}")

    def _in_parts(self, lesion: Lesion, parts: tuple[str, ...]) -> bool:
        numbers = {
            int(part.split()[1]) for part in parts if part.startswith("segment ") and part[8:9].isdigit()
        }
        if not numbers:
            raise NotMeasured(f"where {' and '.join(parts)} lies is not segmented")
        return self.segment_of(lesion) in numbers

    def segment_of(self, lesion: Lesion) -> int:
        """Couinaud segment that holds most of a lesion. Raises NotMeasured without segments."""
        if self.segments is None:
            raise NotMeasured("liver segments are not segmented")
        shares = share_in(lesion, self.segments)
        if not shares:
            raise NotMeasured("the lesion lies in no liver segment")
        return max(shares, key=lambda key: (shares[key], -key))

    def neighbour(self, lesion: Lesion, others: tuple[str, ...]) -> str:
        """The other organ nearest to a lesion."""
        if self.ct is None or self.labels is None:
            raise NotMeasured("the label map is not at hand")
        found = nearest_organ(lesion, self.ct, self.labels, [o for o in others if o != lesion.organ])
        if found is None:
            raise NotMeasured("no other organ is in the scan")
        return found

    def cut(self, organs: tuple[str, ...]) -> tuple[str, ...]:
        """Sentences for organs that the scan's edge cuts: sizes are lower bounds then."""
        faces = [(o, m.cut_by_edge) for o in organs if (m := self.measurements.get(o)) and m.cut_by_edge]
        return tuple(
            f"{display_name(organ)} is cut by the scan's edge ({', '.join(where)}): its volume is a lower bound"
            for organ, where in faces
        )


def _known(value: float | None, name: str, what: str) -> float:
    if value is None:
        raise NotMeasured(f"the {what} of {display_name(name)} was not measured")
    return float(value)


def _is(lesion: Lesion, wanted: str | None) -> bool:
    if wanted in (None, "lesion"):
        return lesion.kind in FOCAL
    if wanted == "tumor":
        return lesion.kind in SOLID or lesion.kind == "lesion"
    if wanted == "cyst":
        return lesion.kind in ("cyst", "pseudocyst")
    return lesion.kind == wanted
