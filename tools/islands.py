"""Stray islands of a weak segmentation network: removed, so that they don't pass for an organ at the scan's edge."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ISLAND_SHARE: Final = 0.1
"""A part of an organ smaller than this share of its largest part is an island."""


def without_islands(labels: NDArray[np.uint8], share: float = ISLAND_SHARE) -> NDArray[np.uint8]:
    """A copy of the ids [x, y, z] in which each id keeps its largest part and every part not much smaller.

    Parts are connected through faces, edges or corners. What was an island becomes background.
    """
    from scipy import ndimage

    kept = labels.copy()
    around = ndimage.generate_binary_structure(3, 3)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if box is None:
            continue
        mine = labels[box] == number
        parts, count = ndimage.label(mine, structure=around)
        if count > 1:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            small = sizes < share * sizes.max()
            kept[box][small[parts] & mine] = 0
    return kept
