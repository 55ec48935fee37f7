"""``ask`` of a checkpoint that was trained with ROI zoom: it zooms by itself, unless it is told not to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_ask import HU, LABELS, QUESTION, save_random_checkpoint, write
from tumorchain_agent.cli import main
from tumorchain_agent.records import Answer, OrganEvidence
from tumorchain_agent.tools.zoom import Zoom

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan, its label map and a checkpoint that says that it was trained with zoom."""
    folder = tmp_path_factory.mktemp("zoom")
    write(folder / "torso.nii.gz", HU.astype(np.int16))
    write(folder / "labels.nii.gz", LABELS)
    save_random_checkpoint(folder / "model")
    info = json.loads((folder / "model/tumorchain.json").read_text())
    told = info | {"zoom": Zoom(max_tokens=32).model_dump(mode="json")}
    (folder / "model/tumorchain.json").write_text(json.dumps(told))
    return folder


def test_ask_shows_the_organs_crop_as_trained_and_not_when_told_not_to(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(place / "cache"))
    liver: dict[str, OrganEvidence] = {}
    prompts: dict[str, str] = {}
    tokens: dict[str, int] = {}
    for option in ("", "--zoom", "--no-zoom"):
        words = ["ask", "torso.nii.gz", QUESTION, "--masks", "labels.nii.gz", "--model", "model", "--json"]
        out = f"report{option}"
        assert main([*words, "--max-rounds", "2", "--out", out, *([option] if option else [])]) == 0
        answer = Answer.model_validate_json(capsys.readouterr().out)
        liver[option] = next(e for e in answer.rounds[1].evidence if e.organ == "liver")
        prompts[option] = answer.rounds[1].prompt
        tokens[option] = answer.rounds[1].usage.prompt_tokens
        page = (place / out / "report.html").read_text()
        assert ("patches of its crop" in page) is (option != "--no-zoom")
    assert "zoomed" in prompts[""]
    assert prompts[""] == prompts["--zoom"] != prompts["--no-zoom"]
    whole, plain = liver[""].tokens, liver["--no-zoom"].tokens
    assert whole is not None
    assert plain is not None
    assert plain.zoom is None
    assert whole.zoom is not None
    assert (whole.uri, whole.count) == (plain.uri, plain.count)
    assert whole.zoom.uri in liver[""].uris
    assert f"[τ_l liver] liver at higher resolution, {round(whole.zoom.side_mm / 10) * 10} mm" in prompts[""]
    assert tokens[""] - tokens["--no-zoom"] > whole.zoom.count
