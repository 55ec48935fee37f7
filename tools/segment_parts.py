"""Task ``total`` at 1.5 mm is five networks: which structures each finds, and how their results are put together."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import SegmentationInfo
from tumorchain_agent.tools.organs import ORGANS, STRUCTURES

if TYPE_CHECKING:
    from tumorchain_agent.tools.labels import LabelMap
    from tumorchain_agent.tools.scan import CT
    from tumorchain_agent.tools.segment_weights import Weights

PARTS = (291, 292, 293, 294, 295)
"""TotalSegmentator's numbers of the five, in the order in which it runs them."""


@cache
def structures_of(model_id: int) -> frozenset[int]:
    """TotalSegmentator v2 ids that a model of task ``total`` finds: all 117, or a part's where it is one of five."""
    from totalsegmentator.map_to_binary import class_map_5_parts, map_taskid_to_partname_ct

    if model_id not in PARTS:
        return frozenset(STRUCTURES)
    names = set(class_map_5_parts[map_taskid_to_partname_ct[model_id]].values())
    return frozenset(key for key, name in STRUCTURES.items() if name in names)


def organs_looked_for(info: SegmentationInfo) -> list[str] | None:
    """The organs that the networks of a label map find; ``None`` when all networks of its task have run."""
    if not info.organs_deferred:
        return None
    return [organ for organ in ORGANS.values() if organ not in info.organs_deferred]


def merged(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label ids that different models of task ``total`` gave one grid, as TotalSegmentator puts them together:
    where two found something, the one with the higher number is right."""
    rank = np.zeros(256, np.int16)
    for model in PARTS:
        rank[list(structures_of(model))] = model
    out = first.copy(order="K")
    for z in range(out.shape[2]):
        np.copyto(out[:, :, z], second[:, :, z], where=rank[second[:, :, z]] > rank[first[:, :, z]])
    return out


def together(ct: CT, first: LabelMap, second: LabelMap, weights: Weights) -> LabelMap:
    """The label maps of two choices of networks → that of ``weights``, which are both."""
    from tumorchain_agent.tools.labels import label_map

    return label_map(
        merged(first.labels, second.labels),
        ct,
        source=weights.source,
        task=weights.task,
        weights_id=weights.weights_id,
        seconds=round(first.info.seconds + second.info.seconds, 3),
        organs_unknown=weights.organs_unknown,
        organs_deferred=weights.organs_deferred,
    )
