"""Qwen2.5-VL's text part → a plain ``Qwen2ForCausalLM`` folder, checked whole before a byte is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tumorchain_agent.errors import CheckpointError, WeightsError
from tumorchain_agent.model.checkpoint import WeightsFile, read_json
from tumorchain_agent.model.config import NamedSize
from tumorchain_agent.model.safetensors_files import (
    INDEX,
    WEIGHTS,
    OnBytes,
    Shard,
    StoredTensor,
    copy_tensors,
    equal_bytes,
    read_folder,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config

LlmSize = Literal["3b", "7b", "custom"]
"""What Qwen2.5-VL comes in: the paper's two, or any other."""

_DTYPES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_SPELLINGS: Final = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
"""Prefixes on disk, by the version of transformers that wrote them → ours."""
_VISUAL: Final = ("visual.", "model.visual.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_SAME_FUNCTION: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "rms_norm_eps",
    "rope_parameters",
)
"""Fields that decide what the network computes: a named size has all of them."""

Located = tuple[Shard, StoredTensor]


class _Rope(BaseModel):
    rope_theta: float = Field(gt=0)
    rope_type: Literal["default", "mrope"]
    """For text both are ordinary RoPE; a scaled one isn't."""


class _Text(BaseModel):
    """The text fields that are needed, wherever the config keeps them; the others don't change the network."""

    model_config = ConfigDict(extra="ignore")

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    rope: _Rope
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    use_sliding_window: Literal[False] = False
    max_window_layers: int = 28
    """Without a sliding window it changes nothing; kept as it is on disk."""

    @model_validator(mode="after")
    def _heads(self) -> _Text:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "num_attention_heads must divide hidden_size, num_key_value_heads divide the former"
            )
        return self


@dataclass(frozen=True)
class QwenSource:
    """A Qwen2.5-VL folder that has passed every check."""

    folder: Path
    config: Qwen2Config
    size: LlmSize
    tokenizer: PreTrainedTokenizerFast
    shards: tuple[Shard, ...]
    names: Mapping[str, str]
    """Key on disk → key in ``Qwen2ForCausalLM``, of all that is taken."""
    visual: int
    """Tensors of the vision encoder, which are left out."""

    @property
    def taken(self) -> tuple[Shard, ...]:
        """The shards that hold text tensors."""
        return tuple(s for s in self.shards if any(tensor.key in self.names for tensor in s.tensors))

    @property
    def read_bytes(self) -> int:
        return sum(shard.nbytes for shard in self.taken)

    @property
    def written_bytes(self) -> int:
        return sum(tensor.nbytes for _, tensor in self._kept())

    @property
    def dtype(self) -> str:
        """As ``config.json`` names it: that of most parameters."""
        counts: Counter[str] = Counter()
        for _, tensor in self._kept():
            counts[_DTYPES[tensor.dtype]] += tensor.nbytes
        return counts.most_common(1)[0][0]

    def _kept(self) -> list[Located]:
        return [(shard, t) for shard in self.shards for t in shard.tensors if t.key in self.names]


@dataclass
class Written:
    """Sizes and hashes of what was read and of what was written."""

    sources: dict[str, WeightsFile] = field(default_factory=dict)
    weights: dict[str, WeightsFile] = field(default_factory=dict)


def open_qwen(folder: Path, size: LlmSize | None = None) -> QwenSource:
    """Check a Qwen2.5-VL folder by its configuration, tokenizer and the headers of its shards.

    ``size`` is the one that it must be; ``None`` is 3b or 7b, whichever it is. Raises
    :class:`CheckpointError` for another model, another size (naming the fields that differ) or a damaged
    file, :class:`WeightsError` naming every missing key, every unexpected one and every other shape.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: pass the folder of Qwen2.5-VL with its config.json")
    config = _read_config(folder / "config.json")
    found = _size_of(config, size, folder / "config.json")
    tokenizer = _tokenizer(folder, config)
    shards = read_folder(folder)
    names, visual = _match(folder, config, shards)
    source = QwenSource(folder, config, found, tokenizer, shards, names, visual)
    config.dtype = source.dtype
    return source


def write_qwen(source: QwenSource, draft: Path, on_shard: OnBytes, on_bytes: OnBytes) -> Written:
    """Write the folder that transformers and vLLM load, shard by shard; one buffer is all that is in memory.

    ``on_shard`` is told the number of the shard that begins, from 1.
    """
    from transformers import GenerationConfig

    source.config.save_pretrained(draft)
    GenerationConfig.from_model_config(source.config).save_pretrained(draft)
    _write_tokenizer(source.tokenizer, draft)
    written, count = Written(), len(source.taken)
    where: dict[str, str] = {}
    for number, shard in enumerate(source.taken, start=1):
        on_shard(number)
        name = WEIGHTS if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        read, made = copy_tensors(shard, draft / name, source.names, on_bytes)
        written.sources[shard.path.name], written.weights[name] = read, made
        where |= {source.names[t.key]: name for t in shard.tensors if t.key in source.names}
    if count > 1:
        index = {"metadata": {"total_size": source.written_bytes}, "weight_map": dict(sorted(where.items()))}
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return written


def _read_config(path: Path) -> Qwen2Config:
    from transformers import Qwen2Config

    raw = read_json(path)
    kind = raw.get("model_type")
    if kind != "qwen2_5_vl":
        raise CheckpointError(
            f"{path} has model_type {kind!r}: pass a Qwen2.5-VL folder, model_type qwen2_5_vl"
        )
    if "quantization_config" in raw:
        raise CheckpointError(f"{path} has a quantization_config: pass the model that isn't quantised")
    nested = raw.get("text_config")
    text = {**raw, **nested} if isinstance(nested, dict) else raw
    tied = bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    try:
        fields = _Text.model_validate(
            {**_without_none(text), "rope": _rope(text), "tie_word_embeddings": tied}
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'heads'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path} is no Qwen2.5-VL configuration ({wrong}): copy it again") from error
    rope = {"rope_type": "default", "rope_theta": fields.rope.rope_theta}
    config: Qwen2Config = Qwen2Config(
        **fields.model_dump(exclude={"rope"}), rope_parameters=rope, architectures=["Qwen2ForCausalLM"]
    )
    return config


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _rope(text: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_parameters`` of transformers 5, or ``rope_theta`` beside ``rope_scaling`` of before."""
    stored = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(stored, dict):
        return {"rope_type": stored}
    kind = stored.get("rope_type") or stored.get("type") or "default"
    return _without_none({"rope_theta": stored.get("rope_theta", text.get("rope_theta")), "rope_type": kind})


def _size_of(config: Qwen2Config, wanted: LlmSize | None, path: Path) -> LlmSize:
    if wanted == "custom":
        return wanted
    sizes: tuple[Literal["3b", "7b"], ...] = ("3b", "7b") if wanted is None else (wanted,)
    differing = {size: _differences(config, size) for size in sizes}
    closest = min(sizes, key=lambda size: len(differing[size]))
    if not differing[closest]:
        return closest
    raise CheckpointError(
        f"{path} is not Qwen2.5-VL {closest}: {'; '.join(differing[closest])}; "
        "pass a 3B or 7B folder, or --size custom if this is meant"
    )


def _differences(config: Qwen2Config, size: NamedSize) -> list[str]:
    from tumorchain_agent.model.llm import llm_config

    published = llm_config(size)
    pairs = [(name, getattr(config, name), getattr(published, name)) for name in _SAME_FUNCTION]
    return [f"{name} is {mine}, not {theirs}" for name, mine, theirs in pairs if mine != theirs]


def _tokenizer(folder: Path, config: Qwen2Config) -> PreTrainedTokenizerFast:
    """The folder's tokenizer with our chat template and its turn markers as end and padding."""
    from tumorchain_agent.model.tokenizer import (
        END_OF_TEXT,
        MESSAGE_END,
        check_turn_markers,
        open_tokenizer,
        with_chat_template,
    )

    pairs = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    if not any(all((folder / name).is_file() for name in names) for names in pairs):
        raise CheckpointError(f"{folder} lacks tokenizer.json: copy the folder again, whole")
    tokenizer = open_tokenizer(folder, qwen=True)
    check_turn_markers(tokenizer, folder)
    if len(tokenizer) >= config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and config.json vocab_size "
            f"{config.vocab_size}, which must be larger: copy both from the same model"
        )
    tokenizer.eos_token, tokenizer.pad_token = MESSAGE_END, END_OF_TEXT
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return with_chat_template(tokenizer)


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, draft: Path) -> None:
    """Without the name of the processor for pictures, which the new folder lacks."""
    tokenizer.save_pretrained(draft)
    path = draft / "tokenizer_config.json"
    fields = {key: value for key, value in read_json(path).items() if key != "processor_class"}
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _match(folder: Path, config: Qwen2Config, shards: tuple[Shard, ...]) -> tuple[dict[str, str], int]:
    """Names of all that is taken and the count of visual tensors. Raises :class:`WeightsError`."""
    from tumorchain_agent.model.llm import build_llm

    found: dict[str, list[Located]] = {}
    visual = 0
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.key.startswith(_VISUAL):
                visual += 1
            else:
                found.setdefault(_name(tensor.key), []).append((shard, tensor))
    expected = {key: tuple(v.shape) for key, v in build_llm(config, device="meta").state_dict().items()}
    if config.tie_word_embeddings:
        del expected[_HEAD]
        _drop_copy(found)
    _check(folder, expected, found)
    return {tensor.key: name for name, [(_, tensor)] in found.items()}, visual


def _name(key: str) -> str:
    for prefix, ours in _SPELLINGS:
        if key.startswith(prefix):
            return ours + key.removeprefix(prefix)
    return key


def _drop_copy(found: dict[str, list[Located]]) -> None:
    """Some writers store the tied head as well: not needed where it is the embedding, byte by byte."""
    head, embedding = found.get(_HEAD), found.get(_EMBEDDING)
    if head and embedding and len(head) == 1 and equal_bytes(head[0], embedding[0]):
        del found[_HEAD]


def _check(folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, list[Located]]) -> None:
    stored = {name: places[0][1] for name, places in found.items()}
    problems = {
        "missing key": sorted(expected.keys() - found.keys()),
        "unexpected key": sorted(t.key for name in found.keys() - expected.keys() for _, t in found[name]),
        "key stored twice": [
            " = ".join(f"{tensor.key} ({shard.path.name})" for shard, tensor in places)
            for places in found.values()
            if len(places) > 1
        ],
        "wrong shape": [
            f"{stored[name].key} {list(stored[name].shape)}, not {list(shape)}"
            for name, shape in expected.items()
            if name in stored and stored[name].shape != shape
        ],
        "unknown number format": [
            f"{t.key} {t.dtype}" for name, t in stored.items() if name in expected and t.dtype not in _DTYPES
        ],
    }
    if any(problems.values()):
        remedy = "pass the unchanged folder of the model that config.json describes"
        raise WeightsError.listing(f"{folder} doesn't fit its config.json", problems, remedy)
