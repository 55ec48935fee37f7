"""``ask``: threads, what is remembered, what is told while it works."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from tests.graph.fakes import FakeCT, ScriptedModel
from tumorchain_agent.errors import (
    ChatModelError,
    OutputError,
    QuestionError,
    ScanError,
    TumorChainError,
)
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.events import Event
from tumorchain_agent.graph.run import ask
from tumorchain_agent.graph.state import IIRConfig
from tumorchain_agent.graph.threads import make_thread_id
from tumorchain_agent.records import Answer

REPLIES = ["See the liver.", "Liver: carcinoma, T2 N0 M0."]


def scripted() -> ScriptedModel:
    return ScriptedModel(replies=REPLIES)


async def _ask(ct: FakeCT, model: ScriptedModel, question: str, options: dict[str, Any]) -> Answer:
    async with connect(ct.server()) as client:
        return await ask(client, model, options.pop("scan", "ct.nii.gz"), question, **options)


def run(
    model: ScriptedModel,
    database: Path | None,
    *,
    ct: FakeCT | None = None,
    question: str = "TNM?",
    **options: Any,
) -> Answer:
    options["checkpoint_db"] = database
    return anyio.run(partial(_ask, ct or FakeCT(), model, question, options))


@pytest.mark.parametrize(
    ("question", "message"),
    [("", "empty"), (" \n\t", "empty"), ("x" * 100_000, "100,000 characters; shorten")],
)
def test_an_unusable_question_is_refused_before_anything_is_opened(question: str, message: str) -> None:
    ct = FakeCT()
    with pytest.raises(QuestionError, match=message):
        run(scripted(), None, ct=ct, question=question)
    assert ct.calls == []


def test_the_error_of_a_tool_comes_out_as_it_is(tmp_path: Path) -> None:
    for database in (None, tmp_path / "threads.sqlite"):
        with pytest.raises(ScanError, match="does not exist"):
            run(scripted(), database, scan="missing.nii.gz")


def test_a_question_asked_again_is_answered_from_the_database(tmp_path: Path) -> None:
    database, ct, model = tmp_path / "threads.sqlite", FakeCT(), scripted()
    first = run(model, database, ct=ct)
    seen: list[Event] = []
    again = run(model, database, ct=ct, on_event=seen.append)
    assert again == first
    assert len(model.calls) == 2
    assert [tool for tool, _ in ct.calls].count("encode_scan") == 1
    assert [event.type for event in seen] == ["progress", *["round_finished"] * 2, "notice", "answer"]
    assert all(getattr(event, "replayed", True) for event in seen)


@pytest.mark.parametrize("cut_off", [False, True])
def test_with_another_segmentation_the_question_is_reasoned_anew(tmp_path: Path, cut_off: bool) -> None:
    database = tmp_path / "threads.sqlite"
    if cut_off:
        with pytest.raises(IndexError):
            run(ScriptedModel(replies=REPLIES[:1]), database)
    else:
        run(scripted(), database)
    model = scripted()
    answer = run(model, database, ct=FakeCT(labels="labels-2"))
    assert len(model.calls) == len(answer.rounds) == 2


def test_fresh_reasons_anew(tmp_path: Path) -> None:
    database = tmp_path / "threads.sqlite"
    run(scripted(), database)
    model = ScriptedModel(replies=["Nothing."])
    assert run(model, database, fresh=True).conclusion == "Nothing."
    assert len(model.calls) == 1


def test_another_question_is_another_thread(tmp_path: Path) -> None:
    database = tmp_path / "threads.sqlite"
    first, second = run(scripted(), database), run(scripted(), database, question="Other?")
    assert first.thread_id != second.thread_id


def test_an_error_leaves_what_was_done_and_the_next_run_goes_on(tmp_path: Path) -> None:
    database, model = tmp_path / "threads.sqlite", scripted()

    async def fail(tool: str, organ: str) -> None:
        if tool == "extract_roi_tokens":
            raise OSError("disk")

    with pytest.raises(Exception, match="extract_roi_tokens failed"):
        run(model, database, ct=FakeCT(hook=fail))
    ct = FakeCT()
    seen: list[Event] = []
    answer = run(model, database, ct=ct, on_event=seen.append)
    assert [record.text for record in answer.rounds] == REPLIES
    assert len(model.calls) == 2
    assert "encode_scan" not in {tool for tool, _ in ct.calls}
    replayed = [event for event in seen if event.type == "round_finished"]
    assert [event.replayed for event in replayed] == [True, False]


def test_a_round_whose_sibling_failed_is_told_again_and_not_asked_again(tmp_path: Path) -> None:
    database, model = tmp_path / "threads.sqlite", scripted()
    round_1 = anyio.Event()

    async def fail(tool: str, organ: str) -> None:
        if tool == "segment_organs":
            await round_1.wait()
            raise OSError("disk")

    def watch(event: Event) -> None:
        if event.type == "round_finished":
            round_1.set()

    with pytest.raises(TumorChainError, match="segment_organs failed"):
        run(model, database, ct=FakeCT(hook=fail), on_event=watch)
    seen: list[Event] = []
    answer = run(model, database, on_event=seen.append)
    assert len(model.calls) == len(answer.rounds) == 2
    told = [event for event in seen if event.type == "round_finished"]
    assert [(event.round.index, event.replayed) for event in told] == [(1, True), (2, False)]


def test_a_thread_of_the_callers_own_name_answers_the_question_that_is_asked(tmp_path: Path) -> None:
    database = tmp_path / "threads.sqlite"
    run(scripted(), database, thread_id="mine")
    answer = run(ScriptedModel(replies=["No."]), database, thread_id="mine", question="Cyst?")
    assert (answer.question, answer.conclusion, answer.thread_id) == ("Cyst?", "No.", "mine")


def test_two_runs_of_one_question_at_the_same_time_work_once(tmp_path: Path) -> None:
    async def scenario() -> tuple[list[Answer], ScriptedModel]:
        model, answers = scripted(), []

        async def one() -> None:
            async with connect(FakeCT().server()) as client:
                answers.append(
                    await ask(client, model, "ct", "TNM?", checkpoint_db=tmp_path / "threads.sqlite")
                )

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
        return answers, model

    (first, second), model = anyio.run(scenario)
    assert first == second
    assert len(model.calls) == 2


def test_events_tell_the_whole_way_in_order() -> None:
    seen: list[Event] = []
    answer = run(scripted(), None, on_event=seen.append)
    kinds = [event.type for event in seen if event.type not in ("notice", "progress")]
    tokens = ["token"] * 3, ["token"] * 5
    assert kinds == [
        *("round_started", *tokens[0], "round_finished", "organ_evidence"),
        *("round_started", *tokens[1], "round_finished", "answer"),
    ]
    said = "".join(event.text for event in seen if event.type == "token" and event.round == 2)
    assert said == REPLIES[1] == answer.conclusion
    noted = [event.notice for event in seen if event.type == "notice"]
    assert set(answer.notices) == set(noted)
    assert next(event.message for event in seen if event.type == "progress") == "reading the scan"


def test_progress_that_arrives_over_a_stream_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> list[Event]:
        seen: list[Event] = []
        async with connect(FakeCT().server(), mode="legacy") as client:
            await ask(client, scripted(), "ct", "TNM?", checkpoint_db=None, on_event=seen.append)
        return seen

    first = anyio.run(scenario)[0]
    assert (first.type, getattr(first, "message", "")) == ("progress", "reading the scan")
    assert "raised" not in caplog.text


def test_checkpoints_stay_small_because_tensors_are_not_in_them(tmp_path: Path) -> None:
    database = tmp_path / "threads.sqlite"
    organs = ["liver", "spleen", "stomach", "pancreas", "duodenum"]
    run(ScriptedModel(replies=[f"See the {organ}." for organ in organs] + ["Done."]), database)
    with sqlite3.connect(database) as connection:
        largest = connection.execute("select max(length(checkpoint)) from checkpoints").fetchone()[0]
        blobs = connection.execute("select value from writes").fetchall()
    assert largest < 64_000
    assert not any(b"prompt_embeds" in (value or b"") for (value,) in blobs)


def test_a_database_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be used"):
        run(scripted(), tmp_path / "file" / "threads.sqlite")


def test_a_database_that_is_none_is_an_output_error(tmp_path: Path) -> None:
    database = tmp_path / "threads.sqlite"
    database.write_bytes(b"no database at all" * 100)
    with pytest.raises(OutputError, match="not a database"):
        run(scripted(), database)


@pytest.mark.parametrize(
    "error",
    [
        openai.OpenAIError("refused"),
        ConnectionError("refused"),
    ],
)
def test_a_failing_endpoint_is_a_chat_model_error_that_names_the_llm(error: Exception) -> None:
    class Failing(ScriptedModel):
        model_name: str = "med-7b"

        def reply_to(self, messages: list[Any]) -> str:
            raise error

    with pytest.raises(ChatModelError, match="LLM med-7b failed: refused"):
        run(Failing(replies=[]), None)


def thread_id(**changes: Any) -> str:
    parts: dict[str, Any] = {
        "scan_id": "scan-1",
        "question": "TNM?",
        "config": IIRConfig(),
        "chat_model": scripted(),
        "masks": None,
    }
    return make_thread_id(**(parts | changes))


class Warm(ScriptedModel):
    temperature: float = 0.0

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"temperature": self.temperature}


def test_the_thread_id_covers_all_that_the_answer_depends_on(tmp_path: Path) -> None:
    first, second = tmp_path / "a.nii", tmp_path / "b.nii"
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    ids = [
        thread_id(),
        thread_id(scan_id="scan-2"),
        thread_id(question="Stage?"),
        thread_id(config=IIRConfig(evidence="text")),
        thread_id(config=IIRConfig(history="latest")),
        thread_id(config=IIRConfig(max_rounds=3)),
        thread_id(chat_model=Warm(replies=[])),
        thread_id(chat_model=Warm(replies=[], temperature=0.5)),
        thread_id(masks=str(first)),
        thread_id(masks=str(second)),
        thread_id(masks="elsewhere.nii"),
        thread_id(checkpoint_id="nano-1"),
        thread_id(checkpoint_id="nano-2"),
    ]
    assert len(set(ids)) == len(ids)
    assert thread_id() == ids[0]
    second.write_bytes(b"a")
    assert thread_id(masks=str(second)) == thread_id(masks=str(first))
