"""``tumorchain-agent phantom``: same seed, same bytes; goes on where it stopped; two resolutions; a picture."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tumorchain_agent.cli import main
from tumorchain_agent.training.phantom.export import (
    GENERATOR,
    patient_id,
    truth_record,
    write_case,
    write_cohort,
)
from tumorchain_agent.training.phantom.patient import Case, generate
from tumorchain_agent.training.phantom.preview import LESION_RGB, TILE, caption, contact_sheet, slice_of
from tumorchain_agent.training.phantom.volume import PIXELS, SLICES, generate_nano

FILES = {"ct.nii.gz", "labels.nii.gz", "lesions.nii.gz", "truth.json", "report.txt", "pathology.txt"}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients at nano's resolution."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed in (40, 41, 42):
        write_case(generate_nano(seed), folder / patient_id(seed))
    return folder


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_in_another_process(cohort: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tumorchain_agent.training.phantom.export import write_cohort;"
        f"list(write_cohort(Path({str(tmp_path)!r}), 3, 40, spacing=None, workers=1))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert hashes(tmp_path) == hashes(cohort)
    assert {Path(name).name for name in hashes(cohort)} == FILES


@pytest.mark.slow
def test_what_is_there_is_kept_and_only_the_rest_is_written(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cohort"
    subprocess.run(["cp", "-r", str(cohort), str(out)], check=True)
    before = hashes(out)
    (out / "phantom-0000041" / "truth.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("phantom-000004[02]/*")}
    assert main(["phantom", str(out), "--n", "3", "--seed", "40", "--resolution", "nano"]) == 0
    assert hashes(out) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert re.search(r"3 phantoms in .* \(1 new, \d+\.\d\d a second\)", capsys.readouterr().out)
    assert main(["phantom", str(out), "--n", "3", "--seed", "40", "--resolution", "nano"]) == 0
    assert "new" not in capsys.readouterr().out


def test_cohorts_of_two_resolutions_or_versions_are_not_mixed(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["phantom", str(cohort), "--n", "3", "--seed", "40"]) == 2
    assert "another resolution; name another folder" in capsys.readouterr().err
    told = cohort / "phantom-0000040" / "truth.json"
    old = tmp_path / "phantom-0000040" / "truth.json"
    old.parent.mkdir()
    for text, words in (
        (told.read_text().replace(f'"generator": {GENERATOR}', '"generator": 0'), "another version's cohort"),
        ("{", "is damaged .*delete it"),
        ("[]", "is damaged .*delete it"),
    ):
        old.write_text(text)
        assert main(["phantom", str(tmp_path), "--n", "1", "--seed", "40", "--resolution", "nano"]) == 2
        assert re.search(words, capsys.readouterr().err)
    assert not list(tmp_path.glob("*/ct.nii.gz"))


def test_nano_resolution_is_the_same_patient_on_the_grid_of_nano(cohort: Path) -> None:
    told = json.loads((cohort / "phantom-0000041" / "truth.json").read_text())
    assert told["grid"]["shape"] == [PIXELS, PIXELS, SLICES]
    case = generate_nano(41)
    image: Any = nib.load(cohort / "phantom-0000041" / "ct.nii.gz")
    assert image.shape == (PIXELS, PIXELS, SLICES)
    assert image.header.get_zooms() == pytest.approx(case.grid.spacing)
    assert json.loads(json.dumps(truth_record(case))) == told
    full = generate(41, (3.0, 3.0, 6.0)).truth
    assert (full.organ, full.size_mm, full.phase) == (told["organ"], told["size_mm"], told["phase"])


def test_the_two_resolutions_agree_on_volumes() -> None:
    nano, full = generate_nano(43, tumor_share=0.0), generate(43, (2.0, 2.0, 4.0), tumor_share=0.0)
    for number in (1, 5, 6, 7):
        small, large = (float((case.labels == number).sum()) * case.grid.voxel_mm3 for case in (nano, full))
        assert small == pytest.approx(large, rel=0.08)


def test_hard_cases_are_told_in_truth_json(cohort: Path) -> None:
    for folder in sorted(cohort.iterdir()):
        told = json.loads((folder / "truth.json").read_text())
        assert {"edge", "compresses", "mimics", "sites", "reach_mm"} <= set(told)
        for lesion in told["lesions"]:
            assert {"edge_mm", "compressing", "primary", "centre_mm", "radii_mm"} <= set(lesion)


def test_the_preview_is_a_picture_of_the_first_patients(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sheet.png"
    argv = [
        "phantom",
        str(cohort),
        "--n",
        "2",
        "--seed",
        "40",
        "--resolution",
        "nano",
        "--preview",
        str(path),
    ]
    assert main(argv) == 0
    assert f"The first 2 are pictured in {path}." in capsys.readouterr().out
    with Image.open(path) as image:
        assert image.width == 2 * TILE
        assert image.height > TILE
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("more", "culprit"), [(["--preview", "a.jpg"], "a.jpg"), (["--preview", "a.png"], "--n 0")]
)
def test_a_preview_that_can_not_be_is_refused_before_anything_is_written(
    more: list[str], culprit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = "0" if culprit == "--n 0" else "1"
    assert main(["phantom", str(tmp_path / "out"), "--n", n, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert culprit in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ill() -> list[Case]:
    return [generate(seed, (3.0, 3.0, 6.0), organ=organ) for seed, organ in ((16, "pancreas"), (6, "liver"))]


def test_a_tile_goes_through_the_tumour_and_outlines_it(ill: list[Case]) -> None:
    for case in ill:
        z = slice_of(case)
        assert (case.lesion_mask[:, :, z] == 1).any()
        pixels = np.asarray(contact_sheet([case])).reshape(-1, 3)
        assert (pixels == LESION_RGB["tumor"]).all(axis=1).sum() > 40


def test_a_caption_tells_the_truth(ill: list[Case]) -> None:
    for case in ill:
        text, truth = caption(case), case.truth
        for part in (
            f"seed {truth.seed}",
            truth.organ,
            truth.substructure,
            f"{truth.size_mm:.0f} mm",
            truth.t,
        ):
            assert str(part) in text
        assert ("compresses" in text) == bool(truth.compresses)
        assert ("benign" in text) == bool(truth.mimics)
    assert "no tumor" in caption(generate(11, (6.0, 6.0, 10.0), tumor_share=0.0))


def test_a_cohort_of_nobody_is_empty(tmp_path: Path) -> None:
    assert list(write_cohort(tmp_path / "none", 0, 0)) == []


def test_workers_paint_on_one_thread() -> None:
    code = (
        "import numpy, json; from threadpoolctl import threadpool_info;"
        "from tumorchain_agent.training.workers import calm_worker; calm_worker();"
        "print(json.dumps([pool['num_threads'] for pool in threadpool_info()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert set(json.loads(done.stdout)) == {1}
