"""How large the networks of a training are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.model.checkpoint import INFO_FILE, read_configs
from tumorchain_agent.model.config import EncoderConfig
from tumorchain_agent.model.llm import llm_config
from tumorchain_agent.training.hco.config import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2Config


def sizes_of(
    wanted: Model, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[Qwen2Config, EncoderConfig]:
    """Of LLM and encoder: those of the checkpoint to begin from, or of ``size`` where there is none (yet).

    Raises CheckpointError for ``custom`` without its checkpoint.
    """
    if wanted.init is not None and (wanted.init / INFO_FILE).is_file():
        llm, vision = read_configs(wanted.init)
        return llm, vision.encoder
    if wanted.size == "custom":
        raise CheckpointError(f"{wanted.init} is no TumorChain checkpoint: set model.init to one")
    return llm_config(wanted.size, tokenizer, **wanted.llm_sizes), wanted.encoder
