"""Fixtures for all tests: the shared real data, a repeatable random seed, small synthetic CTs as files."""

from __future__ import annotations

import gzip
import json
import os
import random
import zlib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tumorchain_agent.batch_run import ALONE

os.environ.update(ALONE)
"""Before anything imports Ray: a cluster of the tests listens on this machine only."""

SEED = int(os.environ.get("TUMORCHAIN_TEST_SEED") or random.SystemRandom().randrange(2**31))
os.environ["TUMORCHAIN_TEST_SEED"] = str(SEED)
"""The workers that pytest-xdist starts share it."""

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

TESTS = Path(__file__).parent
ONE_GROUP = ("serving",)
"""Folders whose tests share what is dear, a vLLM; elsewhere the tests of a file stay together."""

Array = NDArray[Any]
WriteNifti = Callable[..., Path]
WriteDicom = Callable[..., Path]

TORSO_MM = np.array([336.0, 240.0, 288.0])
"""Size of a grid that holds the whole torso and air around it."""


def pytest_report_header() -> str:
    return f"random seed {SEED}; repeat with TUMORCHAIN_TEST_SEED={SEED}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share fixtures run in one worker."""
    for item in items:
        path = item.path.relative_to(TESTS)
        group = path.parts[0] if path.parts[0] in ONE_GROUP else path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Another number in each test and each session; printed, so that a failure can be repeated."""
    value = (SEED + zlib.crc32(request.node.nodeid.encode())) % 2**32
    print(f"random seed {SEED} gives this test {value}")
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and facts beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with real data is missing")
    return folder


@pytest.fixture(scope="session")
def real(shared: Path) -> Path:
    """The real scans."""
    return shared / "data" / "real"


@pytest.fixture(scope="session")
def oracles(shared: Path) -> dict[str, Any]:
    """Figures measured from the real scans."""
    return dict(json.loads((shared / "facts" / "ct_oracles_dev.json").read_text(encoding="utf-8")))


def torso_grid(*spacing_mm: float) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """A RAS grid around the whole torso: affine and shape. One number is isotropic, three are x, y, z."""
    sizes = np.broadcast_to(np.array(spacing_mm, np.float64), 3)
    x, y, z = np.ceil(TORSO_MM / sizes).astype(int).tolist()
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -0.5 * (np.array([x, y, z]) - 1) * sizes
    return affine, (x, y, z)


def torso(affine: Array, shape: tuple[int, int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A smooth torso in world mm, sampled on any grid: HU and TotalSegmentator ids, both [i, j, k].

    Air, a fatty shell, soft tissue; liver 5 (a little brighter), spleen 1, aorta 52 and a bony spine 29.
    """
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    rows = affine.astype(np.float32)
    x, y, z = (row[0] * i + row[1] * j + row[2] * k + row[3] for row in rows[:3])

    def inside(radius: Array, scale_mm: float) -> Array:
        """1 within the surface where ``radius`` is 1, 0 outside, smooth over about 6 mm."""
        return 1.0 / (1.0 + np.exp(np.clip((radius - 1.0) * scale_mm / 3.0, -30, 30)))

    body = np.sqrt((x / 150) ** 2 + (y / 100) ** 2 + (z / 130) ** 4)
    core = np.sqrt((x / 130) ** 2 + (y / 82) ** 2 + (z / 130) ** 4)
    liver = np.sqrt(((x - 55) / 55) ** 2 + ((y - 20) / 40) ** 2 + ((z - 30) / 45) ** 2)
    spleen = np.sqrt(((x + 80) / 25) ** 2 + ((y + 25) / 30) ** 2 + ((z - 40) / 35) ** 2)
    aorta = np.sqrt((x / 12) ** 2 + ((y + 25) / 12) ** 2)
    spine = np.sqrt((x / 20) ** 2 + ((y + 58) / 18) ** 2)
    hu = -1000.0 + inside(body, 120) * 900.0 + inside(core, 100) * 130.0
    labels = np.zeros(shape, np.uint8)
    organs = ((liver, 45, 5, 60), (spleen, 30, 1, 90), (aorta, 12, 52, 150), (spine, 19, 29, 400))
    for radius, scale, key, above in organs:
        hu += inside(radius, scale) * above * (core < 1)
        labels[(radius < 1) & (core < 1)] = key
    return hu.astype(np.float32), labels


@pytest.fixture
def write_nifti(tmp_path: Path) -> WriteNifti:
    """Save [i, j, k] as NIfTI below tmp_path: ``write_nifti(values, affine, "ct.nii.gz") -> Path``."""
    nibabel: Any = import_module("nibabel")

    def write(values: Array, affine: Array | None, name: str = "ct.nii.gz", dtype: Any = np.int16) -> Path:
        path = tmp_path / name
        image = nibabel.Nifti1Image(np.asarray(values).astype(dtype), affine, dtype=dtype)
        path.write_bytes(gzip.compress(image.to_bytes(), 1) if name.endswith(".gz") else image.to_bytes())
        return path

    return write


@pytest.fixture
def write_dicom(tmp_path: Path) -> WriteDicom:
    """Save [column, row, slice] as DICOM: ``write_dicom(hu, affine, "folder", series="1.2.3") -> Path``.

    ``affine`` maps to RAS mm. File names are shuffled against the slice order. ``tags`` adds or replaces.
    """

    def write(
        hu: Array,
        affine: Array,
        folder: str = "series",
        *,
        series: str = "1.2.826.0.1.3680043.8.1",
        tags: dict[str, str] | None = None,
    ) -> Path:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        for index in range(hu.shape[2]):
            common = {"0008|0060": "CT", "0020|000e": series, "0020|0011": series.split(".")[-1]}
            instance = {"0008|0018": f"{series}.{index + 1}", "0020|0013": str(index + 1)}
            name = f"{(index * 7 + 3) % 101:03d}-{series.split('.')[-1]}-{index}.dcm"
            _write_slice(target / name, hu[:, :, index], lps, index, {**common, **instance, **(tags or {})})
        return target

    return write


def _write_slice(path: Path, pixels: Array, lps: Array, index: int, tags: dict[str, str]) -> None:
    sitk: Any = import_module("SimpleITK")

    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels.T.astype(np.int16))[None])
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    along, down = lps[:3, 0] / sizes[0], lps[:3, 1] / sizes[1]
    image.SetSpacing([float(size) for size in sizes])
    image.SetDirection(np.stack([along, down, np.cross(along, down)], axis=1).ravel().tolist())
    image.SetOrigin((lps[:3, 3] + index * lps[:3, 2]).tolist())
    for key, value in tags.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def big_scan(path: Path) -> None:
    """512 × 512 × 600 voxels, int16, gzipped slice by slice."""
    nibabel: Any = import_module("nibabel")
    affine, shape = torso_grid(*(336 / 512, 240 / 512, 12.0))
    assert shape[:2] == (512, 512)
    slices: NDArray[Any] = np.round(torso(affine, shape)[0]).astype(np.int16)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((512, 512, 600))
    affine[2, 2] = 288 / 600
    header.set_sform(affine, 1)
    header["vox_offset"] = 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for index in range(600):
            file.write(slices[:, :, index * shape[2] // 600].tobytes(order="F"))
