"""Load and preprocess a 512×512×400 .nii.gz: against MONAI's transforms, and against the standard library's gunzip."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import Table, in_turns, main, skipped
from scans import hospital_scan, write_gz

from tumorchain_agent.tools.preprocess import preprocess
from tumorchain_agent.tools.scan import open_ct


def ours(path: Path) -> None:
    """Read, check, reorient, scale, hash; window, crop to the body, pad, average: what an answer needs."""
    preprocess(open_ct(path))


def gunzip(path: Path) -> None:
    with gzip.open(path) as stream:
        while stream.read(1 << 20):
            pass


def monai_pipeline() -> Callable[[Path], object]:
    """The same steps as MONAI offers them: no checks, no id of the content, no body search but a threshold."""
    transforms: Any = import_module("monai.transforms")
    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation(axcodes="RAS", labels=None),
            transforms.CropForeground(select_fn=lambda image: image > -300, margin=5),
            transforms.ScaleIntensityRange(a_min=-160, a_max=240, b_min=0, b_max=1, clip=True),
            transforms.Resize(spatial_size=(256, 256, 32), mode="area"),
        ]
    )


def tables() -> Iterator[Table]:
    title = "Load and preprocess a 512×512×400 .nii.gz"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        write_gz(hospital_scan()[0], path)
        plain = in_turns(lambda: ours(path), lambda: gunzip(path), 7)
        rows = [
            plain.row(
                "read, check, hash, preprocess", "gzip of the standard library, unpacking alone", 1 / 1.2
            )
        ]
        if find_spec("monai") is None:
            yield skipped(title, "MONAI is not installed")
        else:
            pipeline = monai_pipeline()
            monai = in_turns(lambda: ours(path), lambda: pipeline(path), 5)
            rows.append(monai.row("read, check, hash, preprocess", "MONAI's LoadImage … Resize", 5.0))
    yield Table(title, tuple(rows), ("≥ 0.83× of gunzip's speed is ≤ 1.2× of its time.",))


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
