"""The files that a sample names: scan and label map, opened and checked the same way by validation and training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import DataError, LabelMapError, ScanError
from tumorchain_agent.tools.labels import LabelMap, load_label_map
from tumorchain_agent.tools.preprocess import Preprocessing
from tumorchain_agent.tools.scan import CT, open_ct
from tumorchain_agent.training.data.policy import BadSample, Reason

if TYPE_CHECKING:
    from tumorchain_agent.errors import Fault
    from tumorchain_agent.training.data.record import CoTSample

_SCAN_FAULTS: Final[dict[Fault | None, Reason]] = {
    "missing": Reason.MISSING_SCAN,
    "cut_off": Reason.TRUNCATED_FILE,
    "not_finite": Reason.NOT_FINITE,
}
_LABEL_FAULTS: Final[dict[Fault | None, Reason]] = {
    "missing": Reason.MISSING_LABEL_MAP,
    "cut_off": Reason.TRUNCATED_FILE,
}


class BadVolumeError(DataError):
    """A scan or label map that can't be used, with the reason that it is counted under."""

    def __init__(self, message: str = "", reason: Reason = Reason.UNREADABLE_SCAN) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class ModelVolume:
    """A volume that is preprocessed already, e.g. one of M3D-Cap's ``.npy`` files; it has no HU and no label map."""

    values: NDArray[np.float32]
    """[1, D, H, W] in [0, 1]."""
    file_name: str


@dataclass(frozen=True, eq=False)
class Volumes:
    """What a sample's files hold."""

    scan: CT | ModelVolume
    label_map: LabelMap | None


@dataclass(frozen=True, eq=False)
class Opened:
    """A sample with its files open."""

    sample: CoTSample
    volumes: Volumes


def open_volumes(sample: CoTSample, folder: Path) -> Volumes:
    """The sample's scan and label map; ``folder`` is that of the sample's file. Raises BadVolumeError."""
    scan = _open_scan(folder / sample.scan)
    if sample.label_map is None:
        return Volumes(scan, None)
    if isinstance(scan, ModelVolume):
        raise BadVolumeError(
            f"{scan.file_name} is a model volume, whose grid no label map is on; remove label_map",
            Reason.UNFIT_LABEL_MAP,
        )
    try:
        return Volumes(scan, load_label_map(folder / sample.label_map, scan))
    except LabelMapError as error:
        reason = _LABEL_FAULTS.get(error.fault, Reason.UNFIT_LABEL_MAP)
        raise BadVolumeError(str(error), reason) from error


def _open_scan(path: Path) -> CT | ModelVolume:
    try:
        return _model_volume(path) if path.suffix == ".npy" else open_ct(path)
    except ScanError as error:
        reason = _SCAN_FAULTS.get(error.fault, Reason.UNREADABLE_SCAN)
        raise BadVolumeError(str(error), reason) from error


def _model_volume(path: Path) -> ModelVolume:
    """A ``.npy`` file with [1, 32, 256, 256] or [32, 256, 256] numbers in [0, 1]."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ScanError(f"{path} does not exist; check the path", "missing") from error
    except (ValueError, EOFError) as error:
        raise ScanError(f"{path.name} is cut off or no .npy array; copy it again", "cut_off") from error
    except OSError as error:
        raise ScanError(f"{path.name} can't be read ({error.strerror}); check its permissions") from error
    wanted = Preprocessing().shape
    if values.shape[-3:] != wanted or values.size != np.prod(wanted) or values.dtype.kind not in "fiu":
        raise ScanError(f"{path.name} is {values.dtype} {values.shape}; save float32 {(1, *wanted)}")
    volume = np.asarray(values, np.float32).reshape(1, *wanted)
    if not np.isfinite(volume).all():
        raise ScanError(f"{path.name} holds NaN or infinity; make it again from its scan", "not_finite")
    if volume.min() < 0 or volume.max() > 1:
        raise ScanError(f"{path.name} has values outside 0..1; normalise it")
    return ModelVolume(volume, path.name)


def scan_id(volumes: Volumes) -> str | None:
    """The scan's id by content; ``None`` for a model volume, which has none."""
    return volumes.scan.scan_id if isinstance(volumes.scan, CT) else None


def organs_present(volumes: Volumes) -> frozenset[str] | None:
    """Organs of the label map; ``None`` without one."""
    return None if volumes.label_map is None else frozenset(volumes.label_map.info.organs_present)


def check_against(sample: CoTSample, found_id: str | None, present: frozenset[str] | None) -> None:
    """Do the rounds fit what the files hold? Raises BadVolumeError."""
    if sample.scan_id is not None and sample.scan_id != found_id:
        raise BadVolumeError(
            f"{sample.scan} has scan_id {found_id}, not {sample.scan_id}; restore the scan, or correct scan_id",
            Reason.ANOTHER_SCAN,
        )
    if present is None:
        return
    absent = {organ for each in sample.rounds for organ in each.absent}
    shown = [organ for each in sample.rounds for organ in each.organs if organ not in absent]
    lacking = [organ for organ in shown if organ not in present]
    if lacking:
        raise BadVolumeError(
            f"{sample.label_map} lacks {', '.join(lacking)}, which a round is shown; mend the label map, "
            "or name the organ in the round's absent",
            Reason.ORGAN_LACKING,
        )
    if absent & present:
        raise BadVolumeError(
            f"{sample.label_map} has {', '.join(sorted(absent & present))}, which a round calls absent; "
            "take the organ out of absent",
            Reason.ORGAN_PRESENT,
        )


@dataclass(frozen=True)
class Unusable:
    """What is left of a BadVolumeError when it is remembered: an exception would keep the volume in memory."""

    reason: Reason
    message: str

    def as_bad_sample(self, sample: CoTSample) -> BadSample:
        return BadSample(sample=sample.id, reason=self.reason, message=self.message)


def try_open(sample: CoTSample, folder: Path) -> Volumes | Unusable:
    """``open_volumes``, with what is wrong as a value."""
    try:
        return open_volumes(sample, folder)
    except BadVolumeError as error:
        return Unusable(error.reason, str(error))


def open_each(samples: Iterable[CoTSample | BadSample], folder: Path) -> Iterator[Opened | BadSample]:
    """Every sample with its files, in order; a BadSample where they can't be used.

    Samples that follow each other and share their files share what is opened.
    """
    held: tuple[tuple[str, str | None], Volumes | Unusable] | None = None
    for sample in samples:
        if isinstance(sample, BadSample):
            yield sample
            continue
        files = (sample.scan, sample.label_map)
        if held is None or held[0] != files:
            held = None  # the scan before goes before the next comes
            held = (files, try_open(sample, folder))
        yield _with_files(sample, held[1])


def _with_files(sample: CoTSample, found: Volumes | Unusable) -> Opened | BadSample:
    if isinstance(found, Unusable):
        return found.as_bad_sample(sample)
    try:
        check_against(sample, scan_id(found), organs_present(found))
    except BadVolumeError as error:
        return Unusable(error.reason, str(error)).as_bad_sample(sample)
    return Opened(sample, found)
