"""TumorCoT files: read as a stream, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.data.examples import fields, numbered, sample, write_lines
from tumorchain_agent.errors import DataError, InputError, OutputError
from tumorchain_agent.training.data import files
from tumorchain_agent.training.data.files import Problem, read_lines, read_samples, write_samples
from tumorchain_agent.training.data.policy import Reason
from tumorchain_agent.training.data.record import CoTSample


def problems(path: Path) -> list[Problem]:
    return [item for _, item in read_lines(path) if isinstance(item, Problem)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    written = [CoTSample.model_validate(numbered(k, question=f"Où ? 肝 {k}\n")) for k in range(30)]
    assert write_samples(tmp_path / name, written) == 30
    assert list(read_samples(tmp_path / name)) == written
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_every_written_line_is_a_json_object_for_any_reader(tmp_path: Path) -> None:
    write_samples(tmp_path / "a.jsonl", [sample(), sample(id="P-1/2")])
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["P-1/1", "P-1/2"]


def test_the_same_samples_give_the_same_bytes_packed_or_not(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "a.jsonl.gz", "b.jsonl.gz"):
        write_samples(tmp_path / name, [sample()])
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == (tmp_path / "a.jsonl").read_bytes()


def test_a_failure_half_way_leaves_the_earlier_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_samples(path, [sample()])
    before = path.read_bytes()

    def failing(error: BaseException) -> Iterator[CoTSample]:
        yield sample(id="other")
        raise error

    for error in (OSError(28, "No space left on device"), KeyboardInterrupt(), DataError("no")):
        with pytest.raises((OutputError, KeyboardInterrupt, DataError)):
            write_samples(path, failing(error))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_bad_line_is_told_with_its_number_and_patient_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        numbered(1),
        numbered(2, split="val"),
        "",
        "[1, 2]",
        '{"id": ',
        numbered(6),
    )
    items = list(read_lines(path))
    assert [number for number, _ in items] == [1, 2, 3, 4, 5, 6]
    assert [isinstance(item, CoTSample) for _, item in items] == [True, False, False, False, False, True]
    told = [problem.text() for problem in problems(path)]
    assert told[0] == "line 2 (patient P-2): split is 'val'; write 'train' or 'test'"
    assert told[1] == "line 3: empty; remove the line"
    assert "line 4: not a JSON object" in told[2]
    assert "line 5: not JSON (EOF while parsing" in told[3]


def test_a_strict_reader_stops_at_the_first_bad_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", numbered(1), fields(split="val"))
    reader = read_samples(path)
    assert next(reader).patient == "P-1"
    with pytest.raises(DataError, match=r"a\.jsonl line 2 \(patient P-1\): split is 'val'"):
        next(reader)


def test_bytes_that_are_not_utf8_and_a_byte_order_mark_are_told(tmp_path: Path) -> None:
    line = json.dumps(fields()).encode()
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + line + b"\n" + line.replace(b"tumor", b"tum\xf6r") + b"\n"
    )
    first, second = problems(tmp_path / "a.jsonl")
    assert "byte-order mark" in first.message
    assert "not JSON" in second.message


def test_a_cut_off_packed_file_ends_with_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    write_samples(path, [CoTSample.model_validate(numbered(k)) for k in range(200)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    items = list(read_lines(path))
    assert len(items) > 10
    last = items[-1][1]
    assert isinstance(last, Problem)
    assert last.reason is Reason.TRUNCATED_FILE
    assert all(isinstance(item, CoTSample) for _, item in items[:-1])


def test_a_file_that_is_not_packed_as_its_name_says_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_text(json.dumps(fields()))
    (problem,) = problems(tmp_path / "a.jsonl.gz")
    assert "gzip" in problem.message.lower()


def test_an_endless_line_is_refused_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 1 << 20)
    path = write_lines(tmp_path / "a.jsonl", "x" * (5 << 20), numbered(2))
    first, second = (item for _, item in read_lines(path))
    assert isinstance(first, Problem)
    assert "longer than 1 MiB" in first.message
    assert isinstance(second, CoTSample)


def test_a_line_without_its_line_break_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(fields()))
    assert next(read_samples(tmp_path / "a.jsonl")) == sample()


@pytest.mark.parametrize(
    ("name", "words"), [("no.jsonl", "does not exist"), ("a.csv", "is not named .jsonl")]
)
def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(read_lines(tmp_path / name))


def test_reading_takes_the_memory_of_a_line_not_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_samples(path, (CoTSample.model_validate(numbered(k)) for k in range(3000)))
    assert sum(1 for _ in read_lines(path)) == 3000, "pydantic's cache of strings, which is bounded, is full"
    told: list[int] = []
    tracemalloc.start()
    assert sum(1 for _ in read_lines(path, told.append)) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * path.stat().st_size
    assert told == sorted(told)
    assert told[-1] == path.stat().st_size
