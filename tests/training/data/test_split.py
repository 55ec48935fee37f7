"""The split by patient: 9:1, by hash, never one patient on both sides."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.training.data.examples import fields, numbered, write_lines
from tumorchain_agent.cli import main
from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.data.split import side_of, split_file


def test_a_tenth_of_many_patients_falls_on_the_test_side() -> None:
    for seed in (0, 1, 2):
        test = sum(side_of(f"P-{k}", seed=seed) == "test" for k in range(10_000))
        assert abs(test - 1000) < 4 * 30, "four standard deviations of a fair draw"
    assert sum(side_of(f"P-{k}", test=0.5) == "test" for k in range(10_000)) == pytest.approx(5000, abs=200)


def test_seeds_split_independently() -> None:
    both = sum(side_of(f"P-{k}", seed=0) == side_of(f"P-{k}", seed=1) == "test" for k in range(10_000))
    assert both == pytest.approx(100, abs=40)


def test_new_patients_and_another_order_move_nobody(tmp_path: Path, seed: int) -> None:
    few = [numbered(k, patient=k // 2) for k in range(60)]
    many = [*few, *(numbered(k, patient=k // 2) for k in range(60, 200))]
    random.Random(seed).shuffle(many)
    sides = []
    for name, lines in (("few", few), ("many", many)):
        out = tmp_path / f"{name}.out.jsonl"
        split_file(write_lines(tmp_path / f"{name}.jsonl", *lines), out, test=0.3, seed=5)
        sides.append({sample.patient: sample.split for sample in read_samples(out)})
    assert {patient: sides[1][patient] for patient in sides[0]} == sides[0]
    assert set(sides[1].values()) == {"train", "test"}


def test_each_patient_is_on_one_side_and_nothing_else_changes(tmp_path: Path) -> None:
    lines = [numbered(k, patient=k % 25) for k in range(100)]
    path = write_lines(tmp_path / "a.jsonl", *lines)
    summary = split_file(path, path, test=0.4)
    assert summary.patients.both == 25
    before = [fields(**line) for line in lines]
    after = [sample.model_dump(mode="json", exclude_defaults=True) for sample in read_samples(path)]
    sides: dict[str, set[str]] = {}
    for old, new in zip(before, after, strict=True):
        sides.setdefault(new["patient"], set()).add(new.pop("split"))
        assert {name: value for name, value in old.items() if name != "split"} == new
    assert all(len(each) == 1 for each in sides.values())


def test_a_patient_on_both_sides_is_refused_and_nothing_written(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", numbered(1, patient=7), numbered(2), numbered(3, patient=7, split="test")
    )
    with pytest.raises(DataError, match="patient P-7 in train on line 1 and in test on line 3"):
        split_file(path, tmp_path / "b.jsonl")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_bad_line_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", numbered(1), numbered(2, answer=""))
    assert main(["data", "split", str(path), str(tmp_path / "b.jsonl")]) == 2
    assert "error: a.jsonl line 2 (patient P-2): answer is empty" in capsys.readouterr().err
    assert not (tmp_path / "b.jsonl").exists()


def test_paths_still_point_at_the_same_files_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "P-1").mkdir(parents=True)
    (tmp_path / "in" / "P-1" / "ct.nii.gz").touch()
    path = write_lines(tmp_path / "in" / "a.jsonl", numbered(1), numbered(2, label_map=...))
    split_file(path, tmp_path / "out" / "deep" / "b.jsonl.gz")
    first, second = read_samples(tmp_path / "out" / "deep" / "b.jsonl.gz")
    assert first.scan == "../../in/P-1/ct.nii.gz"
    assert (tmp_path / "out" / "deep" / first.scan).resolve() == tmp_path / "in" / "P-1" / "ct.nii.gz"
    assert (first.label_map, second.label_map) == ("../../in/P-1/labels.nii.gz", None)


def test_command_reports_the_shares_by_subtask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [numbered(k) for k in range(50)]
    lines += [numbered(k, patient=k - 100, subtask="segment") for k in range(100, 150)]
    path = write_lines(tmp_path / "a.jsonl", *lines)
    assert main(["data", "split", str(path), str(tmp_path / "b.jsonl"), "--test", "0.2", "--seed", "3"]) == 0
    test = sum(side_of(f"P-{k}", test=0.2, seed=3) == "test" for k in range(50))
    shown = capsys.readouterr().out
    row = f"{50 - test} | {test} | {2 * test:.1f} %"
    assert f"| position / organ | {row} |" in shown
    assert f"| position / segment | {row} |" in shown
    assert f"| **patients** | {row} |" in shown


def test_command_says_when_nobody_is_on_the_test_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", numbered(1))
    assert side_of("P-1", test=0.001) == "train"
    assert main(["data", "split", str(path), str(path), "--test", "0.001"]) == 0
    assert "no patient of 1 is on the test side" in capsys.readouterr().err
