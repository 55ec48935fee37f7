"""Tiny random checkpoints: real classes, real files, a few thousand parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tumorchain_agent.model.checkpoint import CheckpointInfo, save_checkpoint
from tumorchain_agent.model.config import VisionConfig, VitConfig
from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.model.tokenizer import build_nano_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    from tumorchain_agent.model.vision import VisionTower

HIDDEN = 32
TEXTS = [
    "The question requires greater attention to the pancreas.",
    "A hypodense lesion of 23 mm in the liver, arterial phase. T2 N0 M0.",
    "No abnormality is seen in the stomach, colon or esophagus.",
] * 8


@dataclass(frozen=True)
class Tiny:
    llm: Qwen2ForCausalLM
    tower: VisionTower
    tokenizer: PreTrainedTokenizerFast

    def save(self, folder: Path) -> CheckpointInfo:
        return save_checkpoint(
            folder,
            self.llm,
            self.tower,
            self.tokenizer,
            size="nano",
            preprocessing={"window_hu": 400.0, "shape": (32, 256, 256)},
            provenance={"seed": 0},
        )


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny models only lose time to several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_nano_tokenizer(TEXTS)


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerFast) -> Tiny:
    torch.manual_seed(0)
    config = llm_config(
        "nano",
        tokenizer,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    encoder = VitConfig(image_size=(8, 32, 32), width=16, mlp_width=32, layers=1, heads=2)
    tower = VisionConfig(encoder=encoder, hidden_size=HIDDEN).build()
    return Tiny(build_llm(config).train(False), tower.train(False), tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint; tests only read it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny.save(folder)
    return folder
