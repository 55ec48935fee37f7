"""What import-weights refuses: every error names the culprit and the remedy, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.published import ENCODER, edit, publish, publish_m3d, qwen_vl, rewrite
from tumorchain_agent.errors import CheckpointError, OutputError, WeightsError
from tumorchain_agent.model.import_weights import import_weights
from tumorchain_agent.model.m3d import load_m3d

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    publish(qwen_vl(), folder / "qwen")
    publish_m3d(folder / "vit.bin")
    return folder


@pytest.fixture
def sources(published: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to damage; whatever happens, no file is added beside it."""
    folder = Path(shutil.copytree(published, tmp_path / "sources"))
    yield folder
    assert os.listdir(tmp_path) == ["sources"]


def run(sources: Path, **options: Any) -> None:
    out = sources.parent / "out"
    arguments: dict[str, Any] = {"size": "custom", "encoder": ENCODER, **options}
    import_weights(sources / "qwen", sources / "vit.bin", out, **arguments)


def refused(sources: Path, match: str, **options: Any) -> CheckpointError:
    with pytest.raises(CheckpointError, match=match) as caught:
        run(sources, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def shards(sources: Path) -> list[Path]:
    return sorted((sources / "qwen").glob("*.safetensors"))


def test_every_missing_and_unexpected_key_and_wrong_shape_of_the_llm_is_named(sources: Path) -> None:
    def change(state: State) -> State:
        del state["model.layers.1.mlp.up_proj.weight"]
        state["model.layers.2.mlp.up_proj.weight"] = torch.ones(2)
        state["model.norm.weight"] = torch.ones(65)
        state["model.layers.0.mlp.up_proj.weight"] = torch.ones(128, 64).to(torch.int8)
        return state

    rewrite(sources / "qwen", change)
    error = refused(sources, "doesn't fit its config")
    assert isinstance(error, WeightsError)
    assert error.details == (
        "missing key: model.layers.1.mlp.up_proj.weight",
        "unexpected key: model.layers.2.mlp.up_proj.weight",
        "wrong shape: model.norm.weight [65], not [64]",
        "unknown number format: model.layers.0.mlp.up_proj.weight I8",
    )
    assert all(detail.split(": ")[1] in str(error) for detail in error.details)


def test_of_many_keys_ten_are_named_the_rest_is_counted_and_the_details_have_all(sources: Path) -> None:
    rewrite(sources / "qwen", lambda state: {k: v for k, v in state.items() if ".layers." not in k})
    error = refused(sources, r"24 × missing key: .* and 14 more, which --verbose lists; pass")
    assert isinstance(error, WeightsError)
    assert str(error).count("model.layers.") == 10
    assert len(error.details) == 24


def test_a_key_in_two_spellings_is_named(sources: Path) -> None:
    key = "layers.0.mlp.up_proj.weight"
    rewrite(sources / "qwen", lambda s: s | {f"model.language_model.{key}": s[f"model.{key}"].clone()})
    refused(sources, rf"1 × key stored twice: model\.(language_model\.)?{key} .* = ")


def test_a_tied_head_that_differs_from_the_embedding_is_unexpected(sources: Path) -> None:
    shutil.rmtree(sources / "qwen")
    publish(qwen_vl(tied=True), sources / "qwen")
    rewrite(sources / "qwen", lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"] + 1})
    refused(sources, r"1 × unexpected key: lm_head\.weight")


def test_an_untied_head_that_is_absent_is_missing(sources: Path) -> None:
    rewrite(sources / "qwen", lambda s: {k: v for k, v in s.items() if k != "lm_head.weight"})
    refused(sources, r"1 × missing key: lm_head\.weight")


def test_a_missing_shard_is_named(sources: Path) -> None:
    shards(sources)[2].unlink()
    refused(sources, rf"index\.json: 1 × missing shard: {shards(sources)[2].name[:11]}|00003")


def test_a_truncated_shard_is_named(sources: Path) -> None:
    with shards(sources)[1].open("r+b") as file:
        file.truncate(shards(sources)[1].stat().st_size - 1)
    refused(sources, r"model-00002-of-\d+\.safetensors is truncated")


def test_a_shard_that_is_no_safetensors_file_is_named(sources: Path) -> None:
    shards(sources)[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 1\n")
    refused(sources, r"model-00001-of-\d+\.safetensors is truncated or no safetensors file")


def test_an_index_and_shards_that_disagree_are_told_apart(sources: Path) -> None:
    path = shards(sources)[0]
    save_file(load_file(path) | {"surprise": torch.ones(1)}, path)
    refused(sources, r"1 × tensor that the index lacks: surprise \(model-00001")
    index = sources / "qwen/model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=where | {"surprise": path.name, "ghost": path.name})
    refused(sources, r"1 × tensor that its shard lacks: ghost \(model-00001")


@pytest.mark.parametrize("name", ["../vit.bin", "/etc/passwd", 3])
def test_an_index_can_not_point_out_of_its_folder(sources: Path, name: object) -> None:
    edit(sources / "qwen/model.safetensors.index.json", weight_map={"model.norm.weight": name})
    refused(sources, "which is no file name")


def _no_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def _both(folder: Path) -> None:
    shutil.copy(next(folder.glob("*.safetensors")), folder / "model.safetensors")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()


def _tokenizer_of_another(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text().replace("<|im_end|>", "</s>")
    (folder / "tokenizer.json").write_text(text)
    text = (folder / "tokenizer_config.json").read_text().replace("<|im_end|>", "</s>")
    (folder / "tokenizer_config.json").write_text(text)


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_no_weights, "holds neither model.safetensors nor"),
        (_both, "holds both model.safetensors and"),
        (_no_tokenizer, r"lacks tokenizer\.json"),
        (_tokenizer_of_another, r"no token <\|im_end\|>"),
        (_no_config, r"config\.json can't be read"),
        (_broken_config, r"config\.json can't be read"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_an_incomplete_folder_is_told_by_what_it_lacks(
    sources: Path, damage: Callable[[Path], None], match: str
) -> None:
    damage(sources / "qwen")
    refused(sources, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": None}, "hidden_size: Field required"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: Input should be greater than 0"),
        ({"num_attention_heads": 3}, "num_attention_heads must divide hidden_size"),
        ({"rope_parameters": None}, r"rope\.rope_theta: Field required"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
            r"rope\.rope_type: Input should be 'default' or 'mrope'",
        ),
        ({"hidden_act": "gelu"}, "hidden_act: Input should be 'silu'"),
        ({"rope_parameters": [1]}, r"rope\.rope_theta: Field required; rope\.rope_type: Input should be"),
        ({"use_sliding_window": True}, "use_sliding_window: Input should be False"),
        ({"vocab_size": 300}, r"vocab_size 300, which must be larger"),
        ({"intermediate_size": 127}, r"6 × wrong shape: model\.layers\.0\.mlp"),
        ({"num_hidden_layers": 1}, "12 × unexpected key"),
    ],
)
def test_a_config_that_can_not_be_is_told_by_its_field(
    sources: Path, changes: dict[str, Any], match: str
) -> None:
    path = sources / "qwen/config.json"
    text = {**json.loads(path.read_text())["text_config"], **changes}
    edit(path, text_config={key: value for key, value in text.items() if value is not None})
    refused(sources, match)


@pytest.mark.parametrize("size", [None, "3b", "7b"])
def test_another_size_is_refused_by_the_fields_that_differ(sources: Path, size: Any) -> None:
    error = refused(sources, "--size custom if this is meant", size=size)
    theirs = {None: 2048, "3b": 2048, "7b": 3584}[size]
    named = str(error)
    assert f"hidden_size is 64, not {theirs}" in named or size is None
    assert "num_hidden_layers is 2, not " in named
    assert "vocab_size is 320, not " in named
    assert "rope" not in named
    assert "rms_norm_eps" not in named


def test_every_key_of_an_encoder_that_does_not_fit_is_named(sources: Path) -> None:
    def change(state: State) -> None:
        del state["blocks.1.attn.qkv.weight"]
        state["blocks.2.attn.qkv.weight"] = torch.ones(1)
        state["norm.weight"] = torch.ones(49)
        state["norm.bias"] = torch.full((48,), torch.nan)

    state = torch.load(sources / "vit.bin", weights_only=True)
    change(state)
    torch.save(state, sources / "vit.bin")
    error = refused(sources, "doesn't fit the 2-layer ViT")
    assert isinstance(error, WeightsError)
    assert error.details == (
        "missing key: blocks.1.attn.qkv.weight",
        "unexpected key: blocks.2.attn.qkv.weight",
        "wrong shape: norm.weight [49], not [48]",
        "not finite: norm.bias",
    )


class _Bomb:
    """Code in a pickle: it would add a file beside the sources, which their fixture would find."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch ../went-off",)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"not weights", "is no PyTorch weights file"),
        (_Bomb(), "is no PyTorch weights file"),
        ({"model": {"weight": torch.ones(1)}}, "holds something else than a state dict"),
        (torch.ones(3), "holds something else than a state dict"),
    ],
)
def test_a_pickle_that_holds_no_weights_is_refused_and_not_executed(
    sources: Path, monkeypatch: pytest.MonkeyPatch, content: object, match: str
) -> None:
    monkeypatch.chdir(sources)
    path = sources / "vit.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    refused(sources, rf"vit\.bin {match}.*: pass M3D's pretrained_ViT\.bin")


@pytest.mark.parametrize("keep", [1000, 60_000])
def test_a_truncated_pickle_is_refused(sources: Path, keep: int) -> None:
    with (sources / "vit.bin").open("r+b") as file:
        file.truncate(keep)
    refused(sources, r"vit\.bin is no PyTorch weights file, or a damaged one")


def test_weights_of_the_old_pickle_format_are_read(sources: Path) -> None:
    state = torch.load(sources / "vit.bin", weights_only=True)
    torch.save(state, sources / "vit.bin", _use_new_zipfile_serialization=False)
    assert load_m3d(ENCODER.build(), sources / "vit.bin").tensors == len(state)


def test_a_folder_that_exists_is_never_replaced(sources: Path) -> None:
    out = sources / "qwen"
    for existing in (out, sources / "vit.bin"):
        with pytest.raises(OutputError, match="exists already and is not replaced"):
            import_weights(sources / "qwen", sources / "vit.bin", existing, size="custom", encoder=ENCODER)
    with pytest.raises(OutputError, match="can't be written"):
        import_weights(
            sources / "qwen", sources / "vit.bin", sources / "vit.bin/out", size="custom", encoder=ENCODER
        )


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10**6})()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"needs 0\.1 GB and its disk has 0\.0 GB free: free space or name"):
        run(sources)
