"""Do a DICOM file's elements fit into the file? Who believes a broken length takes gigabytes before failing."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tumorchain_agent.tools.dicom_inflate import InflateBudget

_PREAMBLE: Final = 132
_IMPLICIT, _BIG, _DEFLATED = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
_TRANSFER_SYNTAX: Final = (0x0002, 0x0010)
_PIXELS: Final = (0x7FE0, 0x0010)
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_UNDEFINED: Final = 0xFFFFFFFF
_LONG: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Value representations whose length takes four bytes."""
_SHORT: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_DEEPEST: Final = 24
_MOST_ELEMENTS: Final = 100_000


class _BrokenError(Exception):
    """An element that can't be."""


@dataclass(frozen=True)
class _Element:
    tag: tuple[int, int]
    vr: bytes
    """Empty where the transfer syntax, or a damaged file, doesn't tell."""
    length: int


def elements_fit(path: Path, budget: InflateBudget) -> bool:
    """Whether there are elements behind the meta header, and all, those of sequences included, end within the file.

    Files without a preamble are taken as implicit little endian. Deflated elements are inflated within ``budget``
    and walked too. Raises OSError, and ScanError where they exceed the budget.
    """
    with path.open("rb") as file:
        start = file.read(_PREAMBLE)
        walk = _Walk(file, path.stat().st_size)
        if start[128:] != b"DICM":
            file.seek(0)
            walk.explicit = False
        try:
            walk.elements(walk.size, 0)
            if walk.deflated:
                _walk_inflated(file, path, budget)
        except (_BrokenError, struct.error, zlib.error):
            return False
    return not walk.meta


def _walk_inflated(file: IO[bytes], path: Path, budget: InflateBudget) -> None:
    inner = budget.inflate(file, path)
    walk = _Walk(inner, inner.getbuffer().nbytes)
    walk.meta = False
    walk.elements(walk.size, 0)


class _Walk:
    """Reads tags and lengths, and skips values."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.explicit, self.order = True, "<"
        self.meta, self.syntax = True, b""
        self.deflated = False
        """Met the end of the meta header, with the file there, and the rest is deflated."""
        self.seen = 0

    def elements(self, end: int, depth: int) -> None:
        """Those up to ``end``, or to the delimiter of an item of undefined length."""
        if depth > _DEEPEST:
            raise _BrokenError
        while self.file.tell() + 8 <= end:
            element = self._next()
            if element is None or element.tag in (_ITEM_END, _SEQUENCE_END):
                return
            if element.vr == b"SQ" or element.length == _UNDEFINED:
                self._items(element, depth)
            elif element.tag == _TRANSFER_SYNTAX:
                self.syntax = self._value(element.length).rstrip(b"\0 ")
            else:
                self._skip(element.length)

    def _next(self) -> _Element | None:
        """``None`` where the rest is compressed."""
        self.seen += 1
        if self.seen > _MOST_ELEMENTS:
            raise _BrokenError
        at = self.file.tell()
        if self.meta and struct.unpack("<H", self.file.read(2))[0] != 0x0002:
            self.meta = False
            self._after_meta()
        self.file.seek(at)
        if not self.meta and self.syntax == _DEFLATED:
            self.deflated = True
            return None
        group, number = struct.unpack(f"{self.order}HH", self.file.read(4))
        if group == 0xFFFE or not (self.explicit or self.meta):
            return _Element((group, number), b"", self._long())
        vr = self.file.read(2)
        if vr in _LONG:
            self.file.read(2)
            return _Element((group, number), vr, self._long())
        if vr in _SHORT:
            return _Element((group, number), vr, struct.unpack(f"{self.order}H", self.file.read(2))[0])
        self.file.seek(-2, 1)
        return _Element((group, number), b"", self._long())

    def _after_meta(self) -> None:
        if self.syntax:
            self.explicit = self.syntax != _IMPLICIT
            self.order = ">" if self.syntax == _BIG else "<"

    def _long(self) -> int:
        return int(struct.unpack(f"{self.order}I", self.file.read(4))[0])

    def _items(self, element: _Element, depth: int) -> None:
        """The items of a sequence, or the fragments of compressed pixels."""
        undefined = element.length == _UNDEFINED
        end = self.size if undefined else self._end(element.length)
        was = self.explicit
        if element.vr == b"UN":
            self.explicit = False
        while self.file.tell() + 8 <= end:
            item = self._next()
            if item is None or item.tag == _SEQUENCE_END:
                break
            if item.tag != _ITEM:
                raise _BrokenError
            if element.tag == _PIXELS:
                self._skip(item.length)
            else:
                self.elements(self.size if item.length == _UNDEFINED else self._end(item.length), depth + 1)
        self.explicit = was
        if not undefined:
            self.file.seek(end)

    def _end(self, length: int) -> int:
        end = self.file.tell() + length
        if end > self.size:
            raise _BrokenError
        return end

    def _skip(self, length: int) -> None:
        self.file.seek(self._end(length))

    def _value(self, length: int) -> bytes:
        self._end(length)
        return self.file.read(length)
