"""import-weights at size: what it holds in memory, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.model.published import publish_m3d, save_tokenizer

SHARDS = 6
HIDDEN, INTERMEDIATE, LAYERS_A_SHARD, VOCABULARY = 2048, 7680, 2, 320
CODE = """
import sys
from pathlib import Path
import torch, transformers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from tests.model.published import ENCODER
from tumorchain_agent.model import m3d
from tumorchain_agent.model.import_weights import import_weights
def peak():
    (line,) = [l for l in open('/proc/self/status') if l.startswith('VmHWM')]
    return 1024 * int(line.split()[1])
before = peak()
import_weights(*map(Path, sys.argv[1:]), size='custom', encoder=ENCODER)
print(before, peak())
"""


def write_shards(folder: Path) -> list[int]:
    """A Qwen2.5-VL folder of bfloat16 tensors, whatever is in them; sizes of its shards in bytes."""
    folder.mkdir()
    kv = HIDDEN // 8
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
        "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    }
    for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
        layer |= {f"self_attn.{name}_proj.weight": (rows, HIDDEN), f"self_attn.{name}_proj.bias": (rows,)}
    where: dict[str, str] = {}
    sizes = []
    for number in range(SHARDS):
        shapes = {
            f"model.layers.{n}.{name}": shape
            for n in range(LAYERS_A_SHARD * number, LAYERS_A_SHARD * (number + 1))
            for name, shape in layer.items()
        }
        if number == 0:
            shapes |= {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
        path = folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({key: torch.empty(shape, dtype=torch.bfloat16) for key, shape in shapes.items()}, path)
        where |= dict.fromkeys(shapes, path.name)
        sizes.append(path.stat().st_size)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    config = {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": SHARDS * LAYERS_A_SHARD,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return sizes


@pytest.mark.slow
def test_memory_stays_under_one_shard_and_2_gb_and_far_under_the_whole(tmp_path: Path) -> None:
    sizes = write_shards(tmp_path / "qwen")
    publish_m3d(tmp_path / "vit.bin")
    paths = [str(tmp_path / name) for name in ("qwen", "vit.bin", "out")]
    done = subprocess.run([sys.executable, "-c", CODE, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    print(
        f"{sum(sizes) / 1e9:.2f} GB in {SHARDS} shards: {before / 1e6:.0f} MB before, {peak / 1e6:.0f} at peak"
    )
    assert sum(sizes) > 1.15e9
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == SHARDS
    assert peak < max(sizes) + 2 * 2**30
    assert peak - before < sum(sizes) / 2
    assert peak - before < 200e6
