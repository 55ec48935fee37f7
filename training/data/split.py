"""The split by patient, 9:1 (paper 2.1): by a hash, so that new patients never move the ones before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data.files import Advance, Problem, read_lines, write_samples
from tumorchain_agent.training.data.record import CoTSample, Split
from tumorchain_agent.training.data.summary import Summary, Tally

TEST_SHARE = 0.1


def side_of(patient: str, *, test: float = TEST_SHARE, seed: int = 0) -> Split:
    """The side that a patient falls on; of many patients a share of about ``test`` falls on the test side."""
    digest = blake2b(patient.encode(), digest_size=8, key=seed.to_bytes(16, "little", signed=True)).digest()
    return "test" if int.from_bytes(digest, "little") < test * 2**64 else "train"


def split_file(
    source: Path, out: Path, *, test: float = TEST_SHARE, seed: int = 0, on_progress: Advance | None = None
) -> Summary:
    """Write ``source`` to ``out`` with every patient's side set anew; paths are kept pointing at the same files.

    Raises DataError, and writes nothing, for a line that isn't good and for a patient that the source has on
    both sides: what was measured with that split is void, and whoever made it should know.
    """
    tally = Tally()
    write_samples(out, _moved(source, out, test, seed, tally, on_progress))
    return tally.summary()


def _moved(
    source: Path, out: Path, test: float, seed: int, tally: Tally, on_progress: Advance | None
) -> Iterator[CoTSample]:
    before: dict[str, tuple[Split, int]] = {}
    for line, sample in read_lines(source, on_progress):
        if isinstance(sample, Problem):
            raise DataError(
                f"{source.name} {sample.text()}; tumorchain-agent data validate names all bad lines"
            )
        side, earlier = before.setdefault(sample.patient, (sample.split, line))
        if side != sample.split:
            raise DataError(
                f"{source.name} has patient {sample.patient} in {side} on line {earlier:,} and in {sample.split} "
                f"on line {line:,}; put the patient on one side first: results of the old split are void"
            )
        moved = rebase(sample, source.parent, out.parent)
        moved = moved.model_copy(update={"split": side_of(sample.patient, test=test, seed=seed)})
        tally.add(moved)
        yield moved


def rebase(sample: CoTSample, old: Path, new: Path) -> CoTSample:
    """The sample for a file in folder ``new``, with paths that point at the same files as from ``old``."""
    if old.absolute() == new.absolute():
        return sample
    label_map = None if sample.label_map is None else relative_to(old / sample.label_map, new)
    return sample.model_copy(update={"scan": relative_to(old / sample.scan, new), "label_map": label_map})


def relative_to(path: Path, folder: Path) -> str:
    """The way from a folder to a file, with slashes; neither needs to exist."""
    return Path(os.path.relpath(path, folder)).as_posix()
