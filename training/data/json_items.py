"""A large JSON object of lists, item by item: only the item at hand is in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, NoReturn

from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data.files import Advance, reading

_CHUNK: Final = 1 << 18
_SPACE: Final = " \t\r\n"
_NUMBER_TAIL: Final = 3
"""A number goes on for certain only where this many characters, e.g. ``e+5``, are there to be read."""


def list_items(path: Path, on_progress: Advance | None = None) -> Iterator[tuple[str, Any]]:
    """``{"train": [a, b], "test": [c], "version": 2}`` → (train, a), (train, b), (test, c).

    DataError, after the items before it, where the file is no such JSON or is cut off.
    """
    with reading(path) as (stream, raw):
        cursor = _Cursor(path.name, stream)
        cursor.expect("{")
        for key in cursor.members():
            if cursor.peek() != "[":
                cursor.value()
                continue
            for item in cursor.elements():
                yield key, item
                if on_progress:
                    on_progress(raw.tell())


class _Cursor:
    """A place in a JSON text of which only a part is in memory."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name = name
        self._stream = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._dropped = 0
        """Characters before the buffer."""

    def members(self) -> Iterator[str]:
        """The keys of an object whose brace is behind; whoever asks reads each value before the next key."""
        while self.peek() != "}":
            key = self.value()
            if not isinstance(key, str):
                self._fail("a key is not a string")
            self.expect(":")
            yield key
            self._separator("}")
        self.expect("}")

    def elements(self) -> Iterator[Any]:
        """The values of the list that begins here."""
        self.expect("[")
        while self.peek() != "]":
            yield self.value()
            self._separator("]")
        self.expect("]")

    def _separator(self, end: str) -> None:
        if self.peek() != end:
            self.expect(",")
            if self.peek() == end:
                self._fail(f"nothing stands between , and {end}")

    def peek(self) -> str:
        """The next character that isn't space; DataError at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                self._fail("it ends too early")

    def expect(self, char: str) -> None:
        found = self.peek()
        if found != char:
            self._fail(f"{char} is wanted, {found!r} stands there")
        self._at += 1

    def value(self) -> Any:
        """The value that begins here, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except ValueError as error:
                if not self._more(len(self._buffer)):
                    self._fail(str(error))
                continue
            size, tail = end - self._at, len(self._buffer) - end
            if tail < _NUMBER_TAIL and isinstance(value, int | float) and self._more():
                continue
            self._at += size
            return value

    def _more(self, least: int = 0) -> bool:
        """Read on, dropping what is behind; at least ``least`` characters, so that long values aren't quadratic."""
        try:
            read = self._stream.read(max(_CHUNK, least))
        except (EOFError, OSError, ValueError) as error:
            self._fail(f"it is cut off or damaged: {error}")
        self._dropped += self._at
        self._buffer = self._buffer[self._at :] + read
        self._at = 0
        return bool(read)

    def _fail(self, why: str) -> NoReturn:
        place = f"near character {self._dropped + self._at:,}"
        raise DataError(f"{self._name} is not JSON {place} ({why}); mend it or copy it again")
