"""Published weights → a checkpoint to start training from: Qwen2.5-VL's LLM, M3D's ViT, the rest new.

Everything is checked before anything is written: both sources, their fit, the place, the disk. The LLM's
shards are copied byte by byte, so memory holds the vision tower and one buffer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from tumorchain_agent.errors import OutputError
from tumorchain_agent.model.checkpoint import INFO_FILE, CheckpointInfo, WeightsFile, write_info, write_vision
from tumorchain_agent.model.config import VisionConfig, VitConfig
from tumorchain_agent.model.import_llm import LlmSize, QwenSource, Written, open_qwen, write_qwen
from tumorchain_agent.model.new_folder import new_folder
from tumorchain_agent.model.safetensors_files import describe_file

if TYPE_CHECKING:
    from tumorchain_agent.model.encoder import Vit
    from tumorchain_agent.model.m3d import M3DWeights
    from tumorchain_agent.model.vision import VisionTower

UNTRAINED: Final = ("projector", "cls")
NOTE: Final = "projector and Cls are untrained: train before use"
INTENDED_USE: Final = (
    "A starting point for training, not for asking: its projector and abnormality classifier are untrained. "
    "Not for diagnosis, treatment, or any other decision about a patient."
)
_SMALL_FILES_BYTES: Final = 64 * 2**20
"""Room for tokenizer and configuration."""

OnProgress = Callable[[str, int, int], None]
"""What is being read, and how many bytes of how many have been."""


@dataclass(frozen=True)
class Imported:
    """The new checkpoint and what it was made of."""

    info: CheckpointInfo
    llm: QwenSource
    vision: M3DWeights


def import_weights(
    llm: Path,
    vision: Path,
    out: Path,
    *,
    seed: int = 0,
    size: LlmSize | None = None,
    encoder: VitConfig | None = None,
    on_progress: OnProgress = lambda step, done, total: None,
) -> Imported:
    """Write the checkpoint folder ``out`` whole or not at all; ``out`` must be new or empty.

    ``llm`` is a Qwen2.5-VL folder, ``vision`` M3D's weights (:func:`load_m3d`); dtypes are kept, projector and
    Cls are drawn from ``seed``. ``size`` and ``encoder`` are what the sources must be: 3b or 7b, and vit-b.
    Raises :class:`CheckpointError`, of which :class:`WeightsError` names every key, and
    :class:`OutputError`.
    """
    from tumorchain_agent.model.m3d import load_m3d

    _check_free(out)
    source = open_qwen(llm, size)
    tower = _new_tower(
        VisionConfig(encoder=encoder or VitConfig(), hidden_size=source.config.hidden_size), seed
    )
    read = load_m3d(cast("Vit", tower.encoder), vision)
    _check_disk(out, source, tower)
    bar = _Bar(on_progress, source.read_bytes + sum(path.stat().st_size for path in read.files))
    with new_folder(out, marker=INFO_FILE) as draft:
        bar.step = "vision weights"
        hashed = {path.name: describe_file(path, bar.advance) for path in read.files}
        write_vision(draft, tower)
        written = write_qwen(source, draft, bar.shard_of(len(source.taken)), bar.advance)
        info = write_info(
            draft,
            size=source.size,
            hidden_size=source.config.hidden_size,
            preprocessing=_preprocessing(),
            provenance=_provenance(source, written, read, hashed, seed),
            intended_use=INTENDED_USE,
            weights=written.weights,
        )
    return Imported(info, source, read)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists already and is not replaced: name a new folder")


def _new_tower(config: VisionConfig, seed: int) -> VisionTower:
    """Random weights that depend on the seed alone; the generators of others are left as they were."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build()


def _check_disk(out: Path, source: QwenSource, tower: VisionTower) -> None:
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    state = tower.state_dict().values()
    needed = source.written_bytes + sum(v.numel() * v.element_size() for v in state) + _SMALL_FILES_BYTES
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{out} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: "
            "free space or name a folder on another disk"
        )


@dataclass
class _Bar:
    on_progress: OnProgress
    total: int
    done: int = 0
    step: str = ""

    def advance(self, count: int) -> None:
        self.done += count
        self.on_progress(self.step, self.done, self.total)

    def shard_of(self, count: int) -> Callable[[int], None]:
        def begin(number: int) -> None:
            self.step = f"LLM shard {number} of {count}"
            self.advance(0)

        return begin


def _preprocessing() -> dict[str, Any]:
    from tumorchain_agent.tools.preprocess import Preprocessing

    return Preprocessing().as_dict()


def _provenance(
    source: QwenSource, written: Written, read: M3DWeights, hashed: dict[str, WeightsFile], seed: int
) -> dict[str, Any]:
    files = {name: file.model_dump() for name, file in (written.sources | _described(source.folder)).items()}
    return {
        "note": NOTE,
        "untrained": list(UNTRAINED),
        "seed": seed,
        "llm": {
            "source": f"Qwen2.5-VL, folder {source.folder.absolute().name}",
            "files": files,
            "tensors": len(source.names),
            "dtype": source.dtype,
            "visual_tensors_left_out": source.visual,
        },
        "encoder": {
            "source": "M3D-CLIP ViT",
            "files": {name: file.model_dump() for name, file in hashed.items()},
            "tensors": read.tensors,
            "dtype": read.dtype,
            "other_tensors_left_out": read.skipped,
        },
    }


def _described(folder: Path) -> dict[str, WeightsFile]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    found = [name for name in names if (folder / name).is_file()]
    return {name: describe_file(folder / name, lambda count: None) for name in found}
