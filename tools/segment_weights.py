"""Which TotalSegmentator weights are there, and their identity."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Literal

from tumorchain_agent.errors import SegmentationError
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.islands import ISLAND_SHARE
from tumorchain_agent.tools.organs import MERGE, ORGANS, STRUCTURES
from tumorchain_agent.tools.segment_parts import structures_of

NANO_WEIGHTS = Path(__file__).parent.parent / "model" / "nano_segmentation"
"""Ships with the package: TotalSegmentator's folder layout, one model for task ``total``, fast (3 mm)."""

Mode = Literal["default", "fast", "fastest"]
CHECKPOINT = "checkpoint_final.pth"
NEEDED = ("plans.json", "dataset.json", f"fold_0/{CHECKPOINT}")
TRAINED = "tumorchain_trained_labels"
"""Key of ``dataset.json``: TotalSegmentator ids that networks of ours were trained on."""
_MODES: tuple[Mode, ...] = ("default", "fast", "fastest")
_WHOLE_FILE = 32 << 20
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class Weights:
    """Installed weights for one mode of TotalSegmentator's task ``total``."""

    source: Literal["official", "nano"]
    mode: Mode
    folder: Path
    """What ``TOTALSEG_WEIGHTS_PATH`` is set to for the worker."""
    spacing_mm: float
    """Isotropic spacing that the networks of this mode work at."""
    models: tuple[Path, ...]
    """Folders with ``plans.json``, ``dataset.json`` and ``fold_0``."""
    model_ids: tuple[int, ...]
    """TotalSegmentator's number of each model; of several the later one's voxels count."""
    left_out: tuple[int, ...] = ()
    """Numbers of the task's models that do not run: see ``needed_for``."""

    @property
    def task(self) -> str:
        """``"total"``, ``"total_fast"`` or ``"total_fastest"``."""
        return "total" if self.mode == "default" else f"total_{self.mode}"

    @cached_property
    def organs_unknown(self) -> tuple[str, ...]:
        """Organs that no network of the task was trained to find; official weights find all 56."""
        data = [json.loads((model / "dataset.json").read_text(encoding="utf-8")) for model in self.models]
        if not data or any(TRAINED not in dataset for dataset in data):
            return ()
        known = {int(MERGE[label]) for dataset in data for label in dataset[TRAINED]}
        return tuple(name for number, name in ORGANS.items() if number not in known)

    @cached_property
    def weights_id(self) -> str:
        """16 hex digits over the task and every model's files (big checkpoints by size, head and tail)."""
        digest = hashlib.sha256(f"{self.source} {self.task}".encode())
        if self.source == "nano":
            digest.update(f" without islands {ISLAND_SHARE}".encode())
        for model in self.models:
            files = [(model / name).stat() for name in NEEDED]
            digest.update(_model_digest(model, tuple((file.st_mtime_ns, file.st_size) for file in files)))
        return digest.hexdigest()[:16]

    @cached_property
    def organs_deferred(self) -> tuple[str, ...]:
        """Organs that the models ``left_out`` find."""
        missing = {int(MERGE[key]) for model in self.left_out for key in structures_of(model)}
        return tuple(name for number, name in ORGANS.items() if number in missing)

    def needed_for(self, organs: Collection[str]) -> Weights:
        """The same task with those models only that find a structure of ``organs``.

        Task ``total`` at 1.5 mm is five models, and one of them finds all abdominal organs.
        """
        wanted = {key for key in STRUCTURES if ORGANS[int(MERGE[key])] in organs}
        needed = [i for i, model in enumerate(self.model_ids) if not wanted.isdisjoint(structures_of(model))]
        return self._with(needed) if needed and len(self.models) > 1 else self

    def without(self, others: Weights) -> Weights:
        """The models that ``others`` does not have."""
        return self._with([i for i, model in enumerate(self.model_ids) if model not in others.model_ids])

    def subsets(self) -> list[Weights]:
        """These weights and every choice of some of their models, those of many models first."""
        count = len(self.models)
        chosen = [chosen for n in range(count, 0, -1) for chosen in combinations(range(count), n)]
        return [self._with(list(each)) for each in chosen]

    def _with(self, chosen: list[int]) -> Weights:
        ids = tuple(self.model_ids[i] for i in chosen)
        left_out = sorted({*self.model_ids, *self.left_out} - set(ids))
        models = tuple(self.models[i] for i in chosen)
        return replace(self, models=models, model_ids=ids, left_out=tuple(left_out))


@lru_cache(maxsize=64)
def _model_digest(model: Path, as_of: tuple[tuple[int, int], ...]) -> bytes:
    """Read once as long as the files' times and sizes, ``as_of``, stay the same."""
    digest = hashlib.sha256()
    for name in NEEDED:
        digest.update(f"\n{model.parent.name}/{name} ".encode())
        _hash_file(digest, model / name)
    return digest.digest()


def _hash_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_FILE:
            digest.update(file.read())
            return
        digest.update(file.read(_SAMPLE))
        file.seek(-_SAMPLE, os.SEEK_END)
        digest.update(file.read())


def model_folder(root: Path, task_id: int, trainer: str, plans: str = "nnUNetPlans") -> Path:
    """Where TotalSegmentator expects the model of ``task_id`` below a weights folder."""
    from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS

    dataset = TASK_ID_WEIGHTS_CONFIGS[task_id]["foldername"]
    return root / str(dataset) / f"{trainer}__{plans}__3d_fullres"


def installed(root: Path, mode: Mode, source: Literal["official", "nano"]) -> Weights | None:
    """The weights of ``mode`` below ``root`` when every model of it is complete, else ``None``."""
    from totalsegmentator.map_tasks_config import TASK_CONFIGS

    config = TASK_CONFIGS["total"]["sub_modes"][mode]
    ids = config["task_id"] if isinstance(config["task_id"], list) else [config["task_id"]]
    models = tuple(model_folder(root, task_id, config["trainer"]) for task_id in ids)
    if not all((model / name).is_file() for model in models for name in NEEDED):
        return None
    return Weights(source, mode, root, float(config["resample"]), models, tuple(int(each) for each in ids))


def official_folder() -> Path:
    """Where TotalSegmentator itself looks for its weights."""
    if os.environ.get("TOTALSEG_WEIGHTS_PATH"):
        return Path(os.environ["TOTALSEG_WEIGHTS_PATH"])
    home = os.environ.get("TOTALSEG_HOME_DIR")
    return (Path(home) if home else Path.home() / ".totalsegmentator") / "nnunet" / "results"


def find_weights(settings: Settings, nano_folder: Path = NANO_WEIGHTS) -> Weights:
    """The best installed weights that ``settings.segmentation`` allows.

    Official weights: task ``total`` at 1.5 mm when all five models are there, else ``fast`` (3 mm), else
    ``fastest`` (6 mm). Raises SegmentationError when there are none.
    """
    if settings.segmentation != "nano":
        for mode in _MODES:
            found = installed(official_folder(), mode, "official")
            if found is not None:
                return found
    if settings.segmentation == "official":
        raise SegmentationError(
            f"no official TotalSegmentator weights in {official_folder()}; "
            "run totalseg_download_weights -t total, or set TUMORCHAIN_SEGMENTATION=nano"
        )
    nano = installed(nano_folder, "fast", "nano")
    if nano is None:
        raise SegmentationError(
            f"the nano segmentation weights in {nano_folder} are missing or incomplete; "
            "reinstall the package, or run totalseg_download_weights -t total"
        )
    return nano
