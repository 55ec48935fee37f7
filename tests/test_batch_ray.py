"""How ``batch`` starts and ends Ray, with a Ray that does nothing."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tumorchain_agent.batch_run import cluster
from tumorchain_agent.errors import OutputError, TumorChainError

SOCKET = "session_2026-12-31_23-59-59_123456_4194304/sockets/plasma_store"
"""The longest that Ray puts below its folder."""


class FakeRay:
    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.stopped = 0

    def init(self, **given: Any) -> None:
        self.given.append(given)
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.stopped += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("RAY_ADDRESS", None)
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def long_folder(parent: Path) -> Path:
    made = parent / ("long" * 20)
    made.mkdir()
    return made


def test_rays_sockets_fit_however_long_the_temporary_folder_is(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = long_folder(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with cluster():
        folder = Path(ray.given[0]["_temp_dir"])
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0
        assert len(os.fsencode(folder / SOCKET)) <= 107
    assert not folder.exists()
    assert list(long.iterdir()) == []
    assert ray.stopped == 1


def test_a_short_temporary_folder_is_used(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        with cluster():
            assert Path(ray.given[0]["_temp_dir"]).parent == Path(short)
        assert list(Path(short).iterdir()) == []


def test_without_a_short_folder_the_error_says_how_short_one_must_be(
    ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder(tmp_path)))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match=r"too long a path .* set TMPDIR to a folder of 19 bytes or less"):
        cluster().__enter__()


@pytest.mark.parametrize(
    "error",
    [
        OSError("AF_UNIX path length cannot exceed 107 bytes"),
        Exception("The current node\ntimed out during startup."),
        AssertionError(),
    ],
)
def test_a_ray_that_cannot_start_is_one_line_and_leaves_nothing(ray: FakeRay, error: Exception) -> None:
    ray.error = error
    with pytest.raises(TumorChainError, match=r"^no Ray cluster .* on this machine .*TMPDIR.*$"):
        cluster().__enter__()
    assert not Path(ray.given[0]["_temp_dir"]).exists()
    assert ray.stopped == 1


def test_a_cluster_that_cannot_be_reached_is_named(ray: FakeRay) -> None:
    os.environ["RAY_ADDRESS"] = "10.0.0.1:6379"
    ray.error = Exception("no such node")
    with pytest.raises(TumorChainError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379 \(no such node\).*ray status"):
        cluster().__enter__()


def test_an_error_of_the_work_itself_comes_out_as_it_is(ray: FakeRay) -> None:
    with pytest.raises(ZeroDivisionError), cluster():
        raise ZeroDivisionError
    assert ray.stopped == 1
