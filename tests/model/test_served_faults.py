"""Retries at an endpoint are few, spaced and only where they can help; silence ends at the stated timeout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.fake_server import FakeServer, serve
from tests.model.test_chat import question
from tests.model.test_served import ANSWER, HOW, _ask
from tumorchain_agent.errors import ChatModelError
from tumorchain_agent.model import endpoint
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.model.checkpoint import read_info, served_name
from tumorchain_agent.settings import Settings

SHORT_S = 0.5


@pytest.fixture
def fake(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(endpoint, "PAUSES_S", (0.01, 0.02))
    with serve(FakeServer(models=[{"id": served_name(read_info(tiny_folder))}])) as running:
        yield running


@pytest.fixture
def settings(fake: FakeServer, tiny_folder: Path) -> Settings:
    return Settings(model=tiny_folder, llm_url=fake.url, llm_timeout_s=30)


@pytest.mark.parametrize("status", [429, 500, 503])
@HOW
def test_a_passing_refusal_is_overcome(fake: FakeServer, settings: Settings, how: str, status: int) -> None:
    fake.refusals = [status, status]
    assert _ask(how, chat_model_from(settings), question()).text == ANSWER
    assert len(fake.requests) == 3


@pytest.mark.parametrize(
    ("status", "remedy"), [(429, "ask again later"), (500, "look into the server's log")]
)
@HOW
def test_a_lasting_refusal_is_an_error_after_three_attempts(
    fake: FakeServer, settings: Settings, how: str, status: int, remedy: str
) -> None:
    fake.status = status
    with pytest.raises(ChatModelError, match=rf"\(3 attempts\): .*{remedy}"):
        _ask(how, chat_model_from(settings), question())
    assert len(fake.requests) == 3


def test_the_server_may_ask_for_more_patience_but_not_for_too_much(
    fake: FakeServer, settings: Settings
) -> None:
    model = chat_model_from(settings)
    fake.refusals, fake.retry_after = [429], "0.3"
    started = time.monotonic()
    assert model.invoke(question()).text == ANSWER
    assert time.monotonic() - started >= 0.3
    fake.refusals, fake.retry_after, fake.requests = [429], "3600", []
    with pytest.raises(ChatModelError, match="ask again later"):
        model.invoke(question())
    assert len(fake.requests) == 1


@pytest.mark.parametrize("where", ["before", "within"])
@pytest.mark.parametrize("how", ["stream", "astream"])
def test_a_hanging_server_is_an_error_at_the_timeout_and_is_not_asked_again(
    fake: FakeServer, settings: Settings, how: str, where: str
) -> None:
    model = chat_model_from(settings.model_copy(update={"llm_timeout_s": SHORT_S}))
    fake.hangs = "before" if where == "before" else "within"
    with pytest.raises(ChatModelError, match="raise TUMORCHAIN_LLM_TIMEOUT_S"):
        _ask(how, model, question())
    assert len(fake.requests) == 1


@HOW
def test_an_answer_that_the_server_aborted_is_no_answer(
    fake: FakeServer, settings: Settings, how: str
) -> None:
    fake.finish_reason = "abort"
    with pytest.raises(ChatModelError, match="broke off its answer"):
        _ask(how, chat_model_from(settings), question())
