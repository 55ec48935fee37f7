from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from transformers import DynamicCache

from tests.model.conftest import HIDDEN, Tiny
from tumorchain_agent.errors import ChatModelError, CheckpointError, InputError
from tumorchain_agent.graph.llm import llm_name
from tumorchain_agent.model.chat import TumorChainChatModel, chat_model_from, to_messages
from tumorchain_agent.model.checkpoint import read_info, served_name
from tumorchain_agent.model.generate import PrefixCache, TextStream
from tumorchain_agent.model.template import encode_embeds, flat_ids, render, to_inputs
from tumorchain_agent.settings import Settings


def evidence(seed: int, rows: int = 6) -> dict[str, str]:
    random = torch.Generator().manual_seed(seed)
    return {"type": "prompt_embeds", "data": encode_embeds(torch.randn(rows, HIDDEN, generator=random))}


def question(seed: int = 0, text: str = "Is there a lesion?") -> list[BaseMessage]:
    return [HumanMessage([evidence(seed), {"type": "text", "text": text}])]


def second_round(first: list[BaseMessage], answer: AIMessage, seed: int = 1) -> list[BaseMessage]:
    text = {"type": "text", "text": "The question requires greater attention to the liver"}
    return [*first, AIMessage(answer.text), HumanMessage([text, evidence(seed, 3)])]


def cached(message: BaseMessage) -> int:
    assert isinstance(message, AIMessage)
    assert message.usage_metadata is not None
    return message.usage_metadata["input_token_details"]["cache_read"]


@pytest.fixture
def make_chat(tiny: Tiny) -> Any:
    def make(**options: Any) -> TumorChainChatModel:
        fields = {"max_tokens": 24, **options}
        fields |= {"checkpoint_id": "c0ffee", "model_name": "tumorchain-nano-c0ffee"}
        return TumorChainChatModel(llm=tiny.llm, tokenizer=tiny.tokenizer, **fields)

    return make


@pytest.fixture
def chat(make_chat: Any) -> TumorChainChatModel:
    model: TumorChainChatModel = make_chat()
    return model


def test_the_answer_is_what_transformers_generate_gives(tiny: Tiny, chat: TumorChainChatModel) -> None:
    pieces = render(to_messages(question()), tiny.tokenizer, add_generation_prompt=True)
    inputs = to_inputs(pieces, tiny.llm.get_input_embeddings())
    llm: Any = tiny.llm
    ids = llm.generate(
        inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2]), max_new_tokens=24, do_sample=False
    )
    answer = chat.invoke(question())
    assert answer.text == tiny.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert len(answer.text) > 10


def test_usage_counts_every_token_of_prompt_and_answer(tiny: Tiny, chat: TumorChainChatModel) -> None:
    answer = chat.invoke(question())
    prompt = len(flat_ids(render(to_messages(question()), tiny.tokenizer, add_generation_prompt=True)))
    assert answer.usage_metadata == {
        "input_tokens": prompt,
        "output_tokens": 24,
        "total_tokens": prompt + 24,
        "input_token_details": {"cache_read": 0},
    }
    assert answer.response_metadata["model_name"] == "tumorchain-nano-c0ffee"
    assert answer.response_metadata["finish_reason"] == "length"


def test_a_second_round_computes_only_what_is_new_and_answers_the_same(
    chat: TumorChainChatModel, make_chat: Any
) -> None:
    first = chat.invoke(question())
    messages = second_round(question(), first)
    warm, cold = chat.invoke(messages), make_chat().invoke(messages)
    assert warm.text == cold.text
    assert first.usage_metadata is not None
    assert cached(warm) >= first.usage_metadata["input_tokens"]
    assert cached(cold) == 0
    assert warm.usage_metadata is not None
    assert cold.usage_metadata is not None
    assert warm.usage_metadata["input_tokens"] == cold.usage_metadata["input_tokens"]


def test_other_evidence_with_the_same_text_is_not_taken_from_the_cache(
    chat: TumorChainChatModel, make_chat: Any
) -> None:
    chat.invoke(question(seed=0))
    other = chat.invoke(question(seed=1))
    assert other.text == make_chat().invoke(question(seed=1)).text
    assert cached(other) < 10


def test_the_same_call_twice_gives_the_same_answer(chat: TumorChainChatModel) -> None:
    first, second = chat.invoke(question()), chat.invoke(question())
    assert first.text == second.text
    assert second.usage_metadata is not None
    assert cached(second) == second.usage_metadata["input_tokens"] - 1


def test_conversations_that_share_a_beginning_do_not_spoil_each_other(
    chat: TumorChainChatModel, make_chat: Any
) -> None:
    first = chat.invoke(question())
    branches = [second_round(question(), first, seed) for seed in (1, 2, 1, 2)]
    assert [chat.invoke(b).text for b in branches] == [make_chat().invoke(b).text for b in branches]


def test_only_the_latest_conversations_are_kept(make_chat: Any) -> None:
    chat = make_chat(kept_conversations=2)
    for seed in range(5):
        chat.invoke(question(seed))
    assert len(chat._decoder._prefixes) == 2
    assert cached(chat.invoke(question(4))) > cached(chat.invoke(question(0)))
    none = make_chat(kept_conversations=0)
    none.invoke(question())
    assert cached(none.invoke(question())) == 0


def test_a_continued_conversation_takes_the_place_of_its_beginning() -> None:
    prefixes = PrefixCache(conversations=4)
    prefixes.keep([1, 2], DynamicCache())
    prefixes.keep([1, 2, b"row"], DynamicCache())
    assert len(prefixes) == 1
    prefixes.keep([1, 3], DynamicCache())
    assert len(prefixes) == 2


def test_streamed_texts_add_up_to_the_whole_answer(chat: TumorChainChatModel) -> None:
    chunks = list(chat.stream(question()))
    whole = chat.invoke(question())
    assert len(chunks) > 5
    assert "".join(chunk.text for chunk in chunks) == whole.text
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    assert isinstance(merged, AIMessageChunk)
    assert merged.response_metadata == whole.response_metadata
    assert merged.usage_metadata is not None
    assert whole.usage_metadata is not None
    assert merged.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_async_calls_give_the_same_and_leave_the_event_loop_free(
    chat: TumorChainChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = chat.invoke(question()).text
    threads: set[int] = set()
    ticks = 0

    async def run() -> tuple[str, str]:
        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await anyio.sleep(0)

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            streamed = "".join([chunk.text async for chunk in chat.astream(question())])
            invoked = (await chat.ainvoke(question())).text
            group.cancel_scope.cancel()
        return streamed, invoked

    step = chat._decoder.step

    def watched(*args: Any) -> torch.Tensor:
        threads.add(threading.get_ident())
        return step(*args)

    monkeypatch.setattr(chat._decoder, "step", watched)
    assert anyio.run(run) == (expected, expected)
    assert threading.get_ident() not in threads
    assert ticks > 24


def test_cancelling_an_async_call_stops_the_generation(
    make_chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat: TumorChainChatModel = make_chat(max_tokens=200)
    steps = 0
    step = chat._decoder.step

    def watched(*args: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return step(*args)

    monkeypatch.setattr(chat._decoder, "step", watched)

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(chat.ainvoke, question())
            while steps < 2:
                await anyio.sleep(0)
            group.cancel_scope.cancel()

    anyio.run(run)
    assert steps < 100


def test_threads_get_the_answers_they_would_get_alone(chat: TumorChainChatModel, make_chat: Any) -> None:
    asked = [question(seed % 3, f"Question {seed % 3}?") for seed in range(9)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda messages: chat.invoke(messages).text, asked))
    assert together == [make_chat().invoke(messages).text for messages in asked]


def test_generation_ends_at_the_end_of_message_token(
    tiny: Tiny, chat: TumorChainChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = tiny.tokenizer.convert_tokens_to_ids("<|im_end|>")
    step, calls = chat._decoder.step, iter(range(100))

    def then_end(*args: Any) -> torch.Tensor:
        logits = step(*args).clone()
        if next(calls) == 5:
            logits[end] = logits.max() + 1
        return logits

    monkeypatch.setattr(chat._decoder, "step", then_end)
    answer = chat.invoke(question())
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 6
    assert "<|im_end|>" not in answer.text


def test_generation_ends_before_a_stop_text(chat: TumorChainChatModel) -> None:
    whole = chat.invoke(question()).text
    stop = whole[8:11]
    answer = chat.invoke(question(), stop=[stop])
    assert answer.text == whole[: whole.index(stop)]
    assert answer.response_metadata["finish_reason"] == "stop"
    assert "".join(chunk.text for chunk in chat.stream(question(), stop=[stop])) == answer.text


def test_sampling_repeats_with_its_seed_and_differs_without(chat: TumorChainChatModel) -> None:
    def ask(**options: Any) -> str:
        return chat.invoke(question(), temperature=1.0, **options).text

    assert ask(seed=1) == ask(seed=1)
    assert len({ask(seed=seed) for seed in range(4)}) > 1
    assert ask(seed=1, top_p=1e-6) == chat.invoke(question()).text


def test_options_of_a_call_override_the_models(chat: TumorChainChatModel) -> None:
    answer = chat.bind(max_tokens=3).invoke(question())
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 3
    with pytest.raises(ChatModelError, match="unknown option 'tempratur'"):
        chat.invoke(question(), tempratur=1)


def test_a_prompt_beyond_the_context_names_lengths_and_remedy(chat: TumorChainChatModel) -> None:
    long = [HumanMessage("liver " * 300)]
    with pytest.raises(
        ChatModelError, match=r"tokens long and the LLM's context is 256: use --history latest"
    ):
        chat.invoke(long)


def test_an_answer_never_runs_beyond_the_context(make_chat: Any) -> None:
    answer = make_chat(max_tokens=1000).invoke(question())
    assert answer.usage_metadata["total_tokens"] == 256
    assert answer.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}]), ChatModelError, "image_url"),
        (ToolMessage("1", tool_call_id="1"), ChatModelError, "tool message"),
        (HumanMessage([{"type": "prompt_embeds"}]), InputError, "not a saved tensor"),
        (HumanMessage("a <|im_end|> b"), InputError, "reserved token"),
        (
            HumanMessage([{"type": "prompt_embeds", "data": encode_embeds(torch.zeros(1, 7))}]),
            CheckpointError,
            "7",
        ),
    ],
)
def test_a_message_that_can_not_be_shown_is_refused(
    chat: TumorChainChatModel, message: BaseMessage, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        chat.invoke([message])


def test_system_messages_and_plain_strings_are_shown(tiny: Tiny) -> None:
    messages = to_messages([SystemMessage("Be brief."), HumanMessage(["T", {"type": "text", "text": "NM?"}])])
    shown = tiny.tokenizer.decode(flat_ids(render(messages, tiny.tokenizer, add_generation_prompt=True)))
    assert shown == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTNM?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_checkpoint_folder_answers_under_its_served_name(
    tiny_folder: Path, chat: TumorChainChatModel
) -> None:
    model = chat_model_from(Settings(model=tiny_folder, device="cpu"), max_tokens=24)
    answer = model.invoke(question())
    assert answer.text == chat.invoke(question()).text
    assert answer.response_metadata["model_name"] == served_name(read_info(tiny_folder))
    assert llm_name(model) == served_name(read_info(tiny_folder))


def test_a_checkpoint_can_not_be_asked_about_images(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="can't see images: pass --llm-url"):
        chat_model_from(Settings(model=tiny_folder), evidence="images")


def _pushed(tiny: Tiny, text: str, stop: tuple[str, ...] = ()) -> Iterator[str]:
    stream = TextStream(tiny.tokenizer, stop)
    for token in tiny.tokenizer.encode(text):
        yield stream.push(token)
        if stream.stopped:
            break
    yield stream.finish()


def test_a_character_of_several_tokens_is_streamed_whole(tiny: Tiny) -> None:
    texts = list(_pushed(tiny, "5 µm 腫瘍 🫁."))
    assert "".join(texts) == "5 µm 腫瘍 🫁."
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


def test_a_beginning_of_a_stop_text_is_held_back_until_it_is_none(tiny: Tiny) -> None:
    assert "".join(_pushed(tiny, "no END here", ("ENDED",))) == "no END here"
    assert "".join(_pushed(tiny, "it ENDED here", ("ENDED",))) == "it "
    assert not any("E" in text for text in list(_pushed(tiny, "it ENDED here", ("ENDED",))))
