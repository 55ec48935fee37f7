"""Where scans and questions come from: TumorCoT files, or phantoms drawn straight into model space."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tumorchain_agent.errors import DataError, InputError
from tumorchain_agent.tools.cache import content_key
from tumorchain_agent.tools.organs import FIVE
from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.preprocess import ModelVolume, Preprocessing, preprocess
from tumorchain_agent.tools.roi import organ_coverage
from tumorchain_agent.tools.scan import CT
from tumorchain_agent.tools.zoom import Zoom, zoom_in
from tumorchain_agent.training.data.files import Problem, numbered_lines, reading
from tumorchain_agent.training.data.policy import BadSample
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.scans import BadVolumeError, Unusable, open_volumes
from tumorchain_agent.training.hco.scans import ScanData, VolumeCache, as_stored, named_coverage
from tumorchain_agent.training.phantom.crops import PhantomCrop, crop_case
from tumorchain_agent.training.phantom.export import GENERATOR
from tumorchain_agent.training.phantom.patient import Case
from tumorchain_agent.training.phantom.volume import Pool, cell_shares, merged_labels
from tumorchain_agent.training.targets import CLS_ORGANS, case_targets, crop_targets
from tumorchain_agent.training.workers import worker_pool


@dataclass(frozen=True)
class Unit:
    """A scan and which of its questions are asked together."""

    scan: int
    picks: tuple[int, ...]
    """Records' numbers; for phantoms seeds of questions."""


class Source(Protocol):
    """Scans by number, the same in every process."""

    cache: VolumeCache
    zoom: Zoom | None
    """Which organs' crops the scans come with."""

    def __len__(self) -> int:
        """Scans."""
        ...

    def units(self, epoch: int, questions: int) -> Sequence[Unit]:
        """All that an epoch asks, ``questions`` of a scan together, not yet shuffled."""
        ...

    def key(self, scan: int) -> str:
        """Name of a scan in the caches."""
        ...

    def make(self, scan: int) -> ScanData | Unusable:
        """Read or draw a scan; what is wrong with it is a value."""
        ...

    def name(self, unit: Unit) -> str: ...


def load(
    source: Source, scan: int, *, volume: bool = True, crops: Collection[str] | None = None
) -> ScanData | Unusable:
    """A scan from the cache, made and kept where it isn't there; ``crops`` as the cache takes it."""
    key = source.key(scan)
    found = source.cache.get(key, volume=volume, crops=crops)
    if found is not None:
        return found
    made = source.make(scan)
    if isinstance(made, ScanData):
        source.cache.put(key, made)
    return made


def fill_cache(
    source: Source, workers: int, advance: Callable[[int], None] | None = None
) -> dict[int, Unusable]:
    """Make every scan that the cache lacks, in ``workers`` processes; the scans that can't be used, by number."""
    missing = [scan for scan in range(len(source)) if source.key(scan) not in source.cache]
    if advance:
        advance(len(source) - len(missing))
    bad: dict[int, Unusable] = {}
    if workers < 2 or len(missing) < 2:
        found: Iterable[Unusable | None] = map(_fill, repeat(source), missing)
        return _collect(missing, found, bad, advance)
    with worker_pool(workers) as pool:
        return _collect(missing, pool.map(_fill, repeat(source), missing, chunksize=4), bad, advance)


def _collect(
    scans: Sequence[int],
    found: Iterable[Unusable | None],
    bad: dict[int, Unusable],
    advance: Callable[[int], None] | None,
) -> dict[int, Unusable]:
    for scan, outcome in zip(scans, found, strict=True):
        if outcome is not None:
            bad[scan] = outcome
        if advance:
            advance(1)
    return bad


def _fill(source: Source, scan: int) -> Unusable | None:
    made = load(source, scan, volume=False, crops=())
    return made if isinstance(made, Unusable) else None


class RecordSource:
    """One side of a TumorCoT file. Lines are read again when they are needed; only their places are kept."""

    def __init__(
        self,
        path: Path,
        split: Literal["train", "test"],
        cache: VolumeCache,
        volumes: str = "float16",
        preprocessing: Preprocessing | None = None,
        zoom: Zoom | None = None,
    ) -> None:
        if path.suffix == ".gz":
            raise InputError(f"{path} is packed, so that its lines can't be found again; unpack it")
        self.path, self.cache, self.volumes = path, cache, volumes
        self.preprocessing = preprocessing or Preprocessing()
        self.zoom = zoom
        self.bad_lines: list[BadSample] = []
        offsets: list[int] = []
        self.groups: list[list[int]] = []
        """Scan → numbers of its records."""
        self._files: list[tuple[str, str | None]] = []
        self._index(split, offsets)
        self._offsets = np.array(offsets, np.int64)

    def _index(self, split: str, offsets: list[int]) -> None:
        scans: dict[tuple[str, str | None], int] = {}
        sides: dict[str, str] = {}
        with reading(self.path) as (stream, _):
            at = 0
            for number, line in numbered_lines(stream):
                sample = line if isinstance(line, Problem) else _parsed(number, line)
                if isinstance(sample, Problem):
                    self.bad_lines.append(sample.as_bad_sample())
                else:
                    if sides.setdefault(sample.patient, sample.split) != sample.split:
                        raise DataError(
                            f"{self.path.name} has patient {sample.patient} on both sides of the split; "
                            "run tumorchain-agent data split"
                        )
                    if sample.split == split:
                        files = (sample.scan, sample.label_map)
                        scan = scans.setdefault(files, len(scans))
                        if scan == len(self.groups):
                            self.groups.append([])
                            self._files.append(files)
                        self.groups[scan].append(len(offsets))
                        offsets.append(at)
                at = stream.tell()

    def __len__(self) -> int:
        return len(self.groups)

    def record(self, number: int) -> CoTSample:
        """A record of this side, by its number."""
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            return CoTSample.model_validate_json(file.readline())

    def units(self, epoch: int, questions: int) -> Sequence[Unit]:
        return [
            Unit(scan, tuple(group[first : first + questions]))
            for scan, group in enumerate(self.groups)
            for first in range(0, len(group), questions)
        ]

    def name(self, unit: Unit) -> str:
        return ", ".join(self.record(pick).id for pick in unit.picks)

    def key(self, scan: int) -> str:
        """By the files' identity, so that a changed scan is read again, and by what is made of them."""
        record = self.record(self.groups[scan][0])
        files = [_identity(self.path.parent / name) for name in self._files[scan] if name is not None]
        stored = self.preprocessing.as_dict()
        return content_key(record.scan_id or "", files, stored, self.volumes, *_zoom_key(self.zoom))

    def make(self, scan: int) -> ScanData | Unusable:
        record = self.record(self.groups[scan][0])
        try:
            volumes = open_volumes(record, self.path.parent)
        except BadVolumeError as error:
            return Unusable(error.reason, str(error))
        if not isinstance(volumes.scan, CT):
            return ScanData(record.scan, as_stored(volumes.scan.values, self.volumes), {})
        model = preprocess(volumes.scan, self.preprocessing)
        volume = as_stored(model.volume, self.volumes)
        if volumes.label_map is None:
            return ScanData(record.scan, volume, {})
        shares = organ_coverage(volumes.label_map.labels, volumes.scan.affine, model)
        present = frozenset(volumes.label_map.info.organs_present)
        crops = self._crops(record.scan, volumes.scan, volumes.label_map.labels, model)
        return ScanData(record.scan, volume, named_coverage(shares), present, crops=crops)

    def _crops(self, name: str, ct: CT, labels: NDArray[np.uint8], whole: ModelVolume) -> dict[str, ScanData]:
        """As inference takes them. What is abnormal in one is said by the record."""
        found: dict[str, ScanData] = {}
        if self.zoom is None:
            return found
        for organ in self.zoom.organs:
            crop = zoom_in(ct, labels, organ, whole, self.zoom, self.preprocessing)
            if crop is not None:
                volume, coverage = as_stored(crop.model.volume, self.volumes), named_coverage(crop.coverage)
                found[organ] = ScanData(
                    f"{name} {organ}", volume, coverage, organ=organ, side_mm=crop.side_mm
                )
        return found


def _parsed(number: int, line: bytes) -> CoTSample | Problem:
    from pydantic import ValidationError

    from tumorchain_agent.training.data.explain import explain

    try:
        return CoTSample.model_validate_json(line)
    except ValidationError as error:
        return Problem(line=number, message=explain(error))


def _zoom_key(zoom: Zoom | None) -> tuple[str, ...]:
    """Of what is zoomed into and how; pooling comes later."""
    return () if zoom is None else (zoom.model_dump_json(exclude={"max_tokens"}),)


def _identity(path: Path) -> list[str]:
    """Name, size and time of a file, or of all files of a folder; a missing one has no more than its name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            stat = file.stat()
            found.append(f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            found.append(str(file.absolute()))
    return found


def abnormal_organs(record: CoTSample, scan: ScanData) -> dict[str, int]:
    """Cls's labels of a record: what its provenance says of ``abnormal_organs``, or of the ``tumor_organ``.

    Labelled are the five organs and the abnormal ones, where the label map holds them; nothing where the
    provenance is silent. Of a crop only its own organ, as others may be seen in part.
    """
    told = record.provenance
    if isinstance(told.get("abnormal_organs"), list):
        sick = {str(organ) for organ in told["abnormal_organs"]}  # type: ignore[union-attr]
    elif "tumor_organ" in told:
        sick = {str(told["tumor_organ"])} - {"None"}
    else:
        return {}
    labelled = scan.coverage if scan.organ is None else (scan.organ,)
    return {organ: int(organ in sick) for organ in labelled if organ in FIVE or organ in sick}


class PhantomSource:
    """``patients`` phantoms over pooled anatomies; needs no files but the pool's."""

    def __init__(
        self,
        pool: Path,
        patients: int,
        seed: int,
        cache: VolumeCache,
        diseases: tuple[float, ...] = (0.4, 0.6),
        volumes: str = "float16",
        zoom: Zoom | None = None,
        healthy: float = 1.0,
    ) -> None:
        self.pool, self.patients, self.seed, self.zoom = pool, patients, seed, zoom
        self.healthy = healthy
        self.cache, self.diseases, self.volumes = cache, diseases, volumes
        self._opened: Pool | None = None
        self._pool_key = content_key(np.load(pool / "seeds.npy"))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_opened": None}

    def __len__(self) -> int:
        return self.patients

    def units(self, epoch: int, questions: int) -> Sequence[Unit]:
        """Every patient once, of the healthy a share by turns; other questions in every epoch."""
        return [
            Unit(scan, tuple((epoch * self.patients + scan) * questions + k for k in range(questions)))
            for scan in self._asked(epoch)
        ]

    def _asked(self, epoch: int) -> Sequence[int]:
        if self.healthy == 1:
            return range(self.patients)
        healthy = np.flatnonzero(self._is_healthy)
        count = round(self.healthy * len(healthy))
        turn = healthy[(epoch * count + np.arange(count)) % max(len(healthy), 1)]
        asked: list[int] = np.union1d(np.flatnonzero(~self._is_healthy), turn).tolist()
        return asked

    @cached_property
    def _is_healthy(self) -> NDArray[np.bool_]:
        """By patient; from the cache, which is filled by then or becomes so."""
        found = (load(self, scan, volume=False, crops=()) for scan in range(self.patients))
        return np.array(
            [isinstance(each, ScanData) and not (each.truth or {}).get("organ") for each in found]
        )

    def name(self, unit: Unit) -> str:
        return f"phantom {self.seed}/{unit.scan}"

    def key(self, scan: int) -> str:
        told = (self.seed, scan, list(self.diseases), self.volumes)
        return content_key("phantom", GENERATOR, self._pool_key, *told, *_zoom_key(self.zoom))

    def make(self, scan: int) -> ScanData:
        case, rng = self._draw(scan)
        whole = self._whole(scan, case)
        if self.zoom is None:
            return whole
        crops = [crop_case(case, organ, self.zoom, rng) for organ in self.zoom.organs]
        return replace(whole, crops={crop.organ: self._crop(whole.name, crop) for crop in crops if crop})

    def _crop(self, name: str, crop: PhantomCrop) -> ScanData:
        found = _stored(f"{name} {crop.organ}", crop_targets(crop), crop.coverage, self.volumes)
        return replace(found, organ=crop.organ, side_mm=crop.side_mm)

    def whole(self, scan: int) -> ScanData:
        """A patient without crops, where only the truth is wanted."""
        return self._whole(scan, self._draw(scan)[0])

    def _draw(self, scan: int) -> tuple[Case, np.random.Generator]:
        if self._opened is None:
            self._opened = Pool.open(self.pool)
        rng = np.random.default_rng([self.seed, scan])
        return self._opened.draw(rng, diseases=self.diseases), rng

    def _whole(self, scan: int, case: Case) -> ScanData:
        shares = cell_shares(merged_labels(case), len(TABLE) + 1)
        found = _stored(f"phantom {self.seed}/{scan}", case_targets(case), shares, self.volumes)
        return replace(found, present=frozenset(found.coverage), truth=asdict(case.truth))


def _stored(name: str, targets: dict[str, Tensor], shares: NDArray[np.float32], volumes: str) -> ScanData:
    """A phantom, or a crop of it, from the vision stage's targets and the coverage of all organs [57, 8, 16, 16]."""
    coverage = named_coverage(shares)
    abnormal = zip(CLS_ORGANS, targets["abnormal"].tolist(), strict=True)
    return ScanData(
        name=name,
        volume=as_stored(targets["volume"].numpy(), volumes),
        coverage=coverage,
        abnormal={organ: label for organ, label in abnormal if label >= 0 and organ in coverage},
        lesion=targets["patch"].numpy().astype(np.float16),
        attributes=targets["attributes"].numpy().astype(np.int8),
    )
