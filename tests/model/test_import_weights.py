"""Published weights into a checkpoint: what is read, what is written, what it computes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from tests.model.conftest import TEXTS
from tests.model.oracle import error, fill
from tests.model.published import (
    ENCODER,
    VOCABULARY,
    edit,
    flatten_config,
    publish,
    publish_m3d,
    qwen_vl,
    rewrite,
)
from tumorchain_agent.errors import CheckpointError, OutputError
from tumorchain_agent.model.checkpoint import load_llm, load_tokenizer, load_vision, read_info, verify
from tumorchain_agent.model.import_llm import open_qwen
from tumorchain_agent.model.import_weights import Imported, import_weights
from tumorchain_agent.model.tokenizer import CHAT_TEMPLATE

IDS = torch.tensor([[5, 17, 42, 3, 88, 61, 29, 7, 300, 255]])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``qwen`` (float32, untied, shards) and ``vit.bin``; tests only read them."""
    folder = tmp_path_factory.mktemp("published")
    publish(qwen_vl(), folder / "qwen")
    publish_m3d(folder / "vit.bin")
    return folder


@pytest.fixture(scope="module")
def made(sources: Path) -> Path:
    run(sources / "qwen", sources / "vit.bin", sources / "out")
    return sources / "out"


def run(llm: Path, vision: Path, out: Path, **options: Any) -> Imported:
    arguments: dict[str, Any] = {"size": "custom", "encoder": ENCODER, **options}
    return import_weights(llm, vision, out, **arguments)


def qwen_copy(sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources / "qwen", tmp_path / "qwen"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def test_imported_llm_gives_the_logits_of_transformers_qwen2_5_vl(made: Path) -> None:
    assert (logits(load_llm(made)) - logits(qwen_vl())).abs().max() < 1e-5


def test_imported_tied_bfloat16_llm_gives_the_logits_of_transformers_qwen2_5_vl(
    sources: Path, tmp_path: Path
) -> None:
    publish(qwen_vl(tied=True).bfloat16(), tmp_path / "qwen")
    made = run(tmp_path / "qwen", sources / "vit.bin", tmp_path / "out")
    assert made.llm.dtype == json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    llm = load_llm(tmp_path / "out")
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    theirs: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "qwen", dtype=torch.float32)
    assert (logits(llm) - logits(theirs.eval())).abs().max() < 1e-5
    stored = load_file(tmp_path / "out" / "model-00001-of-00004.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}


def test_imported_llm_equals_the_qwen2_5_vl_text_oracle(shared: Path, tmp_path: Path) -> None:
    oracle = json.loads((shared / "facts/numeric_oracle_qwen_text_tiny.json").read_text())
    oracle = oracle["qwen2_5_vl_text_tiny"]
    theirs = qwen_vl(vocab_size=oracle["config"]["vocab_size"])
    with torch.no_grad():
        text = {f"model.{k}": v for k, v in theirs.model.language_model.state_dict().items()}
        fill(_Parameters({**text, "lm_head.weight": theirs.lm_head.weight}))
    publish(theirs, tmp_path / "qwen")
    _small_tokenizer(tmp_path / "qwen")
    publish_m3d(tmp_path / "vit.bin")
    run(tmp_path / "qwen", tmp_path / "vit.bin", tmp_path / "out")
    llm: Any = load_llm(tmp_path / "out", dtype=torch.float64)
    with torch.no_grad():
        out = llm(torch.tensor(oracle["input_ids"]), output_hidden_states=True)
    expected, hidden = oracle["text_only"], out.hidden_states[-1]
    assert error(hidden[0, -1, :8], expected["hidden_last_first8"]) < 1e-5
    assert error(out.logits[0, -1, :8], expected["logits_last_first8"]) < 1e-5
    assert error(out.logits.abs().sum(), expected["logits_abs_sum"]) < 1e-3
    assert out.logits.argmax(-1)[0].tolist() == expected["logits_argmax"]


class _Parameters(torch.nn.Module):
    """Tensors under the names that the oracle sorts them by."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.state


def _small_tokenizer(folder: Path) -> None:
    """One that fits into the oracle's 100 rows."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [*specials, *"abcdefghijklmnopqrstuvwxyzĊĠ"]
    Qwen2Tokenizer(
        vocab={letter: number for number, letter in enumerate(letters)},
        merges=[],
        extra_special_tokens=specials[1:],
    ).save_pretrained(folder)


def test_a_checkpoint_comes_out_that_verifies_and_says_what_it_is(sources: Path, made: Path) -> None:
    info = verify(made)
    assert (info.size, info.hidden_size) == ("custom", 64)
    assert info.preprocessing["shape"] == [32, 256, 256]
    assert info.untrained == ("projector", "cls")
    assert not info.is_demonstration
    assert "starting point for training" in info.intended_use
    provenance: Any = info.provenance
    assert provenance["note"] == "projector and Cls are untrained: train before use"
    assert provenance["llm"]["tensors"] == 27
    assert provenance["llm"]["visual_tensors_left_out"] == len(qwen_vl().model.visual.state_dict())
    for name, file in provenance["llm"]["files"].items():
        assert file == describe(sources / "qwen" / name)
    assert any(name.startswith("model-00001") for name in provenance["llm"]["files"])
    assert provenance["encoder"]["files"] == {"vit.bin": describe(sources / "vit.bin")}
    assert str(sources) not in (made / "tumorchain.json").read_text()


def describe(path: Path) -> dict[str, Any]:
    import hashlib

    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_the_folder_is_a_plain_qwen2_folder_for_transformers(sources: Path, made: Path) -> None:
    config = json.loads((made / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Qwen2ForCausalLM"], "qwen2")
    load: Any = AutoModelForCausalLM.from_pretrained
    llm, loading = load(made, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (logits(llm.eval()) - logits(qwen_vl())).abs().max() < 1e-5
    ours, theirs = AutoTokenizer.from_pretrained(made), AutoTokenizer.from_pretrained(sources / "qwen")
    text = "<|im_start|>user\nA 23 mm lesion,\n\nT2 N0 M0 – élan<|im_end|>\n"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.chat_template == load_tokenizer(made).chat_template == CHAT_TEMPLATE
    end = ours.convert_tokens_to_ids("<|im_end|>")
    assert ours.eos_token_id == config["eos_token_id"] == end
    assert GenerationConfig.from_pretrained(made).eos_token_id == end
    assert "processor_class" not in (made / "tokenizer_config.json").read_text()


def test_a_tokenizer_of_vocabulary_and_merges_alone_gives_the_same_ids(
    sources: Path, made: Path, tmp_path: Path
) -> None:
    folder = qwen_copy(sources, tmp_path)
    (folder / "tokenizer.json").unlink()
    run(folder, sources / "vit.bin", tmp_path / "out")
    ours, theirs = load_tokenizer(tmp_path / "out"), load_tokenizer(made)
    for text in (*TEXTS, "<|im_start|>user\n<|evidence_pad|> élan<|im_end|>\n"):
        assert ours.encode(text) == theirs.encode(text)


def test_shards_stay_shards_and_hold_the_same_bytes_without_the_visual_ones(
    sources: Path, made: Path
) -> None:
    index = json.loads((made / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in made.glob("model-*.safetensors"))
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    mine: dict[str, torch.Tensor] = {}
    for name in files:
        shard = load_file(made / name)
        assert all(index["weight_map"][key] == name for key in shard)
        mine |= shard
    theirs: dict[str, torch.Tensor] = {}
    for path in (sources / "qwen").glob("*.safetensors"):
        theirs |= {k: v for k, v in load_file(path).items() if not k.startswith("visual.")}
    assert mine.keys() == theirs.keys() == index["weight_map"].keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in mine.values())


def test_the_encoder_is_m3ds_and_the_rest_is_drawn_from_the_seed(
    sources: Path, made: Path, tmp_path: Path
) -> None:
    state = torch.load(sources / "vit.bin", weights_only=True)
    tower, _ = load_vision(made)
    assert all(torch.equal(state[key], value) for key, value in tower.encoder.state_dict().items())
    again = run(sources / "qwen", sources / "vit.bin", tmp_path / "again").info
    other = run(sources / "qwen", sources / "vit.bin", tmp_path / "other", seed=1).info
    assert again.checkpoint_id == read_info(made).checkpoint_id != other.checkpoint_id
    assert not torch.equal(load_vision(tmp_path / "other")[0].cls.weight, tower.cls.weight)


def test_random_numbers_of_the_caller_are_left_as_they_were(sources: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    run(sources / "qwen", sources / "vit.bin", tmp_path / "out", seed=9)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(
    ("text", "head", "visual"),
    [
        ("model.", "lm_head.", "visual."),
        ("model.language_model.", "lm_head.", "model.visual."),
        ("language_model.model.", "language_model.lm_head.", "visual."),
    ],
)
def test_every_spelling_of_the_keys_is_read(
    sources: Path, made: Path, tmp_path: Path, text: str, head: str, visual: str
) -> None:
    folder = qwen_copy(sources, tmp_path)

    def respell(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pairs = {"model.": text, "lm_head.": head, "visual.": visual}
        spelled = {}
        for key, value in state.items():
            (old,) = [prefix for prefix in pairs if key.startswith(prefix)]
            spelled[pairs[old] + key.removeprefix(old)] = value
        return spelled

    rewrite(folder, respell)
    run(folder, sources / "vit.bin", tmp_path / "out")
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    assert torch.equal(logits(load_llm(tmp_path / "out")), logits(load_llm(made)))


def test_the_flat_config_of_old_transformers_gives_the_same_as_the_nested_one(
    sources: Path, made: Path, tmp_path: Path
) -> None:
    folder = qwen_copy(sources, tmp_path)
    flatten_config(folder)
    assert "text_config" not in (folder / "config.json").read_text()
    run(folder, sources / "vit.bin", tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == (made / "config.json").read_text()


def test_a_tied_head_that_is_stored_nonetheless_is_dropped_when_it_is_the_embedding(
    sources: Path, tmp_path: Path
) -> None:
    publish(qwen_vl(tied=True), tmp_path / "qwen")
    rewrite(tmp_path / "qwen", lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"].clone()})
    run(tmp_path / "qwen", sources / "vit.bin", tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    assert load_llm(tmp_path / "out").lm_head.weight.shape == (VOCABULARY, 64)


@pytest.mark.parametrize("prefix", ["", "vision_encoder.", "model.vision_tower.vision_tower."])
def test_m3d_weights_are_read_from_safetensors_and_folders_too(
    sources: Path, made: Path, tmp_path: Path, prefix: str
) -> None:
    state = publish_m3d(tmp_path / "same.bin", prefix=prefix)
    (tmp_path / "folder").mkdir()
    saved = {prefix + key: value.bfloat16() for key, value in state.items()}
    save_file(
        saved | ({"other.weight": torch.ones(1)} if prefix else {}), tmp_path / "folder/model.safetensors"
    )
    of_file = run(sources / "qwen", tmp_path / "same.bin", tmp_path / "a")
    of_folder = run(sources / "qwen", tmp_path / "folder", tmp_path / "b")
    of_single = run(sources / "qwen", tmp_path / "folder/model.safetensors", tmp_path / "c")
    assert (of_file.vision.dtype, of_folder.vision.dtype) == ("float32", "bfloat16")
    assert (of_file.vision.skipped, of_folder.vision.skipped) == ((2, 1) if prefix else (0, 0))
    assert of_file.info.checkpoint_id == read_info(made).checkpoint_id
    assert of_folder.info.checkpoint_id == of_single.info.checkpoint_id
    assert load_vision(tmp_path / "b")[0].cls.weight.dtype == torch.float32


def test_progress_counts_shards_and_every_byte(sources: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = run(
        sources / "qwen",
        sources / "vit.bin",
        tmp_path / "out",
        on_progress=lambda *step: seen.append(step),
    )
    count = len(made.llm.taken)
    assert list(dict.fromkeys(step for step, _, _ in seen)) == [
        "vision weights",
        *(f"LLM shard {number} of {count}" for number in range(1, count + 1)),
    ]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_import_leaves_nothing(sources: Path, tmp_path: Path, stop: BaseException) -> None:
    def halfway(step: str, done: int, total: int) -> None:
        if done > total // 2:
            assert any(tmp_path.iterdir())
            raise stop

    with pytest.raises((KeyboardInterrupt, OutputError)):
        run(sources / "qwen", sources / "vit.bin", tmp_path / "out", on_progress=halfway)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", ["3b", "7b"])
@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_published_folders_are_known_by_name(shared: Path, tmp_path: Path, size: Any, layout: str) -> None:
    facts = json.loads((shared / "facts/qwen2_5_vl_text.json").read_text())
    folder = sparse_folder(facts[f"qwen2_5_vl_{size}"], tmp_path / "qwen", nested=layout == "nested")
    source = open_qwen(folder)
    assert source.size == open_qwen(folder, size).size == size
    assert len(source.names) == facts["n_language_tensors"][size]
    assert source.visual == 1
    counts = facts["param_counts"][size]
    head = 0 if counts["lm_head"] == "tied" else counts["lm_head"]
    assert source.written_bytes == 2 * (counts["language_model"] + head)


def sparse_folder(facts: dict[str, Any], folder: Path, *, nested: bool) -> Path:
    """A model folder of full size whose weights are holes in a file."""
    folder.mkdir()
    fields = {key: value for key, value in facts.items() if key not in ("shapes", "head_dim")}
    fields["max_window_layers"] = 28
    root = {"model_type": "qwen2_5_vl", "tie_word_embeddings": fields["tie_word_embeddings"]}
    config = root | {"text_config": fields | {"model_type": "qwen2_5_vl_text"}} if nested else fields | root
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"visual.patch_embed.proj.weight": [1280, 3, 2, 14, 14]}
    for pattern, shape in facts["shapes"].items():
        layers = range(facts["num_hidden_layers"]) if ".N." in pattern else range(1)
        if isinstance(shape, list):
            shapes |= {pattern.replace(".N.", f".{n}."): shape for n in layers}
    header, offset = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    from tests.model.published import save_tokenizer

    save_tokenizer(folder)
    return folder


def test_no_quantised_model_and_no_other_kind_is_taken_for_qwen2_5_vl(sources: Path, tmp_path: Path) -> None:
    folder = qwen_copy(sources, tmp_path)
    edit(folder / "config.json", model_type="qwen2_vl")
    with pytest.raises(CheckpointError, match="model_type 'qwen2_vl'"):
        open_qwen(folder, "custom")
    edit(folder / "config.json", model_type="qwen2_5_vl", quantization_config={"quant_method": "awq"})
    with pytest.raises(CheckpointError, match="quantization_config"):
        open_qwen(folder, "custom")
