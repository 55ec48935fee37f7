"""``evaluate --suite phantom`` as a whole: on the bundled nano, cut off and gone on with, refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tumorchain_agent.cli import main
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.modes import FULL, Mode
from tumorchain_agent.training.suite.finished import FILE
from tumorchain_agent.training.suite.passes import Advance
from tumorchain_agent.training.suite.plan import Cohort, Plan
from tumorchain_agent.training.suite.result import SuiteResult
from tumorchain_agent.training.suite.scores import AVERAGE
from tumorchain_agent.training.suite.suite import Suite, Tell
from tumorchain_agent.training.suite.table import cell

PLAN = Plan(modes=(FULL, Mode(iir=False)), cohort=Cohort(3, 9_000_004, probe_patients=0))
"""Two with a tumor of 2 cm and more, one without any."""


class CutOffError(Exception):
    """Stands for anything that ends a run in its midst."""


def silent(_: str) -> Advance:
    return lambda what, finished, of: None


def cut_off_after(what: str, count: int) -> Tell:
    def advance(now: str, finished: int, _: int) -> None:
        if now == what and finished >= count:
            raise CutOffError

    return lambda _: advance


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on_to_the_same_result(tmp_path: Path) -> None:
    out = tmp_path / "cut"

    def run(folder: Path, tell: Tell = silent) -> SuiteResult:
        return Suite(Settings(cache_dir=tmp_path / "cache"), PLAN, folder).run(tell, workers=0)

    whole = run(tmp_path / "whole")
    for stop in (cut_off_after("questions", 1), cut_off_after("ROI swap", 0)):
        with pytest.raises(CutOffError):
            run(out, stop)
    kept = (out / FILE).read_bytes()
    assert run(out) == whole
    assert (out / FILE).read_bytes().startswith(kept)
    finished = (out / FILE).read_bytes()
    assert run(out) == whole
    assert (out / FILE).read_bytes() == finished
    titles = [column.title for column in whole.columns]
    assert titles == ["full", "w/o IIR", "full, w/o zoom", "full, text only", "majority class"]
    rounds = {column.title: column.mean_rounds for column in whole.columns}
    assert rounds["w/o IIR"] == 1
    assert (rounds["full"] or 0) > 1
    assert {pair.name for pair in whole.models[0].pairs} == {"tumor removed", "tumor moved", "all pairs"}
    assert whole.models[0].swap is not None
    assert whole.models[0].swap.cases == 2 * whole.tumors
    assert whole.models[0].unfounded is not None
    assert whole.models[0].unfounded.denied.count == whole.patients - whole.tumors == 1
    assert "asked of a tumor where there is none" in (out / "table.md").read_text()


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "--suite", "phantom", "--patients", "2", "--seed", "9000004", "--table-only"]
    assert main([*words, "--no-iir", "--out", str(out), "--json"]) == 0
    printed = capsys.readouterr().out
    result = SuiteResult.model_validate_json(printed)
    assert json.loads((out / "result.json").read_text()) == json.loads(printed)
    assert [column.mode for column in result.columns] == ["without_iir", "without_iir", None]
    assert cell(result.columns[0], AVERAGE).accuracy.count == result.questions == 15
    assert main([*words, "--no-iir", "--out", str(out)]) == 0
    assert (out / "table.md").read_text() == capsys.readouterr().out
    assert "<svg" in (out / "table.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--quick", "--ablate"], "--ablate belongs to --suite"),
        (["--quick", "--out", "x"], "--out belongs to --suite"),
        (["--quick", "--model", "a", "--model", "b"], "only --suite compares several"),
        (["--suite", "phantom", "--ablate", "--no-cot"], "leave out --no-iir and --no-cot"),
        (["--suite", "phantom", "--model", "nowhere"], "no TumorChain checkpoint"),
        (["--suite", "phantom", "--model", "NANO", "--model", "NANO"], "name each model once"),
        (["--suite", "lung"], "there is no such suite; name one of phantom, deeptumorvqa"),
        (["--suite", "phantom", "--seed", "1000000"], "begin at that or later"),
        (["--suite", "phantom", "--out", "FULL"], "holds other files"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_and_nothing_is_written(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tumorchain_agent.model.checkpoint import NANO_DIR

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    places = {"NANO": str(NANO_DIR), "FULL": str(tmp_path / "full")}
    assert main(["evaluate", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "thesis.tex"]
