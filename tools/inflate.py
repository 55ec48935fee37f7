"""Gzip streams unpacked by igzip (``isal``) where it is installed, some three times as fast as zlib, else by zlib."""

from __future__ import annotations

import zlib
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

_inflate: Any = import_module("isal.isal_zlib") if find_spec("isal") else zlib

DAMAGED: Final[tuple[type[Exception], ...]] = (zlib.error, _inflate.error)
"""What a damaged stream raises."""
_GZIP: Final = 31
"""zlib's name for a gzip stream."""


def unpacker() -> Any:
    """A ``zlib.decompressobj`` for one gzip member, whose checksum is verified."""
    return _inflate.decompressobj(_GZIP)
