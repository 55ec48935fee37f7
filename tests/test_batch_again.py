"""``batch`` into a folder of an earlier run, without Ray: what is asked anew, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.model.fake_server import FakeServer, serve
from tests.sample_answer import sample_answer
from tests.tools.test_segment import official
from tumorchain_agent import batch_run
from tumorchain_agent.batch_rows import BatchFolder, Outcome
from tumorchain_agent.batch_table import Row
from tumorchain_agent.batch_worker import Reasoning, given_up
from tumorchain_agent.cli import main
from tumorchain_agent.errors import OutputError
from tumorchain_agent.model.checkpoint import NANO_DIR, VISION_WEIGHTS, read_info, write_info
from tumorchain_agent.settings import Settings

pytest.importorskip("pyarrow", reason="pyarrow, of the extra ray, is not installed")

TABLE = "scan,question,masks\nct.nii.gz,T?,\nct.nii.gz,N?,labels.nii.gz\n"


@dataclass
class Batches:
    """Runs of the command in one folder; each row gets an answer."""

    folder: Path
    runs: list[list[str]] = field(default_factory=list)
    """Ids of the rows that each run asked."""
    models: list[str | None] = field(default_factory=list)
    """Name of the LLM that each run was told to use."""

    def outcomes(
        self, rows: Sequence[tuple[Row, str]], settings: Settings, reasoning: Reasoning, workers: int | None
    ) -> Iterator[Outcome]:
        self.runs.append([row.id for row, _ in rows])
        self.models.append(settings.llm_model)
        for row, key in rows:
            yield Outcome(row=row, key=key, status="answered", answer=sample_answer())

    def run(self, *options: str, table: str = TABLE) -> int:
        (self.folder / "table.csv").write_text(table)
        return main(["batch", str(self.folder / "table.csv"), "--out", str(self.folder / "out"), *options])


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batches:
    made = Batches(tmp_path)
    monkeypatch.setattr(batch_run, "outcomes", made.outcomes)
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "no weights"))
    for name in ("ct.nii.gz", "labels.nii.gz"):
        (tmp_path / name).write_text(name)
    return made


def other_weights(folder: Path) -> Path:
    """The nano model with another vision tower."""
    shutil.copytree(NANO_DIR, folder)
    save_file(
        {name: each * 1.001 for name, each in load_file(folder / VISION_WEIGHTS).items()},
        folder / VISION_WEIGHTS,
    )
    nano = read_info(NANO_DIR)
    write_info(
        folder,
        size=nano.size,
        hidden_size=nano.hidden_size,
        preprocessing=nano.preprocessing,
        provenance=nano.provenance,
    )
    return folder


@pytest.mark.parametrize("evidence", ["tokens", "text"])
def test_another_checkpoint_is_asked_anew(batches: Batches, evidence: str) -> None:
    other = str(other_weights(batches.folder / "other"))
    for model in ((), (), ("--model", other)):
        assert batches.run("--evidence", evidence, *model) == 0
    assert batches.runs == [["row-0001", "row-0002"]] * 2


def test_another_checkpoint_behind_a_served_llm_is_asked_anew_unless_pictures_are_shown(
    batches: Batches,
) -> None:
    other = str(other_weights(batches.folder / "other"))
    with serve(FakeServer([{"id": "m"}])) as server:
        for evidence in ("text", "images"):
            for model in ((), ("--model", other)):
                assert batches.run("--evidence", evidence, "--llm-url", server.url, *model) == 0
    assert batches.runs == [["row-0001", "row-0002"]] * 3


def test_another_model_at_the_same_address_is_asked_anew(batches: Batches) -> None:
    with serve(FakeServer([{"id": "first"}])) as server:
        options = ("--evidence", "text", "--llm-url", server.url)
        assert batches.run(*options) == 0
        assert batches.run(*options, "--llm-model", "first") == 0
        server.models[:] = [{"id": "second"}]
        assert batches.run(*options) == 0
    assert batches.runs == [["row-0001", "row-0002"]] * 2
    assert batches.models == ["first", "second"]


def test_rows_without_a_label_map_are_asked_anew_when_other_segmentation_weights_are_there(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batches.run() == 0
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(official(batches.folder / "weights", "fast")))
    assert batches.run() == 0
    assert batches.runs == [["row-0001", "row-0002"], ["row-0001"]]


def test_without_segmentation_weights_the_rows_with_a_label_map_are_still_asked(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUMORCHAIN_SEGMENTATION", "official")
    assert batches.run() == 0
    assert batches.runs == [["row-0001", "row-0002"]]


@pytest.mark.parametrize("evidence", ["tokens", "text", "images"])
def test_a_checkpoint_that_is_none_is_refused_before_anything_else(
    batches: Batches, evidence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", "missing", "--evidence", evidence, "--llm-url", "http://127.0.0.1:1/v1")
    assert batches.run(*options, table="no table") == 2
    told = capsys.readouterr().err
    assert told.startswith("error: missing ")
    assert told.count("\n") == 1
    assert not (batches.folder / "out").exists()


def test_answers_of_another_table_are_not_replaced(
    batches: Batches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batches.run() == 0
    capsys.readouterr()
    kept = {file: file.read_bytes() for file in (batches.folder / "out").rglob("*.*")}
    assert batches.run(table="scan,question\nother.nii.gz,T?\nct.nii.gz,M?\n") == 2
    told = capsys.readouterr().err
    assert "holds the answers of another table" in told
    assert told.count("\n") == 1
    assert {file: file.read_bytes() for file in (batches.folder / "out").rglob("*.*")} == kept
    assert len(batches.runs) == 1


def test_a_table_whose_rows_came_went_and_changed_goes_on(batches: Batches) -> None:
    assert batches.run() == 0
    assert batches.run(table="scan,question\nct.nii.gz,M?\nct.nii.gz,T?\nnew.nii.gz,T?\n") == 0
    assert batches.run(table="scan,question\nct.nii.gz,M?\n") == 0
    assert batches.runs[1:] == [["row-0001", "row-0002", "row-0003"]]


def test_a_table_whose_rows_all_failed_may_be_mended_whole(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(rows: Sequence[tuple[Row, str]], *_: object) -> Iterator[Outcome]:
        yield from (given_up(row, key, 2) for row, key in rows)

    with monkeypatch.context() as patch:
        patch.setattr(batch_run, "outcomes", failing)
        assert batches.run(table="scan,question\nwrong.nii.gz,T?\n") == 1
    assert batches.run() == 0


def with_lock(folder: Path) -> None:
    (folder / ".lock").touch()


def with_draft(folder: Path) -> None:
    (folder / ".batch.json.0123456789abcdef.tmp").write_text("{")


def with_row(folder: Path) -> None:
    (folder / "rows" / "photo.jpg").touch()


def with_letter(folder: Path) -> None:
    (folder / "letter.txt").touch()


@pytest.mark.parametrize("left", [with_lock, with_draft])
def test_a_folder_whose_manifest_could_not_be_written_is_gone_on_with(
    tmp_path: Path, left: Callable[[Path], None]
) -> None:
    (tmp_path / "rows").mkdir()
    left(tmp_path)
    BatchFolder(tmp_path).check()


@pytest.mark.parametrize("left", [with_row, with_letter])
def test_a_folder_with_rows_of_something_else_is_left_alone(
    tmp_path: Path, left: Callable[[Path], None]
) -> None:
    (tmp_path / "rows").mkdir()
    left(tmp_path)
    with pytest.raises(OutputError, match=r"holds files but no batch\.json"):
        BatchFolder(tmp_path).check()
