"""What an answer rests on, and that no run goes on from answers that rest on something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from tumorchain_agent.errors import ChatModelError
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.evaluation import identity
from tumorchain_agent.training.evaluation.masks import KnownFacts
from tumorchain_agent.training.evaluation.runner import Answers, Item, ask_all
from tumorchain_agent.training.evaluation.subjects import AgentSubject, Said

Change = Callable[["Place"], None]


class Place:
    """A scan and its masks, and who is asked about it."""

    def __init__(self, folder: Path) -> None:
        self.scan, self.masks = folder / "x.nii.gz", folder / "masks"
        (self.masks / "x" / "segmentations").mkdir(parents=True)
        self.settings: dict[str, Any] = {"cache_dir": folder / "cache"}
        self.evidence: Any = "tokens"
        self.checkpoint, self.weights, self.image = "one", "one", "x"
        self.write(self.scan)
        for name in (
            "x.nii.gz",
            "x_lesions.nii.gz",
            "x_liver_segments.nii.gz",
            "x/segmentations/liver_cyst.nii.gz",
        ):
            self.write(self.masks / name)

    def write(self, path: Path, content: bytes = b"1") -> None:
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))

    def made_with(self) -> str:
        with Workbench(Settings(**self.settings)) as bench:
            served: Any = SimpleNamespace(checkpoint_id=self.checkpoint, close=bench.served.close)
            bench.served = served
            nobody: Any = None
            return AgentSubject(
                KnownFacts(bench, self.masks), nobody, _unreachable, self.evidence, "agent"
            ).made_with(self.scan, self.image)


def _unreachable() -> Any:
    raise ChatModelError("nobody is there")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setattr(identity, "find_weights", lambda _: SimpleNamespace(weights_id=made.weights))
    return made


def _set(name: str, value: str) -> Change:
    return lambda place: setattr(place, name, value)


def _setting(name: str, value: str) -> Change:
    return lambda place: place.settings.update({name: value})


def _rewritten(name: str) -> Change:
    return lambda place: place.write(place.masks / name, b"22")


@pytest.mark.parametrize(
    "change",
    [
        _set("checkpoint", "two"),
        _set("evidence", "text"),
        _setting("llm_url", "http://localhost:1/v1"),
        _setting("llm_model", "other"),
        _rewritten("x.nii.gz"),
        _rewritten("x_lesions.nii.gz"),
        _rewritten("x_liver_segments.nii.gz"),
        _rewritten("x/segmentations/liver_cyst.nii.gz"),
        lambda place: (place.masks / "x_lesions.nii.gz").unlink(),
        lambda place: os.utime(place.masks / "x.nii.gz", ns=(2, 2)),
        lambda place: (place.masks / "x.nii.gz").unlink(),
        lambda place: place.write(place.scan, b"22"),
    ],
)
def test_an_answer_rests_on_model_evidence_scan_and_masks(place: Place, change: Change) -> None:
    place.settings["llm_url"] = "http://localhost:2/v1"
    before = place.made_with()
    assert place.made_with() == before
    change(place)
    assert place.made_with() != before


def test_an_answer_rests_on_the_weights_that_segment_only_where_no_mask_is_given(place: Place) -> None:
    place.write(place.masks / "y_lesions.nii.gz")
    given = place.made_with()
    place.weights = "two"
    assert place.made_with() == given
    (place.masks / "x.nii.gz").unlink()
    segmented = place.made_with()
    place.weights = "three"
    assert place.made_with() != segmented


class Counting:
    """Answers with how often it was asked."""

    name = "counting"

    def __init__(self, made_with: str) -> None:
        self.asked, self._made_with = 0, made_with

    def made_with(self, scan: Path, image: str) -> str:
        return self._made_with

    async def answer(self, prompt: str, scan: Path, image: str) -> Said:
        self.asked += 1
        return Said(text=self._made_with, how="llm", raw="?")


def _sample(number: int) -> Any:
    return SimpleNamespace(
        id=str(number), question="Where?", answer="Liver", answer_type="open", choices=None, provenance={}
    )


def test_a_run_that_was_cut_off_repeats_nothing_and_one_of_another_model_all(tmp_path: Path) -> None:
    items = [Item(_sample(number), tmp_path / "x.nii.gz", "x") for number in range(3)]

    def run(subject: Counting, upto: int) -> list[str]:
        lines = anyio.run(ask_all, items[:upto], subject, Answers(tmp_path))
        return [line.said.text for line in lines]

    first, again, other = Counting("one"), Counting("one"), Counting("two")
    assert run(first, 2) == ["one"] * 2
    assert run(again, 3) == ["one"] * 3
    assert run(other, 3) == ["two"] * 3
    assert (first.asked, again.asked, other.asked) == (2, 1, 3)
    assert run(again, 3) == ["one"] * 3
    assert again.asked == 1
