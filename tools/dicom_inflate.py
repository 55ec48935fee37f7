"""DICOM in deflated transfer syntax, unpacked within bounds before a reader unpacks it without any."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from tumorchain_agent.errors import ScanError

_FREE_BYTES: Final = 64 << 20
"""Any file may unpack to this, as a slice of one value everywhere does from next to nothing."""
_MOST_TIMES: Final = 32
"""And to so many times its size: CT deflates to a third, a bomb of zeros to a thousandth."""
_CHUNK: Final = 1 << 20
_RAW: Final = -zlib.MAX_WBITS


class InflateBudget:
    """What the deflated files of one folder may unpack to: ``max_bytes`` in all, like a zip of them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left = max_bytes

    def inflate(self, file: IO[bytes], path: Path) -> io.BytesIO:
        """The rest of an open file, unpacked. Raises ScanError beyond the budget, zlib.error for a damaged stream."""
        most = max(_FREE_BYTES, _MOST_TIMES * path.stat().st_size)
        target = io.BytesIO()
        for part in _parts(file):
            self._left -= len(part)
            target.write(part)
            if target.tell() > most:
                raise ScanError(
                    f"{path.name} is deflated and unpacks to more than {most / 1e6:.0f} MB; "
                    "export the series again without compression"
                )
            if self._left < 0:
                raise ScanError(
                    f"{path.name} and the deflated files before it unpack to more than "
                    f"{self._max_bytes / 1e9:.3g} GB; pass the folder of one series, or raise "
                    "TUMORCHAIN_MAX_SCAN_VOXELS"
                )
        target.seek(0)
        return target


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(_RAW)
    while not stream.eof:
        packed = stream.unconsumed_tail or file.read(_CHUNK)
        part = stream.decompress(packed, _CHUNK)
        if not (packed or part or stream.eof):
            raise zlib.error("the stream is cut off")
        yield part
