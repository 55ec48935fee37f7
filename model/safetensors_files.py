"""Safetensors files read by their headers and copied byte by byte: memory is one buffer, whatever they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from tumorchain_agent.errors import CheckpointError, WeightsError
from tumorchain_agent.model.checkpoint import WeightsFile, read_json

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_BUFFER_BYTES: Final = 8 * 2**20

OnBytes = Callable[[int], None]
"""Told how many more bytes have been read."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes ``start`` to ``stop`` of its file, row-major."""

    key: str
    dtype: str
    """As in the header, e.g. ``"BF16"``."""
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Shard:
    """One file, its tensors in the order of their bytes."""

    path: Path
    tensors: tuple[StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size


def read_shard(path: Path) -> Shard:
    """The header of a file, judged by the safetensors library. Raises :class:`CheckpointError` for a file
    that is missing, truncated or no safetensors file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path} is missing: copy the folder again, whole")
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}): copy it again"
        ) from error
    header.pop("__metadata__", None)
    tensors = [
        StoredTensor(
            key, entry["dtype"], tuple(entry["shape"]), *(8 + length + n for n in entry["data_offsets"])
        )
        for key, entry in header.items()
    ]
    return Shard(path, tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))))


def read_folder(folder: Path) -> tuple[Shard, ...]:
    """The shards of a model folder: ``model.safetensors``, or those that its index names.

    Raises :class:`CheckpointError` when there is neither or both, :class:`WeightsError` when a shard is
    missing or index and shards disagree.
    """
    single, index = (folder / WEIGHTS).is_file(), (folder / INDEX).is_file()
    if single and index:
        raise CheckpointError(f"{folder} holds both {WEIGHTS} and {INDEX}: remove the one that isn't meant")
    if single:
        return (read_shard(folder / WEIGHTS),)
    if not index:
        raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {INDEX}: pass the folder that does")
    where = _read_index(folder / INDEX)
    names = sorted(set(where.values()))
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise WeightsError.listing(folder / INDEX, {"missing shard": lost}, "copy the folder again, whole")
    shards = tuple(read_shard(folder / name) for name in names)
    _check_index(folder / INDEX, where, shards)
    return shards


def _read_index(path: Path) -> dict[str, str]:
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{path} has no weight_map: copy it again")
    for name in where.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path} names the shard {name!r}, which is no file name: copy it again")
    return where


def _check_index(path: Path, where: Mapping[str, str], shards: tuple[Shard, ...]) -> None:
    stored = {(tensor.key, shard.path.name) for shard in shards for tensor in shard.tensors}
    problems = {
        "tensor that its shard lacks": sorted(f"{k} ({name})" for k, name in set(where.items()) - stored),
        "tensor that the index lacks": sorted(f"{k} ({name})" for k, name in stored - set(where.items())),
    }
    if any(problems.values()):
        raise WeightsError.listing(path, problems, "copy the folder again, whole")


def copy_tensors(
    shard: Shard, target: Path, names: Mapping[str, str], on_bytes: OnBytes
) -> tuple[WeightsFile, WeightsFile]:
    """Write the tensors that are keys of ``names``, renamed, into a new file; the rest is left out.

    One pass: returns size and hash of the shard and of the new file. Raises :class:`CheckpointError` when the
    shard can't be read to its end.
    """
    header = _header([tensor for tensor in shard.tensors if tensor.key in names], names)
    source_hash, target_hash = hashlib.sha256(), hashlib.sha256(header)
    position = written = 0
    with shard.path.open("rb") as source, target.open("wb") as file:
        file.write(header)
        for stop, kept in _segments(shard, names):
            for chunk in _chunks(source, shard.path, stop - position):
                source_hash.update(chunk)
                if kept:
                    file.write(chunk)
                    target_hash.update(chunk)
                    written += len(chunk)
                on_bytes(len(chunk))
            position = stop
    read = WeightsFile(sha256=source_hash.hexdigest(), bytes=position)
    return read, WeightsFile(sha256=target_hash.hexdigest(), bytes=len(header) + written)


def _segments(shard: Shard, names: Mapping[str, str]) -> Iterator[tuple[int, bool]]:
    """The file from its beginning as (end, whether it is kept)."""
    yield shard.tensors[0].start if shard.tensors else shard.nbytes, False
    for tensor in shard.tensors:
        yield tensor.stop, tensor.key in names


def _header(tensors: list[StoredTensor], names: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset + tensor.nbytes]
        entries[names[tensor.key]] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        offset += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def describe_file(path: Path, on_bytes: OnBytes) -> WeightsFile:
    """Size and hash of any file."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for chunk in _chunks(file, path, size):
            digest.update(chunk)
            on_bytes(len(chunk))
    return WeightsFile(sha256=digest.hexdigest(), bytes=size)


def equal_bytes(left: tuple[Shard, StoredTensor], right: tuple[Shard, StoredTensor]) -> bool:
    """Whether two tensors are the same: dtype, shape and every byte."""
    (a, first), (b, second) = left, right
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with a.path.open("rb") as file, b.path.open("rb") as other:
        file.seek(first.start)
        other.seek(second.start)
        pairs = zip(_chunks(file, a.path, first.nbytes), _chunks(other, b.path, second.nbytes), strict=True)
        return all(x == y for x, y in pairs)


def _chunks(file: BinaryIO, path: Path, count: int) -> Iterator[memoryview]:
    """The next ``count`` bytes through one buffer: a chunk is gone when the next one comes."""
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, count)))
    while count:
        try:
            got = file.readinto(buffer[: min(len(buffer), count)])  # type: ignore[attr-defined]
        except OSError as error:
            raise CheckpointError(f"{path} can't be read ({error.strerror}): copy it again") from error
        if not got:
            raise CheckpointError(f"{path} ended early, it changed while it was read: copy it again")
        yield buffer[:got]
        count -= got
