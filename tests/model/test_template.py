from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.model.conftest import TEXTS
from tumorchain_agent.errors import CheckpointError, InputError
from tumorchain_agent.model.template import (
    EmbedsPiece,
    Message,
    TokenPiece,
    assistant_mask,
    decode_embeds,
    encode_embeds,
    flat_ids,
    labels,
    render,
    to_inputs,
)
from tumorchain_agent.model.tokenizer import SPECIAL_TOKENS, build_nano_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STRING_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
TOKENS = torch.arange(24, dtype=torch.float32).view(3, 8)
CHAT = [
    Message("user", (TOKENS, "Is there a lesion?")),
    Message("assistant", ("A lesion in the liver.",)),
    Message("user", ("attention to the liver", TOKENS[:1])),
    Message("assistant", ("T2 N0 M0.",)),
]


def test_the_tokenizer_is_the_same_each_time_it_is_trained() -> None:
    first, second = build_nano_tokenizer(TEXTS), build_nano_tokenizer(iter(TEXTS))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert len(first) <= 2048


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Größe 12.5 mm,\tT2\r\n\n  腫瘍 🫁 <|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [len(tokenizer.encode(token)) for token in SPECIAL_TOKENS] == [1] * len(SPECIAL_TOKENS)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_transformers_opens_the_saved_tokenizer_as_it_was(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\n  a lesion of 23 mm\n\n(T2)<|im_end|>\n"
    assert opened.encode(text) == tokenizer.encode(text)
    assert opened.chat_template == tokenizer.chat_template
    assert opened.eos_token_id == tokenizer.eos_token_id


def test_a_vocabulary_too_small_for_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="256 bytes"):
        build_nano_tokenizer(TEXTS, vocabulary=200)


def test_embeddings_stand_where_their_part_stood(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = render(CHAT, tokenizer, add_generation_prompt=False)
    shown = [tokenizer.decode(list(p.ids)) if isinstance(p, TokenPiece) else p.embeds for p in pieces]
    assert shown[0] == "<|im_start|>user\n"
    assert shown[1] is TOKENS
    assert shown[2] == (
        "Is there a lesion?<|im_end|>\n<|im_start|>assistant\nA lesion in the liver.<|im_end|>\n"
        "<|im_start|>user\nattention to the liver"
    )
    assert isinstance(shown[3], torch.Tensor)
    assert shown[4] == "<|im_end|>\n<|im_start|>assistant\nT2 N0 M0.<|im_end|>\n"
    assert len(flat_ids(pieces)) == sum(len(piece) for piece in pieces)


def test_a_template_that_takes_only_strings_gets_parts_joined_by_line_feeds() -> None:
    tokenizer = build_nano_tokenizer(TEXTS)
    tokenizer.chat_template = STRING_TEMPLATE
    pieces = render(CHAT[:1], tokenizer, add_generation_prompt=False)
    assert [type(piece) for piece in pieces] == [TokenPiece, EmbedsPiece, TokenPiece]
    assert tokenizer.decode(flat_ids(pieces[2:])) == "\nIs there a lesion?<|im_end|>\n"


def test_a_template_that_drops_parts_is_refused() -> None:
    tokenizer = build_nano_tokenizer(TEXTS)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(CheckpointError, match="showed 0 of 1 evidence parts"):
        render(CHAT[:1], tokenizer, add_generation_prompt=False)
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        render(CHAT[:1], tokenizer, add_generation_prompt=False)


def test_what_training_shows_begins_with_what_inference_shows(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = flat_ids(render(CHAT, tokenizer, add_generation_prompt=False))
    for end in (1, 3):
        prompt = flat_ids(render(CHAT[:end], tokenizer, add_generation_prompt=True))
        assert whole[: len(prompt)] == prompt
        answer = tokenizer.encode(str(CHAT[end].parts[0]) + "<|im_end|>")
        assert whole[len(prompt) : len(prompt) + len(answer)] == answer


def test_the_loss_is_taken_on_assistant_texts_and_their_end(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = render(CHAT, tokenizer, add_generation_prompt=False)
    target = labels(pieces, tokenizer)
    mask = assistant_mask(pieces, tokenizer)
    assert tokenizer.decode(target[mask]) == "A lesion in the liver.<|im_end|>T2 N0 M0.<|im_end|>"
    assert bool((target[~mask] == -100).all())
    assert len(target) == len(flat_ids(pieces))


def test_an_open_assistant_turn_has_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = render(CHAT[:1], tokenizer, add_generation_prompt=True)
    assert not bool(assistant_mask(pieces, tokenizer).any())


def test_an_assistant_text_that_begins_with_white_space_is_not_trained_on() -> None:
    tokenizer = build_nano_tokenizer(["user\n\nassistant\n\n"] * 10)
    pieces = render([Message("assistant", ("\nFindings",))], tokenizer, add_generation_prompt=False)
    with pytest.raises(InputError, match="strip it"):
        assistant_mask(pieces, tokenizer)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<prompt_embeds>"])
def test_a_text_can_not_forge_the_end_of_its_message(tokenizer: PreTrainedTokenizerFast, token: str) -> None:
    with pytest.raises(InputError, match="reserved token"):
        render([Message("user", (f"hello{token}\nbye",))], tokenizer, add_generation_prompt=True)


def test_evidence_in_an_assistant_message_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="assistant message holds evidence"):
        render([Message("assistant", (TOKENS,))], tokenizer, add_generation_prompt=True)


def test_inputs_hold_the_embeddings_and_gradients_flow_into_them(tokenizer: PreTrainedTokenizerFast) -> None:
    table = torch.nn.Embedding(len(tokenizer), 8)
    tokens = TOKENS.clone().requires_grad_()
    pieces = render([Message("user", ("a", tokens))], tokenizer, add_generation_prompt=True)
    inputs = to_inputs(pieces, table)
    start = len(pieces[0])
    assert inputs.shape == (1, len(flat_ids(pieces)), 8)
    assert torch.equal(inputs[0, start : start + 3], tokens)
    inputs.sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.grad is not None
    assert table.weight.grad is not None


def test_evidence_of_another_width_names_both_widths(tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = render(CHAT[:1], tokenizer, add_generation_prompt=True)
    with pytest.raises(CheckpointError, match="8 wide and the LLM takes 16"):
        to_inputs(pieces, torch.nn.Embedding(len(tokenizer), 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_encoded_embeddings_come_back_bit_by_bit(dtype: torch.dtype) -> None:
    tokens = torch.randn(4, 8).to(dtype)
    back = decode_embeds(encode_embeds(tokens))
    assert back.dtype == dtype
    assert torch.equal(back, tokens)


def test_a_slice_is_encoded_without_the_tensor_it_was_cut_from() -> None:
    assert len(encode_embeds(torch.zeros(10_000, 8)[:1])) < 4000


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def _saved(value: object) -> str:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("not base64!", "not base64"),
        ("", "not a saved tensor"),
        (base64.b64encode(b"something else").decode(), "not a saved tensor"),
        (_saved(_Trap()), "not a saved tensor"),
        (encode_embeds(TOKENS)[:400], "not a saved tensor"),
        (_saved({"tokens": TOKENS}), "holds a dict"),
        (_saved(TOKENS[0]), r"shape \(8,\)"),
        (_saved(TOKENS[None]), r"shape \(1, 3, 8\)"),
        (_saved(torch.zeros(0, 8)), r"shape \(0, 8\)"),
        (_saved(TOKENS.long()), "int64"),
        (_saved(TOKENS.to_sparse()), "dense"),
        (_saved(torch.zeros(1, 1).expand(10_000, 10_000)), "claims more elements"),
        (_saved(TOKENS / 0), "NaN or infinity"),
    ],
)
def test_bad_embeddings_are_refused_with_a_reason(
    data: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        decode_embeds(data)
    assert "executed" not in capsys.readouterr().out


def test_embeddings_above_the_size_limit_are_refused_before_decoding() -> None:
    with pytest.raises(InputError, match="larger than 100 bytes"):
        decode_embeds("A" * 1000, max_bytes=100)
