"""Finished lines outlast a cut-off, and nothing else is gone on from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.suite.made_up import CHECKPOINT, answers, features, truths
from tumorchain_agent.errors import OutputError
from tumorchain_agent.training.suite.finished import FILE, VERSION, Answers, Features, FinishedLines, Pairs


def some() -> list[Answers]:
    rng = np.random.default_rng(0)
    return [answers(truth, 0.5, rng) for truth in truths(3)]


def test_lines_are_found_again_by_kind_checkpoint_masks_patient_and_column(tmp_path: Path) -> None:
    lines = FinishedLines(tmp_path / "new" / "out")
    told = some()
    other = told[0].model_copy(update={"column": "without_iir"})
    seen = features(truths(1)[0], np.random.default_rng(0))
    lines.add(*told, other, seen)
    again = FinishedLines(tmp_path / "new" / "out")
    key = (CHECKPOINT, "truth", "0")
    assert again.get(Answers, *key, "full") == told[0]
    assert again.get(Answers, *key, "without_iir") == other
    assert again.get(Features, *key) == seen
    assert again.get(Pairs, *key) is None
    assert again.get(Answers, CHECKPOINT, "segmentation", "0", "full") is None


def test_a_line_that_was_cut_off_is_dropped_and_written_again(tmp_path: Path) -> None:
    told = some()
    FinishedLines(tmp_path).add(*told)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-40])
    again = FinishedLines(tmp_path)
    assert again.get(Answers, CHECKPOINT, "truth", "1", "full") == told[1]
    assert again.get(Answers, CHECKPOINT, "truth", "2", "full") is None
    again.add(told[2])
    assert file.read_text().splitlines() == [line.model_dump_json() for line in told]


def test_another_versions_or_damaged_lines_are_refused_by_number(tmp_path: Path) -> None:
    old = some()[0].model_copy(update={"version": "0.0"})
    file = tmp_path / FILE
    file.write_text(old.model_dump_json() + "\n")
    with pytest.raises(OutputError, match="another version"):
        FinishedLines(tmp_path)
    assert VERSION != "0.0"
    file.write_text(some()[0].model_dump_json() + "\n" + '{"kind": "answers"}\n')
    with pytest.raises(OutputError, match="line 2 of"):
        FinishedLines(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="holds other files"):
        FinishedLines(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match="can't be used"):
        FinishedLines(tmp_path / "thesis.tex" / "out")


def test_without_a_folder_lines_are_kept_in_memory() -> None:
    lines = FinishedLines(None)
    lines.add(*some())
    assert lines.get(Answers, CHECKPOINT, "truth", "1", "full") == some()[1]
