"""Bad data in the middle of an epoch: named, counted, skipped or fatal; the files are really broken."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.training.data.examples import GOOD, HU, numbered, write_lines, write_patient
from tumorchain_agent.errors import DataError
from tumorchain_agent.tools.scan import CT
from tumorchain_agent.training.data.files import Problem, read_lines
from tumorchain_agent.training.data.policy import (
    NAMED,
    BadDataCounter,
    BadDataReport,
    BadSample,
    OnBadData,
    Reason,
)
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.scans import BadVolumeError, Opened, open_each


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Good, missing scan, organ lacking, NaN, truncated, not JSON, good."""
    write_patient(tmp_path, "P-1")
    write_patient(tmp_path, "P-3")
    spoiled = HU.copy()
    spoiled[0, 0, 0] = np.inf
    write_patient(tmp_path, "P-4", hu=spoiled)
    scan = write_patient(tmp_path, "P-5") / "ct.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])
    write_patient(tmp_path, "P-7")
    pancreas = [GOOD["rounds"][0], {"organs": ["pancreas"], "text": "Answer: liver."}]
    lines = [numbered(k, rounds=pancreas) if k == 3 else numbered(k) for k in range(1, 6)]
    return write_lines(tmp_path / "a.jsonl", *lines, '{"id": ', numbered(7))


def epoch(path: Path) -> Iterator[Opened | BadSample]:
    """The way of a file into training."""
    items = (item for _, item in read_lines(path))
    samples: Iterator[CoTSample | BadSample] = (
        item.as_bad_sample() if isinstance(item, Problem) else item for item in items
    )
    return open_each(samples, path.parent)


def test_skipping_gives_every_good_sample_and_names_and_counts_the_bad_ones(
    cohort: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = BadDataCounter(OnBadData.SKIP)
    good = list(counter.good(epoch(cohort)))
    assert [each.sample.patient for each in good] == ["P-1", "P-7"]
    with caplog.at_level(logging.INFO):
        report = counter.end_epoch()
    assert (report.good, report.bad) == (2, 5)
    assert report.reasons == {
        Reason.MISSING_SCAN: 1,
        Reason.ORGAN_LACKING: 1,
        Reason.NOT_FINITE: 1,
        Reason.TRUNCATED_FILE: 1,
        Reason.BAD_LINE: 1,
    }
    assert [bad.sample for bad in report.named] == ["P-2/2", "P-3/3", "P-4/4", "P-5/5", "line 6"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    told = record.getMessage()
    assert "5 of 7 samples are bad" in told
    assert "P-3/3: P-3/labels.nii.gz lacks pancreas" in told
    assert "1 × NaN in volume" in told


def test_no_volume_that_reaches_training_is_empty_or_not_finite(cohort: Path) -> None:
    for opened in BadDataCounter(OnBadData.SKIP).good(epoch(cohort)):
        assert isinstance(opened.volumes.scan, CT)
        assert np.isfinite(opened.volumes.scan.hu).all()
        assert opened.volumes.scan.hu.std() > 0
        assert opened.volumes.label_map is not None
        assert opened.volumes.label_map.labels.any()


def test_failing_stops_at_the_first_bad_sample_with_its_name(cohort: Path) -> None:
    stream = BadDataCounter(OnBadData.FAIL).good(epoch(cohort))
    assert next(stream).sample.patient == "P-1"
    with pytest.raises(DataError, match=r"P-2/2: .*P-2/ct\.nii\.gz does not exist") as caught:
        next(stream)
    assert caught.value.exit_code == 2


def test_an_epoch_without_bad_data_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_patient(tmp_path, "P-1")
    path = write_lines(tmp_path / "a.jsonl", numbered(1), numbered(2, patient=1))
    counter = BadDataCounter(OnBadData.FAIL)
    first, second = counter.good(epoch(path))
    assert first.volumes is second.volumes, "samples of one scan share it"
    with caplog.at_level(logging.INFO):
        assert counter.end_epoch() == BadDataReport(good=2)
    assert caplog.messages == ["epoch ended: no bad sample among 2"]


def test_an_epoch_with_nothing_but_bad_data_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", numbered(1), numbered(2))
    counter = BadDataCounter(OnBadData.SKIP)
    assert list(counter.good(epoch(path))) == []
    with pytest.raises(DataError, match=r"nothing is left to train on: 2 of 2 samples are bad"):
        counter.end_epoch()


def bad(number: int, reason: Reason = Reason.MISSING_SCAN) -> BadSample:
    return BadSample(sample=f"s{number}", reason=reason, message="gone; restore it")


def test_each_epoch_is_counted_anew_and_a_resumed_one_goes_on() -> None:
    whole = BadDataCounter(OnBadData.SKIP)
    items = [0, bad(1), 2, bad(3, Reason.NOT_FINITE), 4]
    assert list(whole.good(items)) == [0, 2, 4]
    part = BadDataCounter(OnBadData.SKIP)
    list(part.good(items[:2]))
    saved = part.so_far.model_dump_json()
    resumed = BadDataCounter(OnBadData.SKIP, BadDataReport.model_validate_json(saved))
    list(resumed.good(items[2:]))
    assert resumed.end_epoch() == whole.end_epoch()
    assert whole.end_epoch() == BadDataReport()


def test_reports_of_processes_add_up_and_only_the_first_are_named() -> None:
    counter = BadDataCounter(OnBadData.SKIP)
    list(counter.good([*map(bad, range(NAMED + 5)), "data"]))
    report = counter.end_epoch() + BadDataReport(good=3, reasons={Reason.DUPLICATE: 1}, named=(bad(99),))
    assert (report.good, report.bad, len(report.named)) == (4, NAMED + 6, NAMED)
    assert "and 6 more" in str(report)


def test_what_goes_wrong_in_a_worker_process_arrives_whole() -> None:
    error = pickle.loads(pickle.dumps(BadVolumeError("cut off; copy it again", Reason.TRUNCATED_FILE)))
    assert (str(error), error.reason) == ("cut off; copy it again", Reason.TRUNCATED_FILE)
    assert pickle.loads(pickle.dumps(bad(1))) == bad(1)
