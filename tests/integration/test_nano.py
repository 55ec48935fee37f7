"""What ships: nano, its segmentation weights and the bundled phantom, asked as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tumorchain_agent.model.checkpoint import NANO_DIR, verify
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.tools.segment_weights import NANO_WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
PHANTOM = ROOT / "tumorchain_agent/assets/phantom_ct.nii.gz"
LIVER_QUESTION = "Is there a lesion in the liver, and what TNM stage?"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def ask(cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUMORCHAIN_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tumorchain_agent.cli", "ask", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def answered(cache: Path, *words: str) -> dict[str, Any]:
    done = ask(cache, *words, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["disclaimer"] == DISCLAIMER
    return answer


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_nano_and_its_segmentation_weights_are_whole_and_small() -> None:
    assert verify(NANO_DIR).size == "nano"
    assert folder_bytes(NANO_DIR) <= 12_000_000
    assert folder_bytes(NANO_WEIGHTS) <= 8_000_000


def test_the_bundled_phantom_is_answered_in_rounds_with_nanos_own_segmentation(
    cache: Path, tmp_path: Path
) -> None:
    answer = answered(
        cache, str(PHANTOM), "Is there a tumor, and what is the TNM stage?", "--out", str(tmp_path / "out")
    )
    assert answer["segmentation"]["source"] == "nano"
    assert len(answer["rounds"]) >= 2
    assert {"Findings", "Impression", "Pathology"} <= set(answer["conclusion"].replace(":", " ").split())
    codes = {notice["code"] for notice in answer["notices"]}
    assert "demonstration_model" in codes
    assert "out_of_distribution" not in codes
    assert "Findings" in (tmp_path / "out/report.html").read_text()


def test_a_second_question_of_the_same_scan_computes_nothing_of_the_scan_again(cache: Path) -> None:
    answered(cache, str(PHANTOM), "Is there a tumor, and what is the TNM stage?")
    before = (cache / "work_log.jsonl").read_text().splitlines()
    answered(cache, str(PHANTOM), "Is there a tumor in the stomach?")
    new = [
        json.loads(line)["work"]
        for line in (cache / "work_log.jsonl").read_text().splitlines()[len(before) :]
    ]
    assert not {"segment", "encode"} & set(new)


def test_the_real_ct_is_measured_as_the_oracle_says_and_nano_says_it_is_out_of_its_depth(
    cache: Path, real: Path, oracles: dict[str, Any], tmp_path: Path
) -> None:
    scan = real / "totalsegmentator/example_ct.nii.gz"
    masks = real / "totalsegmentator/example_seg_fast_force_split.nii.gz"
    out = tmp_path / "out"
    answer = answered(cache, str(scan), LIVER_QUESTION, "--masks", str(masks), "--out", str(out))
    records = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    measured = {r["organ"]: r for r in records if r["type"] == "measurement"}
    assert measured["liver"]["volume_ml"] == pytest.approx(1125.68, abs=0.01)
    for organ, expected in oracles["ts_example_ct_full"]["labels"].items():
        assert measured[organ]["volume_ml"] == pytest.approx(expected["volume_ml"], abs=1e-3), organ
        assert measured[organ]["mean_hu"] == pytest.approx(expected["hu_mean"], abs=1e-2), organ
    assert "esophagus" in answer["organs_absent"]
    assert "out_of_distribution" in {notice["code"] for notice in answer["notices"]}
    usage = next(r for r in records if r["type"] == "usage")
    assert {"prompt_tokens", "cached_tokens", "completion_tokens"} <= usage.keys()


@pytest.mark.parametrize("name", ["totalsegmentator/example_ct_dicom", "crlm/CRLM-CT-1004_dicom.zip"])
def test_dicom_is_segmented_by_totalsegmentators_code_and_answered(
    cache: Path, real: Path, name: str
) -> None:
    answer = answered(cache, str(real / name), LIVER_QUESTION)
    assert answer["scan"]["source_format"] == "dicom"
    assert answer["segmentation"]["source"] == "nano"
    assert "out_of_distribution" in {notice["code"] for notice in answer["notices"]}


def test_quick_evaluation_runs_through_the_whole_agent(cache: Path) -> None:
    words = ["evaluate", "--quick", "--patients", "2", "--json"]
    environment = {**os.environ, "TUMORCHAIN_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "tumorchain_agent.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)
    result = json.loads(done.stdout)
    assert result["patients"] == 2
    assert result["checkpoint_id"] == verify(NANO_DIR).checkpoint_id
    assert 0 <= result["mean_dice"] <= 1
