"""The segmentation expert: label maps of scans that come without one, by our TotalSegmentator (paper 11.1, iii)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tumorchain_agent.settings import Settings
from tumorchain_agent.training.engine.cases import Case

FOLDER = "label_maps"


@contextmanager
def segmenting(out: Path, settings: Settings | None = None) -> Iterator[Callable[[Case], Path]]:
    """What segments a case's scan into ``out/label_maps``, once for each scan; from any thread, one at a time.

    What it gives raises ScanError and SegmentationError.
    """
    from tumorchain_agent.tools.scan import open_ct
    from tumorchain_agent.tools.segment import Segmenter
    from tumorchain_agent.training.phantom.export import save_nifti

    turn = threading.Lock()
    with Segmenter(settings or Settings()) as segmenter:

        def segment(case: Case) -> Path:
            with turn:
                ct = open_ct(case.scan)
                path = out / FOLDER / f"{ct.scan_id}.nii.gz"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_nifti(segmenter.segment(ct).labels, ct.affine, path)
                return path

        yield segment
