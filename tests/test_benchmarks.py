"""The runner of ``benchmarks/``: what it says at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def result(code: int, figure: str) -> dict[str, Any]:
    return {"exit_code": code, "tables": [{"rows": [{"what": "an answer over vLLM", "figure": figure}]}]}


@pytest.mark.parametrize(
    ("code", "figure", "said"),
    [
        (0, "3.2×", "all targets met"),
        (1, "2.1×", "missed a target or failed: serving"),
        (0, "skipped: vLLM is not installed", "not measured here: an answer over vLLM (skipped: vLLM is"),
    ],
)
def test_only_what_was_measured_and_reached_is_said_to_be_met(
    code: int, figure: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = _runner(monkeypatch)
    assert runner.verdict({"serving": result(code, figure)}).startswith(said)


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = _runner(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "load", "--out", str(tmp_path / "none" / "b.json")])
    with pytest.raises(SystemExit):
        runner.main()
    assert "there is no folder" in capsys.readouterr().err


def _runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    import runpy
    from types import SimpleNamespace

    monkeypatch.syspath_prepend(str(FOLDER))
    return SimpleNamespace(**runpy.run_path(str(FOLDER / "__main__.py"), run_name="benchmarks"))
