"""The tokenizer: nano's is byte-level BPE with Qwen2's own splitting rules, trained on the project's texts.

A folder whose ``config.json`` says ``qwen2`` is always opened as ``Qwen2Tokenizer`` by transformers and vLLM,
whatever class the folder names. Building that class here is what makes ids equal in training, in process and
on a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tumorchain_agent.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT: Final = "<|endoftext|>"
MESSAGE_START: Final = "<|im_start|>"
MESSAGE_END: Final = "<|im_end|>"
EVIDENCE_START: Final = "<|vision_start|>"
EVIDENCE_END: Final = "<|vision_end|>"
EVIDENCE_PAD: Final = "<|evidence_pad|>"
SPECIAL_TOKENS: Final = (END_OF_TEXT, MESSAGE_START, MESSAGE_END, EVIDENCE_START, EVIDENCE_END, EVIDENCE_PAD)

MAX_NANO_VOCABULARY: Final = 2048

CHAT_TEMPLATE: Final = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""Qwen's turn markers without its default system prompt. Parts are joined with nothing between them, and the
loop over ``message['content']`` is what makes vLLM hand parts over one by one instead of joining them with
line feeds."""


def build_nano_tokenizer(
    texts: Iterable[str], *, vocabulary: int = MAX_NANO_VOCABULARY
) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same texts in the same order give the same tokenizer.

    ``vocabulary`` counts the special tokens and the 256 bytes; few texts give fewer tokens. Any text can be
    encoded. The chat template is part of it and is saved with it.
    """
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    vocab, merges = _train_bpe(texts, vocabulary)
    tokenizer: PreTrainedTokenizerFast = Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,  # type: ignore[arg-type]  # pairs, as in tokenizer.json
        unk_token=END_OF_TEXT,
        eos_token=MESSAGE_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        clean_up_tokenization_spaces=False,
    )
    return with_chat_template(tokenizer)


def open_tokenizer(folder: Path | str, *, qwen: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, of the class that its ``config.json`` asks for, or Qwen's in any case.

    Raises :class:`CheckpointError` when it has none, or no fast one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    kind: Any = Qwen2Tokenizer if qwen else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: the tokenizer can't be loaded: {reason}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{folder} has no fast tokenizer: save the checkpoint with tokenizer.json")
    return tokenizer


def check_turn_markers(tokenizer: PreTrainedTokenizerFast, where: object) -> None:
    """Raise :class:`CheckpointError` unless the chat template's markers are single tokens of it."""
    vocabulary = tokenizer.get_vocab()
    for token in (END_OF_TEXT, MESSAGE_START, MESSAGE_END):
        if tokenizer.encode(token, add_special_tokens=False) != [vocabulary.get(token)]:
            raise CheckpointError(
                f"{where}: the tokenizer has no token {token}: pass an Instruct model of Qwen"
            )


def with_chat_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Give a tokenizer with Qwen's turn markers this project's chat template, in place."""
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def model_vocabulary(tokenizer: PreTrainedTokenizerFast) -> int:
    """Rows of the embedding table: the next multiple of 64 above the tokenizer's size.

    At least one row stays free: vLLM adds a token of its own to mark embeddings, and its id must lie in the
    table.
    """
    return 64 * (len(tokenizer) // 64 + 1)


def _train_bpe(texts: Iterable[str], vocabulary: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    if vocabulary < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocabulary {vocabulary} can't hold 256 bytes and the special tokens")
    backend = Qwen2Tokenizer().backend_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]
