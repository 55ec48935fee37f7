"""M3D's published weights → our ViT, strictly: from M3D-CLIP, M3D-LaMed, or the bare ``pretrained_ViT.bin``."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from tumorchain_agent.errors import CheckpointError, WeightsError
from tumorchain_agent.model.safetensors_files import read_folder, read_shard
from tumorchain_agent.model.template import LOAD_ERRORS

if TYPE_CHECKING:
    from tumorchain_agent.model.encoder import Vit

PREFIXES: Final = ("model.vision_tower.vision_tower.", "vision_tower.vision_tower.", "vision_encoder.")
"""Where M3D-LaMed and M3D-CLIP keep the ViT; ``pretrained_ViT.bin`` has the bare keys."""
_REMEDY: Final = "pass M3D's pretrained_ViT.bin, or M3D-CLIP's or M3D-LaMed's weights"


@dataclass(frozen=True)
class M3DWeights:
    """What was read from where."""

    files: tuple[Path, ...]
    """Those that hold tensors of the ViT."""
    tensors: int
    skipped: int
    """Tensors of the file's other networks: text encoder, language model, projections."""
    dtype: str


def load_m3d(vit: Vit, path: Path | str) -> M3DWeights:
    """Load M3D's weights into ``vit``: a PyTorch or safetensors file, or a folder with safetensors.

    Only the ViT's tensors are read into memory; nothing in a pickle is executed. Raises
    :class:`CheckpointError` for a file that isn't one, :class:`WeightsError` naming every missing key, every
    unexpected one and every other shape.
    """
    path = Path(path)
    state, files, skipped = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    _check(vit, state, path)
    vit.load_state_dict(state, strict=True)
    dtypes = {str(value.dtype).removeprefix("torch.") for value in state.values()}
    return M3DWeights(files, len(state), skipped, ", ".join(sorted(dtypes)))


def _is_safetensors(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".safetensors"


def _read_torch(path: Path) -> tuple[dict[str, Tensor], tuple[Path, ...], int]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {_REMEDY}")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except LOAD_ERRORS as error:
        raise CheckpointError(f"{path} is no PyTorch weights file, or a damaged one: {_REMEDY}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds something else than a state dict: {_REMEDY}")
    names = _bare_names(state)
    return {names[key]: state[key] for key in names}, (path,), len(state) - len(names)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], tuple[Path, ...], int]:
    from safetensors import safe_open

    shards = read_folder(path) if path.is_dir() else (read_shard(path),)
    keys = [tensor.key for shard in shards for tensor in shard.tensors]
    names = _bare_names(keys)
    state: dict[str, Tensor] = {}
    files: list[Path] = []
    for shard in shards:
        wanted = [tensor.key for tensor in shard.tensors if tensor.key in names]
        with safe_open(shard.path, framework="pt") as file:
            state |= {names[key]: file.get_tensor(key) for key in wanted}
        files += [shard.path] if wanted else []
    return state, tuple(files), len(keys) - len(names)


def _bare_names(keys: Iterable[str]) -> dict[str, str]:
    """Key in the file → key in the ViT; keys of other networks are left out."""
    keys = list(keys)
    for prefix in PREFIXES:
        found = {key: key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
        if found:
            return found
    return {key: key for key in keys}


def _check(vit: Vit, state: Mapping[str, Tensor], path: Path) -> None:
    expected = vit.state_dict()
    problems = {
        "missing key": sorted(expected.keys() - state.keys()),
        "unexpected key": sorted(state.keys() - expected.keys()),
        "wrong shape": [
            f"{key} {list(state[key].shape)}, not {list(value.shape)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
        "not floating point": [f"{k} {v.dtype}" for k, v in state.items() if not v.is_floating_point()],
        "not finite": [k for k, v in state.items() if v.is_floating_point() and not _finite(v)],
    }
    if any(problems.values()):
        layers = f"the {vit.config.layers}-layer ViT"
        raise WeightsError.listing(f"{path} doesn't fit {layers}", problems, _REMEDY)


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
