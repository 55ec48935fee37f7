"""The checkpoint folder: what vLLM reads at the root, ``vision/``, and ``tumorchain.json``.

``checkpoint_id`` names the weights of LLM and vision tower together. Evidence carries it, so evidence of one
checkpoint can't be shown to another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, JsonValue, ValidationError

from tumorchain_agent import __version__
from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.model.config import Size, VisionConfig
from tumorchain_agent.model.new_folder import new_folder
from tumorchain_agent.model.quiet import quiet_transformers
from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.tools.zoom import Zoom

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    from tumorchain_agent.model.vision import VisionTower

NANO_DIR: Final = Path(__file__).parent / "nano"
"""The checkpoint that ships with the package."""

FORMAT_VERSION: Final = 1
INFO_FILE: Final = "tumorchain.json"
VISION_CONFIG: Final = "vision/config.json"
VISION_WEIGHTS: Final = "vision/model.safetensors"
PHANTOM_DATA: Final = "procedural phantoms, no patient data"
"""``provenance["data"]`` of a checkpoint that was trained on phantoms alone, as nano is."""
INTENDED_USE: Final = (
    "Research on traceable reasoning over 3-D CT. "
    "Not for diagnosis, treatment, or any other decision about a patient."
)
_REQUIRED: Final = ("config.json", "tokenizer.json", "tokenizer_config.json", VISION_CONFIG)


class WeightsFile(Record):
    sha256: str
    bytes: int


class CheckpointInfo(Record):
    """``tumorchain.json``."""

    format_version: int = FORMAT_VERSION
    checkpoint_id: str
    """16 hexadecimal digits: hash of the weights files, whatever folder they lie in."""
    size: Size
    hidden_size: int
    """Width of the LLM's embeddings and of evidence tokens."""
    preprocessing: dict[str, JsonValue]
    organ_table_hash: str
    alpha: float
    """Weight of the classifier's loss in eq. 8."""
    history: Literal["append", "latest"] = "append"
    """Message history it was trained with: all evidence kept (eq. 3) or only the latest (eq. 7)."""
    zoom: Zoom | None = None
    """How organs are zoomed into; ``None``: it was trained without (any checkpoint that doesn't say)."""
    provenance: dict[str, JsonValue]
    training_distribution: dict[str, JsonValue] = Field(default_factory=dict)
    """Summary of the training scans, for warnings about input unlike them."""
    intended_use: str = INTENDED_USE
    disclaimer: str = DISCLAIMER
    written_by: str = __version__
    weights: dict[str, WeightsFile]

    @property
    def untrained(self) -> tuple[str, ...]:
        """Parts that hold random weights (``projector``, ``cls``): what it says of a scan is noise."""
        parts = self.provenance.get("untrained")
        return tuple(map(str, parts)) if isinstance(parts, list) else ()

    @property
    def is_demonstration(self) -> bool:
        """Whatever its size, it has seen no patient."""
        return self.provenance.get("data") == PHANTOM_DATA


def save_checkpoint(
    folder: Path | str,
    llm: Qwen2ForCausalLM,
    tower: VisionTower,
    tokenizer: PreTrainedTokenizerFast,
    *,
    size: Size,
    preprocessing: Mapping[str, Any],
    provenance: Mapping[str, Any],
    training_distribution: Mapping[str, Any] | None = None,
    alpha: float = 1.0,
    history: Literal["append", "latest"] = "append",
    zoom: Zoom | None = None,
    intended_use: str = INTENDED_USE,
    weights_dtype: torch.dtype | None = None,
) -> CheckpointInfo:
    """Write a checkpoint folder whole or not at all, replacing one that is there.

    ``weights_dtype`` casts what is written (e.g. ``torch.float16``); the modules stay as they are. Raises
    :class:`CheckpointError` when tower and LLM don't fit, :class:`OutputError` when the folder can't be
    written or holds something else than a checkpoint.
    """
    _check_widths(tower.config.hidden_size, llm.config.hidden_size, "tower and LLM")
    with new_folder(Path(folder), marker=INFO_FILE) as draft:
        _write_llm(draft, llm, tokenizer, weights_dtype)
        write_vision(draft, tower, weights_dtype)
        return write_info(
            draft,
            size=size,
            hidden_size=tower.config.hidden_size,
            preprocessing=preprocessing,
            provenance=provenance,
            training_distribution=training_distribution,
            alpha=alpha,
            history=history,
            zoom=zoom,
            intended_use=intended_use,
        )


def write_info(
    draft: Path,
    *,
    size: Size,
    hidden_size: int,
    preprocessing: Mapping[str, Any],
    provenance: Mapping[str, Any],
    training_distribution: Mapping[str, Any] | None = None,
    alpha: float = 1.0,
    history: Literal["append", "latest"] = "append",
    zoom: Zoom | None = None,
    intended_use: str = INTENDED_USE,
    weights: Mapping[str, WeightsFile] | None = None,
) -> CheckpointInfo:
    """Write ``tumorchain.json`` last of all, over the weights files that ``draft`` holds.

    ``weights`` are those whose hash is known already.
    """
    from tumorchain_agent.tools.organs import organ_table_hash

    known = weights or {}
    files = {name: known.get(name) or _describe(draft / name) for name in _weights_names(draft)}
    info = CheckpointInfo(
        checkpoint_id=_checkpoint_id(files),
        size=size,
        hidden_size=hidden_size,
        preprocessing=_as_json(preprocessing),
        organ_table_hash=organ_table_hash(),
        alpha=alpha,
        history=history,
        zoom=zoom,
        provenance=_as_json(provenance),
        training_distribution=_as_json(training_distribution or {}),
        intended_use=intended_use,
        weights=files,
    )
    (draft / INFO_FILE).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return info


def read_info(folder: Path | str) -> CheckpointInfo:
    """What the folder is, checked for completeness but without reading the weights.

    Raises :class:`CheckpointError` for a missing or truncated file, an unknown format version, another organ
    table, or vision and LLM of different widths.
    """
    from tumorchain_agent.tools.organs import organ_table_hash

    folder = Path(folder)
    info = _parse_info(folder)
    for name in (*_REQUIRED, *info.weights):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}: copy the checkpoint folder again, whole")
    for name, file in info.weights.items():
        if (folder / name).stat().st_size != file.bytes:
            raise CheckpointError(f"{folder / name} is not {file.bytes} bytes: copy the folder again")
    if info.organ_table_hash != organ_table_hash():
        raise CheckpointError(
            f"{folder} was trained with another organ table: "
            f"use tumorchain-agent {info.written_by} or train again"
        )
    llm_width = read_json(folder / "config.json").get("hidden_size")
    _check_widths(read_vision_config(folder).hidden_size, llm_width, folder)
    return info


def verify(folder: Path | str) -> CheckpointInfo:
    """:func:`read_info`, and every weights file's content against its recorded hash."""
    info = read_info(folder)
    for name in info.weights:
        _check_content(Path(folder), name, info)
    return info


def read_configs(folder: Path | str) -> tuple[Qwen2Config, VisionConfig]:
    """Of the LLM and of the vision tower, as the folder tells them; no weights are needed."""
    from transformers import Qwen2Config

    folder = Path(folder)
    return Qwen2Config.from_dict(read_json(folder / "config.json")), read_vision_config(folder)


def load_vision(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[VisionTower, CheckpointInfo]:
    """The vision tower in evaluation mode (float32 unless ``dtype`` says otherwise), weights checked and
    strict."""
    import torch
    from safetensors.torch import load_file

    folder = Path(folder)
    info = read_info(folder)
    _check_content(folder, VISION_WEIGHTS, info)
    tower = read_vision_config(folder).build()
    try:
        tower.load_state_dict(load_file(folder / VISION_WEIGHTS), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / VISION_WEIGHTS} doesn't fit {VISION_CONFIG} ({_one_line(error)}): save it again"
        ) from error
    return tower.to(device=device, dtype=dtype or torch.float32).eval(), info


def load_llm(
    folder: Path | str, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Qwen2ForCausalLM:
    """The LLM in evaluation mode (float32 unless ``dtype`` says otherwise), weights checked and strict."""
    import torch

    try:
        from transformers import Qwen2ForCausalLM
    except (ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers' LLM classes can't be imported ({_one_line(error.__cause__ or error)}); where a torchvision "
            "for another torch is the cause, as beside a CPU build: pip uninstall torchvision torchaudio torchcodec"
        ) from error
    folder = Path(folder)
    info = read_info(folder)
    for name in info.weights:
        if name != VISION_WEIGHTS:
            _check_content(folder, name, info)
    load: Any = Qwen2ForCausalLM.from_pretrained
    try:
        with quiet_transformers():
            llm, loading = load(
                folder,
                dtype=dtype or torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: the LLM can't be loaded: {_one_line(error)}") from error
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = sorted(str(key) for kind in kinds for key in loading[kind])
    if wrong:
        raise CheckpointError(
            f"{folder}: LLM weights don't fit config.json at {', '.join(wrong[:3])}: save them again"
        )
    model: Qwen2ForCausalLM = llm.to(device).eval()
    return model


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template, as transformers and vLLM open it."""
    from tumorchain_agent.model.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(folder)
    if not isinstance(tokenizer.chat_template, str):
        raise CheckpointError(f"{folder} lacks chat_template.jinja: copy the checkpoint folder again, whole")
    return tokenizer


def served_name(info: CheckpointInfo) -> str:
    """The name to give vLLM as ``--served-model-name``, by which clients know what is served."""
    return f"tumorchain-{info.size}-{info.checkpoint_id}"


def _parse_info(folder: Path) -> CheckpointInfo:
    if not (folder / INFO_FILE).is_file():
        raise CheckpointError(f"{folder} is no TumorChain checkpoint: {INFO_FILE} is missing in it")
    data = read_json(folder / INFO_FILE)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, this version reads {FORMAT_VERSION}: "
            "install the version of tumorchain-agent that wrote it"
        )
    try:
        info = CheckpointInfo.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"{folder / INFO_FILE} is damaged: {_one_line(error)}") from error
    if info.checkpoint_id != _checkpoint_id(info.weights) or VISION_WEIGHTS not in info.weights:
        raise CheckpointError(f"{folder / INFO_FILE} is damaged: its checkpoint_id isn't that of its weights")
    return info


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object. Raises :class:`CheckpointError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: a JSON object is expected")
    return data


def read_vision_config(folder: Path) -> VisionConfig:
    """The sizes of encoder, projector and Cls. Raises CheckpointError for a damaged file."""
    try:
        return VisionConfig.model_validate(read_json(folder / VISION_CONFIG))
    except ValidationError as error:
        raise CheckpointError(f"{folder / VISION_CONFIG} is damaged: {_one_line(error)}") from error


def _check_widths(vision: int, llm: object, where: object) -> None:
    if vision != llm:
        raise CheckpointError(
            f"{where}: the projector gives {vision} channels and the LLM takes {llm}: train them together"
        )


def _check_content(folder: Path, name: str, info: CheckpointInfo) -> None:
    if _describe(folder / name).sha256 != info.weights[name].sha256:
        raise CheckpointError(f"{folder / name} is not what the checkpoint was saved with: copy it again")


def _weights_names(folder: Path) -> list[str]:
    return [*sorted(path.name for path in folder.glob("model*.safetensors")), VISION_WEIGHTS]


def _checkpoint_id(weights: Mapping[str, WeightsFile]) -> str:
    lines = "\n".join(f"{name} {weights[name].sha256}" for name in sorted(weights))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _describe(path: Path) -> WeightsFile:
    stat = path.stat()
    return WeightsFile(sha256=_sha256(path, stat.st_size, stat.st_mtime_ns), bytes=stat.st_size)


@lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_llm(
    draft: Path, llm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype | None
) -> None:
    with quiet_transformers():
        if dtype is None:
            llm.save_pretrained(draft)
        else:
            llm.save_pretrained(draft, state_dict=_cast_state(llm, dtype))
            config = read_json(draft / "config.json") | {"dtype": str(dtype).removeprefix("torch.")}
            (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(draft)


def _cast_state(llm: Qwen2ForCausalLM, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = {key: value.to(dtype) for key, value in llm.state_dict().items()}
    if llm.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def write_vision(draft: Path, tower: VisionTower, dtype: torch.dtype | None = None) -> None:
    """``vision/``: configuration and weights, cast to ``dtype`` when given."""
    from safetensors.torch import save_file

    (draft / "vision").mkdir()
    (draft / VISION_CONFIG).write_text(tower.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    state = {key: value.detach().cpu().contiguous() for key, value in tower.state_dict().items()}
    if dtype is not None:
        state = {key: v.to(dtype) if v.is_floating_point() else v for key, v in state.items()}
    save_file(state, draft / VISION_WEIGHTS, metadata={"format": "pt"})


def _as_json(data: Mapping[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(dict(data), allow_nan=False))
    return loaded


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
