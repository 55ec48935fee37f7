"""Questions one after another to a subject; what is answered is kept line by line, and a later run goes on there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from tumorchain_agent.errors import DataError, InputError, OutputError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.cache import content_key
from tumorchain_agent.training.data.files import Problem
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.rows import Converted
from tumorchain_agent.training.evaluation.prompts import asked_of, prompt_of
from tumorchain_agent.training.evaluation.subjects import Said, Subject

FILE: Final = "answers.jsonl"
Key = tuple[str, str, str, str]
Advance = Callable[[int, int], None]
"""``advance(finished, of)``."""


@dataclass(frozen=True)
class Item:
    """A question with its scan on disk."""

    sample: CoTSample
    scan: Path
    image: str
    """Names the scan's masks."""
    label_map: Path | None = None
    """Where the questions' own file names one."""


class Line(Record):
    """One answer of one subject."""

    subject: str
    id: str
    prompt_hash: str
    """Of the prompt that was asked: an edited question is asked anew."""
    made_with: str = ""
    """Hash of what else it rests on: LLM, evidence, form of the answer, scan and masks. A line of an earlier version
    has none, and is not gone on from."""
    said: Said

    @property
    def key(self) -> Key:
        return self.subject, self.id, self.prompt_hash, self.made_with


def good(rows: Iterable[Converted], name: str) -> Iterator[CoTSample]:
    """The samples of a reader. DataError at the first row that can't be read: a benchmark is evaluated whole."""
    for _, item in rows:
        if isinstance(item, Problem):
            raise DataError(f"{name} {item.text('row')}")
        yield item


class Answers:
    """What is answered, in memory and, with a folder, on disk."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / FILE if folder else None
        self._known: dict[Key, Line] = {}
        if self._path is not None:
            self._open(self._path)

    def get(self, key: Key) -> Line | None:
        return self._known.get(key)

    def add(self, line: Line) -> None:
        """On disk when this returns."""
        self._known[line.key] = line
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"{self._path} can't be written ({error.strerror})"
            raise OutputError(f"{reason}; free space, then run again: it goes on from there") from error

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = path.read_bytes() if path.exists() else b""
            whole = found[: found.rfind(b"\n") + 1]
            if len(whole) < len(found):
                with path.open("r+b") as file:
                    file.truncate(len(whole))
        except OSError as error:
            raise OutputError(
                f"--out {path.parent} can't be used ({error.strerror}); name another"
            ) from error
        for number, text in enumerate(whole.splitlines(), 1):
            try:
                line = Line.model_validate_json(text)
            except ValidationError as error:
                reason = " ".join(str(error).split())[:100]
                raise OutputError(
                    f"line {number} of {path} is damaged ({reason}); delete it, or the file"
                ) from error
            self._known[line.key] = line


async def ask_all(
    items: Sequence[Item], subject: Subject, answers: Answers, advance: Advance | None = None
) -> list[Line]:
    """Every item's answer, in order. What went wrong at the LLM's end is asked again by the next run."""
    lines = []
    for done, item in enumerate(items, start=1):
        prompt = prompt_of(item.sample)
        asked = hashlib.sha256(prompt.encode()).hexdigest()[:16]
        made_with = content_key(asked_of(item.sample).form, subject.made_with(item.scan, item.image))
        line = answers.get((subject.name, item.sample.id, asked, made_with))
        if line is None:
            said = await subject.answer(prompt, item.scan, item.image)
            line = Line(
                subject=subject.name, id=item.sample.id, prompt_hash=asked, made_with=made_with, said=said
            )
            if said.how != "unanswered" or said.raw:
                answers.add(line)
        lines.append(line)
        if advance:
            advance(done, len(items))
    return lines


def check_scans(items: Sequence[Item]) -> None:
    """InputError names the first scan that is missing, before anything is asked."""
    missing = [item for item in items if not item.scan.exists()]
    if missing:
        raise InputError(
            f"scan {missing[0].scan} of question {missing[0].sample.id} does not exist, nor do "
            f"{len({item.scan for item in missing}) - 1} others; put the scans there, or pass --scans"
        )
    if not items:
        raise InputError("there is no question to ask; check the file and --limit")


def as_json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
