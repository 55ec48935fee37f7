"""kill −9 in any node, the same command again: the same answer, and no work done twice."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.graph.fakes import work_log
from tests.integration import killed_ask

POINTS = [
    "open_scan",
    "encode_scan",
    "segment_organs",
    "segment after round 1",
    "round 1",
    "word of round 1",
    "measure_organs spleen",
    "extract_roi_tokens spleen",
    "classify_abnormality liver",
    "round 2",
    "measure_organs esophagus",
    "word of round 3",
    "conclude",
]
UNFINISHED = {"word of round 1": "round 1", "word of round 3": "round 3"}
"""A round that was cut off in the middle is begun again: only finished work counts."""


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([killed_ask.__name__])
"""Each run is a process of its own, forked from one that has only imported what it needs."""


def ask_once(folder: Path, point: str = "") -> int | None:
    """Ask in a new process; its exit code, negative for the signal that killed it."""
    process = PROCESSES.Process(target=killed_ask.run, args=(folder, point))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def answer_in(folder: Path) -> Any:
    return without_clock(json.loads((folder / killed_ask.ANSWER).read_text()))


def without_clock(answer: Any) -> Any:
    """The answer without how long it took."""
    if isinstance(answer, dict):
        return {k: without_clock(v) for k, v in answer.items() if k not in ("seconds", "timings_s")}
    return [without_clock(item) for item in answer] if isinstance(answer, list) else answer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """The answer of a run that nothing disturbed, and the work that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ask_once(folder) == 0
    return answer_in(folder), sorted(work_log(folder))


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_the_next_run_gives_the_same_answer_and_works_once(
    point: str, tmp_path: Path, undisturbed: tuple[Any, list[str]]
) -> None:
    answer, work = undisturbed
    assert ask_once(tmp_path, point) == -signal.SIGKILL
    assert not (tmp_path / killed_ask.ANSWER).exists()
    assert ask_once(tmp_path) == 0
    assert answer_in(tmp_path) == answer
    log = work_log(tmp_path)
    if point in UNFINISHED:
        log.remove(UNFINISHED[point])
    assert sorted(log) == work


@pytest.mark.slow
def test_killed_again_and_again_it_still_arrives(tmp_path: Path, undisturbed: tuple[Any, list[str]]) -> None:
    answer, work = undisturbed
    for point in ("segment_organs", "round 2", "conclude"):
        assert ask_once(tmp_path, point) == -signal.SIGKILL
    assert ask_once(tmp_path) == 0
    assert answer_in(tmp_path) == answer
    assert sorted(work_log(tmp_path)) == work
