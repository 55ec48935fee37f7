from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk

from tests.model.fake_server import WORDS, FakeServer, serve
from tests.model.test_chat import question, second_round
from tumorchain_agent.errors import ChatModelError, CheckpointError, EndpointError
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.model.checkpoint import read_info, served_name
from tumorchain_agent.settings import Settings

ANSWER = "".join(WORDS)


@pytest.fixture
def fake(tiny_folder: Path) -> Iterator[FakeServer]:
    with serve(
        FakeServer(models=[{"id": served_name(read_info(tiny_folder)), "root": "/models/x"}])
    ) as running:
        yield running


@pytest.fixture
def settings(fake: FakeServer, tiny_folder: Path) -> Settings:
    return Settings(model=tiny_folder, llm_url=fake.url, llm_timeout_s=5)


def _ask(how: str, model: BaseChatModel, messages: Any) -> AIMessage | AIMessageChunk:
    async def collect() -> Any:
        return [chunk async for chunk in model.astream(messages)]

    if how == "invoke":
        return model.invoke(messages)
    if how == "ainvoke":
        return anyio.run(model.ainvoke, messages)
    chunks = list(model.stream(messages)) if how == "stream" else anyio.run(collect)
    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    assert isinstance(merged, AIMessageChunk)
    return merged


HOW = pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])


@HOW
def test_embeddings_reach_the_server_as_they_were_written(
    fake: FakeServer, settings: Settings, how: str
) -> None:
    messages = second_round(question(), AIMessage("A lesion."))
    answer = _ask(how, chat_model_from(settings, max_tokens=7), messages)
    (request,) = fake.requests
    assert [message["content"] for message in request["messages"]] == [m.content for m in messages]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    assert request["temperature"] == 0
    assert request["max_completion_tokens"] == 7
    assert answer.text == ANSWER


def test_one_model_serves_several_event_loops_in_turn(settings: Settings) -> None:
    model = chat_model_from(settings)
    for _ in range(3):
        assert _ask("astream", model, question()).text == ANSWER


@HOW
def test_usage_and_cached_tokens_are_reported(settings: Settings, how: str) -> None:
    answer = _ask(how, chat_model_from(settings), question())
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == 300
    assert answer.usage_metadata["output_tokens"] == 4
    assert answer.usage_metadata["input_token_details"] == {"cache_read": 256}


def test_the_only_model_of_a_server_needs_no_name(fake: FakeServer, settings: Settings) -> None:
    answer = chat_model_from(settings).invoke(question())
    assert answer.response_metadata["model_name"] == fake.models[0]["id"]


def test_token_evidence_never_goes_to_a_server_of_other_weights(
    fake: FakeServer, settings: Settings, tiny_folder: Path
) -> None:
    checkpoint = read_info(tiny_folder).checkpoint_id
    fake.models = [{"id": "qwen", "root": "Qwen/Qwen2.5-VL-7B-Instruct"}]
    with pytest.raises(
        CheckpointError, match=f"serves qwen, the evidence tokens belong to checkpoint {checkpoint}"
    ) as caught:
        chat_model_from(settings)
    assert "pass --evidence images or text" in str(caught.value)
    chat_model_from(settings, evidence="images")
    chat_model_from(settings, evidence="text")


def test_a_folder_named_after_its_checkpoint_is_recognised(
    fake: FakeServer, settings: Settings, tiny_folder: Path
) -> None:
    fake.models = [{"id": "any", "root": f"/models/{served_name(read_info(tiny_folder))}"}, {"id": "other"}]
    chat_model_from(settings.model_copy(update={"llm_model": "any"}))
    with pytest.raises(CheckpointError, match="serves other"):
        chat_model_from(settings.model_copy(update={"llm_model": "other"}))


def test_a_server_of_several_models_needs_a_name_that_it_serves(fake: FakeServer, settings: Settings) -> None:
    fake.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(EndpointError, match="serves a, b: name one of them with --llm-model"):
        chat_model_from(settings, evidence="text")


def test_a_named_model_is_not_looked_up_when_evidence_is_text(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"llm_model": "any", "llm_url": "http://127.0.0.1:9/v1"})
    assert chat_model_from(nowhere, evidence="text") is not None


def test_only_the_configured_key_is_sent(
    fake: FakeServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    chat_model_from(settings).invoke(question())
    chat_model_from(settings.model_copy(update={"llm_api_key": "mine"})).invoke(question())
    assert fake.keys == ["Bearer none", "Bearer mine"]


@pytest.mark.parametrize(
    ("status", "message", "remedy", "exit_code"),
    [
        (401, "bad key", "set TUMORCHAIN_LLM_API_KEY", 1),
        (404, "no such model", "check --llm-url and --llm-model", 2),
        (400, "You must set `--enable-prompt-embeds`", "start vLLM with --enable-prompt-embeds", 1),
        (400, "longer than the maximum model length of 8192", "use --history latest", 1),
        (422, "?", "look into the server's log", 1),
    ],
)
@HOW
def test_a_refusal_names_its_remedy(
    fake: FakeServer, settings: Settings, how: str, status: int, message: str, remedy: str, exit_code: int
) -> None:
    fake.status, fake.message = status, message
    with pytest.raises(ChatModelError) as caught:
        _ask(how, chat_model_from(settings), question())
    text = str(caught.value)
    assert caught.value.exit_code == exit_code
    assert fake.url in text
    assert remedy in text
    assert "\n" not in text


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_an_answer_that_breaks_off_is_an_error(fake: FakeServer, settings: Settings, how: str) -> None:
    fake.breaks_off = True
    with pytest.raises(ChatModelError, match="broke off its answer"):
        _ask(how, chat_model_from(settings), question())


def test_a_server_that_is_not_there_or_no_url_is_named(settings: Settings) -> None:
    gone = settings.model_copy(update={"llm_url": "http://127.0.0.1:9"})
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1: .*check that the server runs"):
        chat_model_from(gone)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "http://", "http://[::1/v1", "http://a:b", "http://a b/v1"]
)
def test_an_address_that_is_none_is_refused_before_anybody_is_asked(settings: Settings, url: str) -> None:
    with pytest.raises(EndpointError, match=r"no http\(s\) URL") as caught:
        chat_model_from(settings.model_copy(update={"llm_url": url}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("listed", ["<html>A web page</html>", None, {"data": [{}]}])
def test_a_server_that_lists_no_models_is_no_openai_compatible_one(
    fake: FakeServer, settings: Settings, listed: Any
) -> None:
    fake.listed = listed
    with pytest.raises(EndpointError, match="is no list of models: check that --llm-url"):
        chat_model_from(settings)
