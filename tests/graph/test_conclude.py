"""The answer record: what is absent, what is noted, how long it took."""

from __future__ import annotations

import anyio
import pytest

from tests.graph.fakes import CHECKPOINT, FakeCT, ScriptedModel
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.conclude import phase_seconds
from tumorchain_agent.graph.run import ask
from tumorchain_agent.graph.state import Span
from tumorchain_agent.records import Answer


def answer_to(*replies: str, ct: FakeCT | None = None) -> Answer:
    async def scenario() -> Answer:
        async with connect((ct or FakeCT()).server()) as client:
            model = ScriptedModel(replies=list(replies))
            return await ask(client, model, "ct", "What stage?", checkpoint_db=None)

    return anyio.run(scenario)


def test_the_conclusion_is_the_last_rounds_text_with_its_sections() -> None:
    text = "Findings: A mass in the liver.\n\nImpression: Carcinoma.\n\nPathology: cT1b N0 M0."
    answer = answer_to("See the liver.", f"{text}\n")
    assert answer.conclusion == text
    assert [claim.sentence for claim in answer.claims] == [
        "A mass in the liver.",
        "Carcinoma.",
        "cT1b N0 M0.",
    ]
    assert all(claim.organs == ("liver",) for claim in answer.claims)
    assert (answer.tnm.primary_organ, answer.tnm.t, answer.tnm.n, answer.tnm.m) == (
        "liver",
        "T1b",
        "N0",
        "M0",
    )
    assert answer.tnm.stage == "IB"


def test_a_digestive_organ_that_is_missing_is_reported_though_nobody_named_it() -> None:
    answer = answer_to("Nothing.", ct=FakeCT(absent=("stomach", "heart")))
    assert answer.organs_absent == ("stomach",)
    assert [n.organ for n in answer.notices if n.code == "organ_absent"] == ["stomach"]


def test_an_organ_that_the_answer_first_names_at_the_end_and_is_missing_is_reported() -> None:
    async def scenario() -> Answer:
        async with connect(FakeCT(absent=("heart",)).server()) as client:
            model = ScriptedModel(replies=["The heart is large."])
            return await ask(client, model, "ct", "What?", checkpoint_db=None, max_rounds=1)

    answer = anyio.run(scenario)
    assert answer.organs_absent == ("heart",)
    assert {"organ_absent", "absent_organ_described", "max_rounds"} <= {n.code for n in answer.notices}


def test_an_organ_that_the_weights_cannot_find_is_not_called_missing() -> None:
    answer = answer_to("See the heart.", "Nothing.", ct=FakeCT(absent=("heart",), unknown=("heart",)))
    assert [n.organ for n in answer.notices if n.code == "organ_unknown"] == ["heart"]
    assert not [n for n in answer.notices if n.code == "organ_absent"]
    assert answer.organs_absent == ("heart",)


def test_flags_of_the_tnm_are_notices_too() -> None:
    answer = answer_to("See the pancreas.", "Pancreatic carcinoma, T2 N0 M0, stage IV.")
    (flag,) = [notice for notice in answer.notices if notice.code == "tnm_flag"]
    assert flag.message == answer.tnm.flags[0]
    assert flag.organ == "pancreas"


def test_an_organ_cut_by_the_scans_edge_is_noted_only_when_examined() -> None:
    ct = FakeCT(cut={"liver": ("superior",), "spleen": ("left",)})
    answer = answer_to("See the liver.", "Fine.", ct=ct)
    (notice,) = [notice for notice in answer.notices if notice.code == "cut_by_edge"]
    assert notice.organ == "liver"
    assert "superior" in notice.message


def test_versions_name_all_that_made_the_answer() -> None:
    versions = answer_to("Nothing.").versions
    assert versions.checkpoint_id == CHECKPOINT
    assert versions.llm == "ScriptedModel"
    assert versions.segmentation == "nano total_fast weights-1"
    assert versions.torch.startswith("2.")


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0.0),
        ([(0, 2), (5, 6)], 3.0),
        ([(0, 4), (1, 2)], 4.0),
        ([(1, 3), (0, 2)], 3.0),
        ([(0, 2), (0, 2)], 2.0),
    ],
)
def test_what_runs_side_by_side_counts_once_and_a_pause_not_at_all(
    spans: list[tuple[float, float]], expected: float
) -> None:
    assert phase_seconds([Span(phase="x", start=start, end=end) for start, end in spans]) == expected
