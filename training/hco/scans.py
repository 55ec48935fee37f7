"""A scan as training needs it, and the caches that keep it: preprocessed volumes, and tokens of a frozen encoder.

An entry is named by what it was made from, written whole or not at all, and made again when it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.roi import CELLS, GRID, covered_cells
from tumorchain_agent.training.atomic import whole_file
from tumorchain_agent.training.hco.dense import UNKNOWN, DenseTargets
from tumorchain_agent.training.targets import ATTRIBUTES

log = logging.getLogger(__name__)
VERSION: Final = 2
"""Of what the caches hold; entries of another version are not found."""
Coverage = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class ScanData:
    """A scan in model space with what its label map says."""

    name: str
    volume: Tensor | None
    """[1, D, H, W] in [0, 1] as float16, or as uint8 0 … 255; ``None`` where only its tokens are needed."""
    coverage: Coverage
    """Organ in the model volume → its share of each patch [8, 16, 16]."""
    present: frozenset[str] | None = None
    """Organs of the label map, in the model volume or not; ``None`` without a label map."""
    abnormal: Mapping[str, int] = field(default_factory=dict)
    """Organ → 0 or 1, for Cls; of a phantom."""
    lesion: NDArray[np.float16] | None = None
    """[8, 16, 16]: share of each patch that tumors cover, where known."""
    attributes: NDArray[np.int8] | None = None
    """[len(ATTRIBUTES), 8, 16, 16]."""
    truth: Mapping[str, Any] | None = None
    """Fields of a phantom's Truth."""
    crops: Mapping[str, ScanData] = field(default_factory=dict)
    """Organ → its crop; empty without ROI zoom."""
    organ: str | None = None
    """Whose crop this is; ``None`` for a whole scan."""
    side_mm: float = 0.0
    """A crop's field of view in-plane."""

    def unit_volume(self) -> Tensor:
        """[1, D, H, W] float32 in [0, 1]."""
        if self.volume is None:
            raise ValueError(f"the volume of {self.name} was not loaded")
        return self.volume.float() / 255 if self.volume.dtype is torch.uint8 else self.volume.float()

    def dense_targets(self, counted: bool = True) -> DenseTargets:
        """For a batch of one scan."""
        organs = torch.zeros(1, CELLS, len(TABLE))
        for key, organ in TABLE.items():
            if organ in self.coverage:
                organs[0, :, key - 1] = torch.from_numpy(self.coverage[organ].reshape(-1))
        lesion = torch.full((1, CELLS), -1.0)
        if self.lesion is not None:
            lesion[0] = torch.from_numpy(self.lesion.astype(np.float32).reshape(-1))
        classes = torch.full((1, CELLS, len(ATTRIBUTES)), UNKNOWN)
        if self.attributes is not None:
            classes[0] = torch.from_numpy(self.attributes.reshape(len(ATTRIBUTES), -1).T.astype(np.int64))
        return DenseTargets(organs, lesion, classes, torch.tensor([float(counted)]))


def as_stored(volume: NDArray[np.float32], kind: str) -> Tensor:
    """[1, D, H, W] in [0, 1] as the cache keeps it: ``float16`` or ``uint8``."""
    unit = torch.from_numpy(np.ascontiguousarray(volume))
    return (unit * 255).round().to(torch.uint8) if kind == "uint8" else unit.half()


def named_coverage(shares: NDArray[np.float32]) -> Coverage:
    """Organs that have a patch, from [57, 8, 16, 16] by Table 10 id."""
    return {
        organ: np.ascontiguousarray(shares[key])
        for key, organ in TABLE.items()
        if len(covered_cells(shares[key]))
    }


class VolumeCache:
    """Preprocessed scans by key; safe to share among processes."""

    def __init__(self, root: Path) -> None:
        self.root = root / f"volumes-{VERSION}"

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def get(self, key: str, *, volume: bool = True, crops: Collection[str] | None = None) -> ScanData | None:
        """The entry; its volume if wanted, and its crops' volumes (of all organs, or of ``crops`` alone).

        A damaged one is removed.
        """
        path = self.path(key)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return _unpacked(stored, volume, crops)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s is damaged (%s) and is made again", path, type(error).__name__)
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, scan: ScanData) -> None:
        with whole_file(self.path(key)) as file:
            np.savez(file, **_packed(scan))


def _packed(scan: ScanData) -> dict[str, Any]:
    """Arrays by name; those of a crop behind its organ and a slash."""
    if scan.volume is None:
        raise ValueError(f"{scan.name} has no volume to keep")
    names = sorted(scan.coverage)
    shares = np.stack([scan.coverage[n] for n in names]) if names else np.zeros((0, *GRID), np.float32)
    facts = {
        "name": scan.name,
        "organs": names,
        "present": None if scan.present is None else sorted(scan.present),
        "abnormal": dict(scan.abnormal),
        "truth": None if scan.truth is None else dict(scan.truth),
        "crops": list(scan.crops),
        "organ": scan.organ,
        "side_mm": scan.side_mm,
    }
    arrays = {"volume": scan.volume.numpy(), "coverage": shares, "facts": np.array(json.dumps(facts))}
    optional = {"lesion": scan.lesion, "attributes": scan.attributes}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    for organ, crop in scan.crops.items():
        arrays |= {f"{organ}/{name}": array for name, array in _packed(crop).items()}
    return arrays


def _unpacked(stored: Any, volume: bool, crops: Collection[str] | None, before: str = "") -> ScanData:
    facts = json.loads(str(stored[f"{before}facts"]))
    shares = stored[f"{before}coverage"]
    return ScanData(
        name=facts["name"],
        volume=torch.from_numpy(stored[f"{before}volume"]) if volume else None,
        coverage={organ: shares[k] for k, organ in enumerate(facts["organs"])},
        present=None if facts["present"] is None else frozenset(facts["present"]),
        abnormal=facts["abnormal"],
        lesion=stored.get(f"{before}lesion"),
        attributes=stored.get(f"{before}attributes"),
        truth=facts["truth"],
        crops={
            organ: _unpacked(stored, crops is None or organ in crops, None, f"{organ}/")
            for organ in facts["crops"]
        },
        organ=facts["organ"],
        side_mm=facts["side_mm"],
    )


class TokenCache:
    """Vision tokens of one frozen encoder, by scan; another encoder's, or another precision's, are never found."""

    def __init__(self, root: Path, encoder: nn.Module, precision: str) -> None:
        self.root = root / f"tokens-{VERSION}" / f"{weights_hash(encoder)}-{precision}"

    def path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.npy"

    def get(self, key: str) -> Tensor | None:
        """[2048, C] float16."""
        try:
            return torch.from_numpy(np.load(self.path(key), allow_pickle=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s is damaged (%s) and is made again", self.path(key), type(error).__name__)
            self.path(key).unlink(missing_ok=True)
            return None

    def put(self, key: str, tokens: Tensor) -> None:
        array = tokens.detach().to("cpu", torch.float16).numpy()
        with whole_file(self.path(key)) as file:
            np.save(file, array)


def weights_hash(module: nn.Module) -> str:
    """16 hexadecimal digits that depend on every weight."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        raw = value.detach().cpu().reshape(-1)
        digest.update(f"{name} {raw.dtype} {tuple(value.shape)}".encode())
        digest.update(raw.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
