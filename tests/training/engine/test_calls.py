"""Calls over a real HTTP endpoint: tried again where that helps, limited, streamed, cached, counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.training.engine.making import config_for, made_up, model, outcomes, run, write_cases
from tests.training.engine.scripted import Ask, Experts
from tests.training.engine.server import ModelServer, Said, serving
from tumorchain_agent.errors import ChatModelError, DataError, EndpointError, InputError
from tumorchain_agent.training.engine.calls import Caller, call_key, open_caller
from tumorchain_agent.training.engine.runner import Finished
from tumorchain_agent.training.engine.store import open_store

TRUTHS = [made_up(seed) for seed in range(300, 302)]
TURNS = [("user", "Expert: calibrator\nCase: x\n{}")]


def go(
    folder: Path, tamper: Callable[[Ask, Said], Said] | None = None, **more: Any
) -> tuple[ModelServer, Finished]:
    cases = write_cases(folder / "cases.jsonl", TRUTHS)
    with serving(ModelServer(Experts.of(TRUTHS), tamper)) as server:
        return server, run(config_for(cases, server.url, **more), folder / "out")


class First:
    """Changes what is said the first so many times."""

    def __init__(self, times: int, change: Callable[[Said], Said]) -> None:
        self.left, self.change, self.moments = times, change, list[float]()

    def __call__(self, ask: Ask, said: Said) -> Said:
        self.moments.append(time.monotonic())
        self.left -= 1
        return self.change(said) if self.left >= 0 else said


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tumorchain_agent.training.engine.calls._FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("tumorchain_agent.training.engine.calls._LONGEST_WAIT_S", 0.05)


@pytest.mark.slow
def test_streamed_and_whole_replies_give_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for stream in (False, True):
        folder = tmp_path / str(stream)
        folder.mkdir()
        cases = write_cases(tmp_path / "cases.jsonl", TRUTHS)
        with serving(ModelServer(Experts.of(TRUTHS))) as server:
            config = config_for(cases, server.url, model_options={"stream": stream})
            finished = run(config, folder)
            assert server.streamed == (server.asked if stream else 0)
        assert sum(each.completion_tokens for each in finished.statistics.use) > 500
        files.append((folder / "samples.jsonl").read_bytes())
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda said: Said("overloaded", status=503),
        lambda said: Said("broken", status=500),
        lambda said: Said(said.text, breaks_off=True),
    ],
    ids=["503", "500", "broken off"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_that_fails_in_the_server_is_tried_again(
    tmp_path: Path, change: Callable[[Said], Said], stream: bool
) -> None:
    server, finished = go(tmp_path, First(3, change), model_options={"stream": stream})
    assert finished.statistics.set_aside == 0
    assert server.repeated == 0
    assert server.asked == finished.paid.calls + 3


def test_a_rate_limit_closes_the_endpoint_for_all_until_it_may_be_asked_again(tmp_path: Path) -> None:
    limit = First(1, lambda said: Said("slow down", status=429, headers={"Retry-After": "0.5"}))
    _, finished = go(tmp_path, limit, concurrency=1)
    assert finished.paid.limited == 1
    assert finished.statistics.set_aside == 0
    assert limit.moments[1] - limit.moments[0] >= 0.5


@pytest.mark.slow
def test_rate_limits_without_end_do_not_use_up_the_retries(tmp_path: Path) -> None:
    limit = First(20, lambda said: Said("slow down", status=429, headers={"Retry-After": "0.01"}))
    _, finished = go(tmp_path, limit, model_options={"retries": 1})
    assert finished.paid.limited == 20
    assert finished.statistics.set_aside == 0


async def ask_once(url: str, folder: Path) -> Caller:
    with open_store(folder) as store:
        async with open_caller(store) as caller:
            await caller.ask("calibrator", model(url), TURNS)
            return caller


def test_a_limit_without_a_pause_is_backed_off_from_said_once_a_pause_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tumorchain_agent.training.engine.calls.MAX_LIMITED_S", 0.2)
    limit = First(40, lambda said: Said("slow down", status=429, headers={"Retry-After": "0"}))
    server = ModelServer(Experts({"x": TRUTHS[0]}), limit)
    with serving(server), pytest.raises(ChatModelError, match="slow down"):
        anyio.run(ask_once, server.url, tmp_path)
    assert server.asked == 6
    pauses = [each.getMessage() for each in caplog.records if "limited, waiting" in each.getMessage()]
    assert len(pauses) == server.asked - 1
    assert all("slow down" in each for each in pauses)


def test_a_used_up_quota_ends_at_once_and_names_the_model_and_what_to_do(tmp_path: Path) -> None:
    limit = First(40, lambda said: Said("exceeded", status=429, code="insufficient_quota"))
    server = ModelServer(Experts({"x": TRUTHS[0]}), limit)
    with serving(server), pytest.raises(ChatModelError, match=r"quota for scripted is used up.*pay") as told:
        anyio.run(ask_once, server.url, tmp_path)
    assert server.asked == 1
    assert "\n" not in str(told.value)


def test_thoughts_of_a_reasoning_model_are_not_taken_for_its_answer(tmp_path: Path) -> None:
    thoughts = '<think>The shape is {"consistent": true|false}. I\'m sorry, no.</think>\n'

    def think(ask: Ask, said: Said) -> Said:
        return Said(
            f"{thoughts.removeprefix('<think>') if ask.expert == 'reasoner' else thoughts}{said.text}"
        )

    _, finished = go(tmp_path, think)
    assert finished.statistics.set_aside == 0
    assert not any(outcome.caught for outcome in outcomes(tmp_path / "out"))


def test_no_more_calls_are_in_flight_than_allowed(tmp_path: Path) -> None:
    server, _ = go(tmp_path, concurrency=2)
    assert server.busiest <= 2


@pytest.mark.slow
def test_a_refused_call_sets_its_case_aside_and_others_go_on(tmp_path: Path) -> None:
    seen: list[str] = []

    def refuse(ask: Ask, said: Said) -> Said:
        seen.append(ask.case)
        return Said("context length exceeded", status=400) if ask.case == seen[0] else said

    go(tmp_path, refuse, concurrency=1)
    first, *others = outcomes(tmp_path / "out")
    assert (first.by, first.faults[0].kind) == ("validator", "call_refused")
    assert not any(other.by for other in others)


def test_a_wrong_key_ends_the_run_at_once_and_keeps_what_was_paid_for(tmp_path: Path) -> None:
    with pytest.raises(ChatModelError, match="401"):
        go(tmp_path, lambda ask, said: Said("bad key", status=401) if ask.expert == "summarizer" else said)
    assert not (tmp_path / "out/samples.jsonl").exists()
    with open_store(tmp_path / "out") as store:
        assert store.calls() > 0


def test_an_endpoint_where_nobody_answers_is_told_at_once(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", TRUTHS)
    with pytest.raises(EndpointError, match="check that the server runs"):
        run(config_for(cases, "http://127.0.0.1:9/v1"), tmp_path / "out")


def test_a_key_that_is_not_set_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NO_SUCH_KEY"):
        go(tmp_path, model_options={"api_key_env": "NO_SUCH_KEY"})


def test_when_no_case_gives_a_sample_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 × refusal"):
        go(tmp_path, lambda ask, said: Said("I'm sorry, I can't."))
    assert not (tmp_path / "out/samples.jsonl").exists()


@pytest.mark.slow
def test_costs_and_tokens_of_each_stage_are_those_the_server_counted(tmp_path: Path) -> None:
    _, finished = go(tmp_path)
    use = {each.stage: each for each in finished.statistics.use}
    assert list(use) == ["extractor", "reasoner", "calibrator", "summarizer"]
    for each in use.values():
        assert each.calls == len(TRUTHS)
        assert each.cost == pytest.approx((each.prompt_tokens + 2 * each.completion_tokens) / 1e6)
    assert finished.paid.tokens == sum(each.prompt_tokens + each.completion_tokens for each in use.values())


def test_the_same_run_again_makes_no_call_and_the_same_bytes(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", TRUTHS)
    with serving(ModelServer(Experts.of(TRUTHS))) as server:
        config = config_for(cases, server.url)
        run(config, tmp_path / "out")
        before = (server.asked, (tmp_path / "out/samples.jsonl").read_bytes())
        run(config, tmp_path / "out")
        assert (server.asked, (tmp_path / "out/samples.jsonl").read_bytes()) == before


@pytest.mark.slow
def test_other_reviews_use_the_replies_that_are_there(tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl", TRUTHS)
    with serving(ModelServer(Experts.of(TRUTHS))) as server:
        run(config_for(cases, server.url), tmp_path / "out")
        again = run(config_for(cases, server.url, reviews=1), tmp_path / "out")
    assert again.paid.calls == 0
    assert again.paid.cached == 4 * len(TRUTHS)


@pytest.mark.slow
def test_cases_with_the_same_reports_share_their_calls(tmp_path: Path) -> None:
    line = json.loads(write_cases(tmp_path / "cases.jsonl", TRUTHS[:1]).read_text())
    twins = [{**line, "id": name, "patient": name, "scan": f"{name}.nii.gz"} for name in ("a", "b", "c")]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(each) + "\n" for each in twins))
    with serving(ModelServer(Experts.of(TRUTHS))) as server:
        finished = run(config_for(tmp_path / "cases.jsonl", server.url), tmp_path / "out")
    assert server.asked == 4
    assert finished.statistics.summary.patients.both == 3


def test_a_call_is_known_by_all_that_decides_its_reply() -> None:
    base = model("http://a/v1")
    keys = {
        call_key("judge", base, TURNS, 0.0, 0),
        call_key("judge", base, TURNS, 0.5, 0),
        call_key("judge", base, TURNS, 0.0, 1),
        call_key("intern", base, TURNS, 0.0, 0),
        call_key("judge", model("http://a/v1", "other"), TURNS, 0.0, 0),
        call_key("judge", base, [("system", "x"), *TURNS], 0.0, 0),
    }
    assert len(keys) == 6
    assert call_key("judge", model("http://b/v1"), TURNS, 0.0, 0) in keys


@pytest.mark.slow
def test_a_slow_endpoint_times_out_and_is_asked_again(tmp_path: Path) -> None:
    from threading import Event

    release, slow = Event(), First(1, lambda said: said)

    def late(ask: Ask, key: str) -> bool:
        slow(ask, Said(""))
        if slow.left == 0:
            release.wait(5)
        return True

    async def ask(url: str) -> tuple[str, Caller]:
        with open_store(tmp_path) as store:
            async with open_caller(store) as caller:
                reply = await caller.ask("calibrator", model(url, timeout_s=0.3), TURNS)
                release.set()
                return reply.text, caller

    experts = Experts({"x": TRUTHS[0]})
    with serving(ModelServer(experts, gate=late)) as server:
        text, caller = anyio.run(ask, server.url)
    assert json.loads(text)["consistent"] is True
    assert caller.paid.calls == 1
    assert server.asked == 2
