"""The rounds and the messages of every LLM call are exactly eq. 4, 6 and 7."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from tests.graph.fakes import FakeCT, ScriptedModel
from tumorchain_agent.errors import ChatModelError, CheckpointError
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.run import ask
from tumorchain_agent.records import Answer

QUESTION = "What is wrong?"
FIRST = ("human", ["<τ_g>", QUESTION])
ATTENTION = "The question requires greater attention to"


async def _ask(ct: FakeCT, model: ScriptedModel, question: str, options: dict[str, Any]) -> Answer:
    async with connect(ct.server()) as client:
        return await ask(client, model, "ct.nii.gz", question, checkpoint_db=None, **options)


def run(
    replies: list[str],
    *,
    ct: FakeCT | None = None,
    question: str = QUESTION,
    endless: bool = False,
    **options: Any,
) -> tuple[Answer, ScriptedModel]:
    model = ScriptedModel(replies=replies, endless=endless)
    return anyio.run(partial(_ask, ct or FakeCT(), model, question, options)), model


def shown(*organs: tuple[str, str]) -> tuple[str, list[str]]:
    """A user message of eq. 5 for organs given as (name in words, Table 10 name)."""
    return "human", [part for words, organ in organs for part in (f"{ATTENTION} {words}", f"<τ_l {organ}>")]


def test_mention_of_no_organ_ends_after_round_1() -> None:
    answer, model = run(["Nothing to see."])
    assert model.said == [[FIRST]]
    assert [r.prompt for r in answer.rounds] == [f"[τ_g] {QUESTION}"]
    assert answer.stopped_because == "no new organ"
    assert answer.organs_examined == ()
    assert answer.conclusion == "Nothing to see."


def test_one_organ_is_shown_in_round_2() -> None:
    answer, model = run(["A mass in the liver.", "Liver: carcinoma."])
    assert model.said == [
        [FIRST],
        [FIRST, ("ai", ["A mass in the liver."]), shown(("liver", "liver"))],
    ]
    first, second = answer.rounds
    assert (first.organs_mentioned, first.new_organs, first.evidence) == (("liver",), ("liver",), ())
    assert (second.organs_mentioned, second.new_organs) == (("liver",), ())
    assert second.prompt == f"{ATTENTION} liver [τ_l liver]"
    assert [item.organ for item in second.evidence] == ["liver"]
    assert answer.organs_examined == ("liver",)


def test_three_organs_of_one_round_are_shown_together_in_order_of_mention() -> None:
    reply = "The rectum, the spleen and the pancreatic tail look odd."
    answer, model = run([reply, "Done."])
    assert model.said[1] == [
        FIRST,
        ("ai", [reply]),
        shown(("colon and rectum", "colorectum"), ("spleen", "spleen"), ("pancreas", "pancreas")),
    ]
    assert [item.asked_as for item in answer.rounds[1].evidence] == ["rectum", "spleen", "pancreatic tail"]
    assert answer.organs_examined == ("colorectum", "spleen", "pancreas")


def test_history_append_keeps_all_rounds_and_evidence() -> None:
    replies = ["See the liver.", "See the spleen.", "See the stomach.", "Done."]
    _, model = run(replies)
    assert model.said[3] == [
        FIRST,
        ("ai", [replies[0]]),
        shown(("liver", "liver")),
        ("ai", [replies[1]]),
        shown(("spleen", "spleen")),
        ("ai", [replies[2]]),
        shown(("stomach", "stomach")),
    ]
    for call, following in zip(model.said, model.said[1:], strict=False):
        assert following[: len(call)] == call


def test_history_latest_is_equation_7_literally() -> None:
    replies = ["See the liver.", "See the spleen.", "See the stomach.", "Done."]
    _, model = run(replies, history="latest")
    assert model.said == [
        [FIRST],
        [FIRST, ("ai", [replies[0]]), shown(("liver", "liver"))],
        [FIRST, ("ai", [replies[1]]), shown(("spleen", "spleen"))],
        [FIRST, ("ai", [replies[2]]), shown(("stomach", "stomach"))],
    ]


def test_the_same_organ_in_other_words_is_not_new() -> None:
    answer, model = run(["Cirrhosis of the liver.", "Hepatic lesion in segment VII of the liver."])
    assert len(model.calls) == 2
    assert answer.stopped_because == "no new organ"
    assert answer.organs_examined == ("liver",)


def test_an_organ_of_the_question_is_examined_first_though_no_round_names_it() -> None:
    question = "Is the gastric wall thick?"
    answer, model = run(["See the liver.", "Fine."], question=question)
    assert model.said[0] == [("human", ["<τ_g>", question])]
    assert model.said[1][-1] == shown(("stomach", "stomach"), ("liver", "liver"))
    assert answer.rounds[0].organs_mentioned == ("liver",)
    assert answer.rounds[0].new_organs == ("stomach", "liver")


def test_an_organ_of_the_question_alone_is_examined() -> None:
    answer, model = run(["Nothing seen.", "Nothing seen."], question="Is there a lesion in the liver?")
    assert model.said[1][-1] == shown(("liver", "liver"))
    assert answer.stopped_because == "no new organ"


def test_an_absent_organ_is_told_in_words_and_does_not_loop() -> None:
    ct = FakeCT()
    answer, model = run(["The esophagus is thick.", "The esophagus is thick."], ct=ct)
    assert model.said[1][-1] == ("human", ["esophagus is not in the scan; not assessed\n"])
    assert len(model.calls) == 2
    assert answer.organs_absent == ("esophagus",)
    assert answer.organs_examined == ()
    assert ("extract_roi_tokens", "esophagus") not in ct.calls
    assert [n.organ for n in answer.notices if n.code == "organ_absent"] == ["esophagus"]
    assert [n.organ for n in answer.notices if n.code == "absent_organ_described"] == ["esophagus"]


def test_absent_and_present_organs_of_one_round_each_get_their_lines() -> None:
    _, model = run(["Esophagus, duodenum and liver.", "Done."], ct=FakeCT(absent=("esophagus", "duodenum")))
    assert model.said[1][-1] == (
        "human",
        [
            "esophagus is not in the scan; not assessed\n",
            "duodenum is not in the scan; not assessed\n",
            f"{ATTENTION} liver",
            "<τ_l liver>",
        ],
    )


def test_an_organ_without_tokens_is_told_and_noted() -> None:
    answer, model = run(["See the liver.", "Done."], ct=FakeCT(tokenless=("liver",)))
    assert model.said[1][-1] == (
        "human",
        ["liver has no evidence tokens; not assessed\n"],
    )
    assert "organ_without_tokens" in {notice.code for notice in answer.notices}


def test_endless_new_organs_stop_at_max_rounds_and_say_so() -> None:
    replies = ["See the liver.", "See the spleen.", "See the stomach.", "See the pancreas."]
    answer, model = run(replies, endless=True, max_rounds=3)
    assert len(model.calls) == len(answer.rounds) == 3
    assert answer.stopped_because == "max_rounds"
    assert answer.organs_examined == ("liver", "spleen")
    (notice,) = [notice for notice in answer.notices if notice.code == "max_rounds"]
    assert "3 rounds" in notice.message
    assert "stomach" in notice.message
    assert answer.claims[-1].evidence_uris == (f"tokens://{answer.scan.scan_id}/nano-1/global",)


def test_more_rounds_than_langgraphs_usual_step_limit_are_possible() -> None:
    organs = ["liver", "spleen", "stomach", "pancreas", "duodenum", "heart", "aorta", "brain", "trachea"]
    answer, _ = run([f"See the {organ}." for organ in organs] + ["Done."], max_rounds=20)
    assert len(answer.rounds) == len(organs) + 1
    assert answer.stopped_because == "no new organ"


def test_each_tool_works_once_for_an_organ() -> None:
    ct = FakeCT()
    run(["Liver and spleen.", "Liver, spleen, stomach.", "Liver."], ct=ct)
    assert len(ct.calls) == len(set(ct.calls))
    assert ct.reads.count("global") == ct.reads.count("liver") == 1


def test_round_1_does_not_wait_for_segmentation() -> None:
    async def scenario() -> Answer:
        first_round_over = anyio.Event()

        async def hook(tool: str, organ: str) -> None:
            if tool == "segment_organs":
                await first_round_over.wait()

        def watch(event: object) -> None:
            if getattr(event, "type", "") == "round_finished":
                first_round_over.set()

        model = ScriptedModel(replies=["See the liver.", "Done."])
        async with connect(FakeCT(hook=hook).server()) as client:
            with anyio.fail_after(20):
                return await ask(client, model, "ct", QUESTION, checkpoint_db=None, on_event=watch)

    assert anyio.run(scenario).organs_examined == ("liver",)


def test_organs_of_one_round_are_examined_side_by_side() -> None:
    async def scenario() -> Answer:
        waiting: set[str] = set()
        all_there = anyio.Event()

        async def hook(tool: str, organ: str) -> None:
            if tool == "extract_roi_tokens":
                waiting.add(organ)
                if len(waiting) == 3:
                    all_there.set()
                await all_there.wait()

        model = ScriptedModel(replies=["Liver, spleen, stomach.", "Done."])
        async with connect(FakeCT(hook=hook).server()) as client:
            with anyio.fail_after(20):
                return await ask(client, model, "ct", QUESTION, checkpoint_db=None)

    assert anyio.run(scenario).organs_examined == ("liver", "spleen", "stomach")


def test_tokens_of_another_checkpoint_are_refused() -> None:
    with pytest.raises(CheckpointError, match="nano-2 and the LLM is of nano-1"):
        run(["Hello."], ct=FakeCT(checkpoint="nano-2"))


def test_an_empty_reply_is_an_error_and_no_answer() -> None:
    with pytest.raises(ChatModelError, match="answered with nothing"):
        run([" "])


def test_a_reply_cut_off_at_the_token_limit_is_noted() -> None:
    async def scenario() -> Answer:
        model = ScriptedModel(replies=["All is"], finish_reason="length")
        async with connect(FakeCT().server()) as client:
            return await ask(client, model, "ct", QUESTION, checkpoint_db=None)

    assert "reply_cut_off" in {notice.code for notice in anyio.run(scenario).notices}


def test_usage_is_counted_by_round_and_in_all() -> None:
    answer, _ = run(["See the liver.", "Liver: fine."])
    assert [r.usage.cached_tokens for r in answer.rounds] == [0, 100]
    assert answer.usage.prompt_tokens == 300
    assert answer.usage.completion_tokens == 5
    assert set(answer.timings_s) == {"open", "encode", "segment", "reason", "evidence"}
    assert 0 < answer.seconds <= sum(answer.timings_s.values()) + 0.01
