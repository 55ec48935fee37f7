"""Checkpoints to go on from: folders that appear whole by one rename, so that the newest is never a broken one."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from tumorchain_agent.errors import InputError, OutputError
from tumorchain_agent.training.data.policy import BadDataReport
from tumorchain_agent.training.hco.engine import Engine

log = logging.getLogger(__name__)
PLACE = "place.json"
CONFIG = "config.json"


class Place(BaseModel):
    """Where a training stands, apart from tensors."""

    model_config = ConfigDict(extra="forbid")

    stage: int = 0
    step: int = 0
    """Steps of the stage that are done."""
    total_steps: int = 0
    """Of all stages."""
    elapsed_s: float = 0.0
    """Of the stage, in all runs."""
    best: float | None = None
    """Lowest validation loss of the stage."""
    samples: int = 0
    tokens: int = 0
    world: int = 1
    bad: list[BadDataReport] = Field(default_factory=list)
    """Of the running epoch, by process."""


class Checkpoints:
    """``OUT/checkpoints``: one folder a checkpoint, named by the steps done."""

    def __init__(self, out: Path, keep: int) -> None:
        self.folder, self.keep = out / "checkpoints", keep

    def found(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / PLACE).is_file())

    def latest(self) -> Path | None:
        found = self.found()
        return found[-1] if found else None

    def save(self, engine: Engine, place: Place) -> Path:
        """Write a checkpoint whole, then drop the oldest. OutputError when it can't be; earlier ones stay."""
        name = f"step-{place.total_steps:08d}"
        draft, target = self.folder / f".{name}.tmp", self.folder / name
        failure = self._together(engine, lambda: self._begin(draft), main_only=True)
        failure = failure or self._together(engine, lambda: self._write(engine, draft))
        failure = failure or self._together(
            engine, lambda: self._finish(draft, target, place), main_only=True
        )
        if failure:
            if engine.main:
                shutil.rmtree(draft, ignore_errors=True)
            last = self.latest()
            kept = f"{last} is the last good one" if last else "there is none yet"
            raise OutputError(
                f"checkpoint {target} can't be written ({failure}); {kept}: free space, then the same command goes on"
            )
        return target

    def _together(self, engine: Engine, act: Callable[[], None], *, main_only: bool = False) -> str:
        """Act in all processes, or the main one, and tell all of them what went wrong in any."""
        failure = ""
        if engine.main or not main_only:
            try:
                act()
            except (OSError, RuntimeError) as error:
                failure = " ".join(str(error).split())[:160] or type(error).__name__
        return next((each for each in engine.gather(failure) if each), "")

    def _begin(self, draft: Path) -> None:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)

    def _write(self, engine: Engine, draft: Path) -> None:
        engine.save(draft)
        torch.save({"torch": torch.get_rng_state()}, draft / f"random-{engine.rank}.pt")

    def _finish(self, draft: Path, target: Path, place: Place) -> None:
        (draft / PLACE).write_text(place.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for path in [*draft.rglob("*"), draft]:
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        os.rename(draft, target)
        _sync(self.folder)
        for old in self.found()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, engine: Engine, folder: Path) -> None:
        """Model, optimizer and random numbers, into an engine whose stage has begun."""
        engine.load(folder)
        state = torch.load(folder / f"random-{engine.rank}.pt", weights_only=True)
        torch.set_rng_state(state["torch"])


def read_place(folder: Path, world: int) -> Place:
    """Raises InputError when other processes than now wrote it."""
    place = Place.model_validate_json((folder / PLACE).read_text(encoding="utf-8"))
    if place.world != world:
        raise InputError(
            f"{folder} was written by {place.world} processes and this run has {world}: start as many"
        )
    return place


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def claim(out: Path, config: dict[str, Any]) -> None:
    """Make ``out`` the folder of a training by ``config``. InputError when another configuration has it."""
    path = out / CONFIG
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there != config:
            raise InputError(
                f"{out} holds a training by another configuration ({_difference(there, config)}): "
                "name another --out, or remove it"
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError(f"{out} holds something else than a training: name a new or empty folder")
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise OutputError(f"{out} can't be written ({error.strerror}): name another --out") from error


def _difference(there: Any, here: Any, at: str = "") -> str:
    """The first key that differs, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *here]:
            if there.get(key) != here.get(key):
                return _difference(there.get(key), here.get(key), f"{at}{key}.")
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for number, (a, b) in enumerate(zip(there, here, strict=True)):
            if a != b:
                return _difference(a, b, f"{at}{number}.")
    return f"{at.rstrip('.')} is {there!r} there and {here!r} here"
