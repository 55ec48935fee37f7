"""What can go wrong with the real server: each time a clear error or the right answer, never a hang, nothing twice."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from langchain_core.messages import HumanMessage
from safetensors.torch import load_file, save_file

from tests.serving.conftest import Files, RunningServer, all_gone, ask_once
from tumorchain_agent.errors import ChatModelError, CheckpointError, EndpointError
from tumorchain_agent.graph import events
from tumorchain_agent.mcp_server.store import read_work_log
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.model.checkpoint import (
    NANO_DIR,
    VISION_WEIGHTS,
    CheckpointInfo,
    read_info,
    served_name,
    write_info,
)
from tumorchain_agent.model.template import encode_embeds
from tumorchain_agent.settings import Settings

pytestmark = pytest.mark.slow

QUESTION = "What is the TNM stage?"


def prompt(rows: int, width: int = 192) -> list[HumanMessage]:
    tokens = torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
    part = {"type": "prompt_embeds", "data": encode_embeds(tokens)}
    return [HumanMessage([part, {"type": "text", "text": "Is there a tumor?"}])]


def trained_further(folder: Path) -> CheckpointInfo:
    """nano with another encoder, and so with another checkpoint_id."""
    shutil.copytree(NANO_DIR, folder)
    weights = folder / VISION_WEIGHTS
    save_file({name: tensor * 1.001 for name, tensor in load_file(weights).items()}, weights)
    nano = read_info(NANO_DIR)
    kept = (
        "size",
        "hidden_size",
        "preprocessing",
        "provenance",
        "training_distribution",
        "alpha",
        "history",
        "zoom",
    )
    return write_info(folder, **{name: getattr(nano, name) for name in kept})


@pytest.fixture
def settings(server: RunningServer, tmp_path: Path) -> Settings:
    return server.settings(tmp_path / "cache")


def test_a_model_name_that_is_not_served_is_an_error_that_names_those_that_are(settings: Settings) -> None:
    with pytest.raises(EndpointError, match=f"serves {served_name(read_info(NANO_DIR))}: name one"):
        chat_model_from(settings.model_copy(update={"llm_model": "nobody"}))
    unchecked = chat_model_from(settings.model_copy(update={"llm_model": "nobody"}), evidence="text")
    with pytest.raises(EndpointError, match="check --llm-url and --llm-model"):
        unchecked.invoke([HumanMessage("Is there a tumor?")])


def test_tokens_of_another_width_are_refused_and_the_server_goes_on(settings: Settings) -> None:
    model = chat_model_from(settings)
    with pytest.raises(ChatModelError, match=r"hidden_size 64 does not match.*serve that one"):
        model.invoke(prompt(8, width=64))
    assert model.invoke(prompt(8), max_completion_tokens=4).usage_metadata is not None


def test_a_prompt_longer_than_the_context_is_an_error_and_nothing_is_left_out_in_silence(
    settings: Settings,
) -> None:
    model = chat_model_from(settings)
    with pytest.raises(ChatModelError, match=r"maximum context length is 8192.*--history latest"):
        model.invoke(prompt(8192))


def test_of_two_clients_only_the_one_with_the_served_checkpoint_is_answered(
    server: RunningServer, settings: Settings, files: Files, tmp_path: Path
) -> None:
    other = trained_further(tmp_path / "other")
    with pytest.raises(CheckpointError, match=f"evidence tokens belong to checkpoint {other.checkpoint_id}"):
        ask_once(settings.model_copy(update={"model": tmp_path / "other"}), files, QUESTION)
    assert not (settings.cache_dir / "threads.sqlite").exists(), "nothing was begun"
    assert ask_once(server.settings(files.cache), files, QUESTION).conclusion


def test_tokens_of_a_checkpoint_that_the_llm_is_not_of_never_reach_it(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    other = trained_further(tmp_path / "other")
    with pytest.raises(
        CheckpointError, match=f"tokens are of checkpoint {other.checkpoint_id} and the LLM is of"
    ):
        ask_once(settings.model_copy(update={"model": tmp_path / "other"}), files, QUESTION, llm=settings)


def test_killed_in_the_middle_of_a_stream_nothing_is_left_behind_and_the_next_run_resumes(
    server: RunningServer, tmp_path: Path, files: Files
) -> None:
    settings = server.settings(tmp_path / "cache", timeout_s=30)
    endless = chat_model_from(settings, max_tokens=4000).bind(extra_body={"ignore_eos": True})
    family = server.family()

    def kill_after_round_1(event: events.Event) -> None:
        if isinstance(event, events.RoundFinished):
            stream = endless.stream(prompt(8))
            assert next(stream) is not None
            server.end(signal.SIGKILL)
            with pytest.raises(ChatModelError):
                list(stream)

    with pytest.raises(ChatModelError, match="check that the server runs"):
        ask_once(settings, files, QUESTION, masks=False, on_event=kill_after_round_1)
    assert all_gone(family) == [], "serve left processes behind"

    server.start()
    with pytest.raises(EndpointError, match="has started"):
        ask_once(settings, files, QUESTION, masks=False)
    server.wait_ready()

    seen: list[events.Event] = []
    answer = ask_once(settings, files, QUESTION, masks=False, on_event=seen.append)
    replayed = [e.round.index for e in seen if isinstance(e, events.RoundFinished) and e.replayed]
    assert replayed == [1]
    here = ask_once(settings.model_copy(update={"llm_url": None}), files, QUESTION, masks=False)
    assert [each.text for each in answer.rounds] == [each.text for each in here.rounds]
    work = [line["work"] for line in read_work_log(settings.cache_dir)]
    assert work.count("segment") == 1
    assert work.count("encode") == 1
