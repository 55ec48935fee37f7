"""The table of ``batch`` and the folder that it fills, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.sample_answer import sample_answer
from tumorchain_agent.batch_rows import BatchFolder, Outcome, Summary, flat
from tumorchain_agent.batch_run import share
from tumorchain_agent.batch_table import Row, read_table
from tumorchain_agent.batch_worker import Attempts, given_up
from tumorchain_agent.cli import main
from tumorchain_agent.cli_batch import _write_page
from tumorchain_agent.errors import InputError, OutputError
from tumorchain_agent.records import DISCLAIMER

ROW = Row(id="a", scan="/ct.nii.gz", question="Is there a <b>tumor</b>?", more={"site": "x"})


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_start_from_the_tables_folder_and_carry_other_columns_along(tmp_path: Path) -> None:
    text = 'site,scan,question,masks,volume\nx,a/ct.nii.gz,"T, N and M?",l.nii.gz,1\ny,/b.nii.gz,Why?,,\n'
    first, second = read_table(table(tmp_path, "\ufeff" + text))
    assert (first.id, first.scan, first.volume) == ("row-0001", str(tmp_path / "a/ct.nii.gz"), 1)
    assert (first.question, first.masks) == ("T, N and M?", str(tmp_path / "l.nii.gz"))
    assert (second.scan, second.masks, second.volume, second.more) == ("/b.nii.gz", None, None, {"site": "y"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no rows"),
        ("scan\nct.nii.gz\n", "has no column 'question'"),
        ("scan,question\nct.nii.gz,\n", "row 1 has no question"),
        ("scan,question\nct.nii.gz,T, N?\n", "row 1 has more or fewer cells"),
        ("id,scan,question\n../a,ct.nii.gz,T?\n", "isn't of letters"),
        ("id,scan,question\na,ct.nii.gz,T?\nA,ct.nii.gz,N?\n", "row 2 has the id of row 1"),
        ("scan,question,volume\nct.nii.gz,T?,first\n", "volume 'first' is not a whole number"),
        (
            "scan,question,volume\nct.nii.gz,T?,99999999999999999999999\n",
            "row 1: volume '99999999999999999999' is",
        ),
        (f"scan,question,volume\nct.nii.gz,T?,{'9' * 5000}\n", "row 1: volume '99999999999999999999' is"),
        ("scan,question,question\nct.nii.gz,T?,N?\n", "has 2 columns 'question'"),
        ("scan,question,site,site\nct.nii.gz,T?,x,y\n", "has 2 columns 'site'"),
        (
            "scan,question\nct.nii.gz,T?\n~nosuch/x.nii.gz,T?\n",
            "row 2: scan '~nosuch/x.nii.gz' can't be a path",
        ),
        ("scan,question\nc\0t.nii.gz,T?\n", r"row 1: scan 'c\\x00t.nii.gz' can't be a path"),
        ("scan,question,masks\nct.nii.gz,T?,~nosuch/l\n", "row 1: masks '~nosuch/l' can't be a path"),
    ],
)
def test_a_table_that_cant_be_used_is_refused_whole(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_table(table(tmp_path, text))


def test_columns_without_a_name_and_zeros_before_a_number_do_no_harm(tmp_path: Path) -> None:
    (row,) = read_table(table(tmp_path, "scan,question,volume,,\nct.nii.gz,T?,00000000000001,,\n"))
    assert row.volume == 1


def test_a_path_that_only_cant_be_reached_from_here_is_the_rows_own_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", denied)
    (row,) = read_table(table(tmp_path, "scan,question\n/far/ct.nii.gz,T?\n"))
    assert row.scan == "/far/ct.nii.gz"


def test_a_path_may_start_from_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (row,) = read_table(table(tmp_path, "scan,question\n~/ct.nii.gz,T?\n"))
    assert row.scan == "/home/me/ct.nii.gz"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    path = table(tmp_path, "scan,question\nct.nii.gz,T?\n")
    assert main(["batch", str(path), "--out", str(out)]) == 2
    assert "holds files but no batch.json" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["letter.txt"]


def test_two_runs_dont_share_a_folder(tmp_path: Path) -> None:
    first, second = (BatchFolder(tmp_path / "out").held() for _ in range(2))
    with first, pytest.raises(OutputError, match="in use by another run"), second:
        pass


def test_a_failed_row_never_looks_like_an_answer(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow, of the extra ray, is not installed")
    from pyarrow import parquet

    rows = [ROW, ROW.model_copy(update={"id": "b"})]
    folder = BatchFolder(tmp_path / "out")
    answer = sample_answer()
    with folder.held():
        folder.write(Outcome(row=rows[0], key="k", status="answered", answer=answer))
        folder.write(given_up(rows[1], "k", 2))
        folder.write_parquet(rows)
        summary = Summary(rows=2, answered=1, failed=1, errors={"WorkerDied": 1})
        _write_page(folder, rows, summary)
    good, bad = parquet.read_table(folder.path / "answers.parquet").to_pylist()
    assert good["conclusion"] == answer.conclusion
    assert json.loads(good["answer_json"]) == answer.model_dump(mode="json")
    assert (bad["status"], bad["error_code"], bad["attempts"]) == ("failed", "WorkerDied", 2)
    told = (
        "conclusion",
        "t",
        "n",
        "m",
        "stage",
        "organs_examined",
        "organs_absent",
        "notices",
        "answer_json",
    )
    assert {bad[name] for name in told} == {None}
    assert good["table.site"] == bad["table.site"] == "x"
    assert {good["disclaimer"], bad["disclaimer"]} == {DISCLAIMER}
    page = (folder.path / "index.html").read_text()
    assert "NO ANSWER, not assessed. WorkerDied" in page
    assert DISCLAIMER in page
    assert "&lt;b&gt;tumor&lt;/b&gt;" in page


def test_columns_of_a_failed_row_are_a_subset_of_those_of_an_answered_one() -> None:
    good: dict[str, Any] = flat(Outcome(row=ROW, key="k", status="answered", answer=sample_answer()))
    assert set(flat(given_up(ROW, "k", 2))) < set(good)


def test_attempts_are_counted_by_row() -> None:
    attempts = Attempts()
    assert [attempts.begin(name) for name in ("a", "b", "a", "a")] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("resources", "workers", "device", "expected"),
    [
        ({"CPU": 2.0}, None, "auto", (1, 2, 0.0)),
        ({"CPU": 16.0}, None, "auto", (4, 4, 0.0)),
        ({"CPU": 16.0, "GPU": 2.0}, None, "auto", (2, 8, 1.0)),
        ({"CPU": 16.0, "GPU": 2.0}, 4, "auto", (4, 4, 0.5)),
        ({"CPU": 16.0, "GPU": 2.0}, None, "cpu", (4, 4, 0.0)),
        ({"CPU": 2.0}, 4, "auto", (4, 0.5, 0.0)),
    ],
)
def test_workers_share_what_the_cluster_has(
    resources: dict[str, float], workers: int | None, device: str, expected: tuple[int, float, float]
) -> None:
    assert share(resources, workers, device) == expected
