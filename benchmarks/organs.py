"""117 → 56 merge, Γ and the measurements of all organs on 512×512×400: against a loop over the masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from bench import Row, Table, in_turns, main
from numpy.typing import NDArray
from scans import hospital_scan

from tumorchain_agent.records import Measurement
from tumorchain_agent.tools.labels import LabelMap, label_map
from tumorchain_agent.tools.measure import largest_distance, measure_all
from tumorchain_agent.tools.organs import ORGANS, organ_ids
from tumorchain_agent.tools.preprocess import ModelVolume, preprocess
from tumorchain_agent.tools.roi import GRID, PATCH, organ_coverage
from tumorchain_agent.tools.scan import CT

Loop = dict[str, tuple[int, float, float, float, float]]


def ours(ct: CT, labels: LabelMap, model: ModelVolume) -> dict[str, Measurement]:
    """Coverage of every patch by every organ, and every organ and structure measured."""
    organ_coverage(labels.labels, ct.affine, model)
    return measure_all(ct, labels)


def mask_by_mask(ct: CT, labels: NDArray[np.uint8], model: ModelVolume) -> Loop:
    """What a user writes: for each organ a mask, its numbers, its patches. Fewer numbers than ours."""
    found: Loop = {}
    to_patch = np.linalg.inv(model.affine) @ ct.affine
    for organ in ORGANS.values():
        mask = np.isin(labels, organ_ids(organ))
        if not mask.any():
            continue
        values, voxels = ct.hu[mask], np.argwhere(mask)
        cells = np.floor((voxels @ to_patch[:3, :3].T + to_patch[:3, 3] + 0.5) / PATCH).astype(int)
        np.histogramdd(cells, bins=[np.arange(size + 1) for size in GRID])
        edge = voxels[np.r_[True, np.diff(voxels[:, 1]) != 0]]
        diameter = largest_distance(edge @ ct.affine[:3, :3].T)
        spread = float(np.percentile(values, 95) - np.percentile(values, 5))
        found[organ] = (len(values), float(values.mean()), float(values.std()), spread, diameter)
    return found


def tables() -> Iterator[Table]:
    ct, labels = hospital_scan()
    model = preprocess(ct)
    known = label_map(labels, ct, source="given", task="given", weights_id="", seconds=0)
    kept: dict[str, Any] = {}
    pairs = in_turns(
        lambda: kept.update(fast=ours(ct, known, model)),
        lambda: kept.update(slow=mask_by_mask(ct, labels, model)),
        2,
        warm=False,
    )
    fast: dict[str, Measurement] = kept["fast"]
    slow: Loop = kept["slow"]
    same = all(fast[organ].voxels == count for organ, (count, *_) in slow.items())
    same &= all(abs((fast[organ].mean_hu or 0) - mean) < 1e-2 for organ, (_, mean, *_) in slow.items())
    rows = (
        pairs.row(f"merge, Γ, measurements: {len(slow)} organs in the scan", "a loop over 56 masks", 10),
        Row("voxels and mean HU of each", "the loop's", "equal" if same else "differ", "equal", same),
    )
    yield Table("Organs of a 512×512×400 scan", rows)


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
