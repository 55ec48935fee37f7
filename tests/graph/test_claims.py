"""Sentences, what they rest on, and the TNM read from them."""

from __future__ import annotations

import pytest

from tumorchain_agent.graph.claims import (
    absent_described,
    classifier_disagrees,
    contradicts_itself,
    make_claims,
    sentences,
)
from tumorchain_agent.graph.conclude import read_tnm
from tumorchain_agent.records import Classification, OrganEvidence

GLOBAL = "tokens://scan/model/global"


def evidence(*organs: str) -> dict[str, OrganEvidence]:
    return {
        organ: OrganEvidence(organ=organ, asked_as=organ, present=True, kind="tokens", uris=(f"u://{organ}",))
        for organ in organs
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("A 2.5 cm mass.  No node (e.g. N1).", ["A 2.5 cm mass.", "No node (e.g. N1)."]),
        ("Findings: The liver is large.\nImpression:\nT2 N0 M0", ["The liver is large.", "T2 N0 M0"]),
        ("**Findings**\n- Mass in the liver.\n2. Cyst.", ["Mass in the liver.", "Cyst."]),
        ("### Pathology:\n1) cT2 N0 M0. Stage IB.", ["cT2 N0 M0.", "Stage IB."]),
        (
            "Compared with e.g. Fig. 2 it grew, approx. 3 cm.",
            ["Compared with e.g. Fig. 2 it grew, approx. 3 cm."],
        ),
        ("The pathology is unclear.", ["The pathology is unclear."]),
        ("2.5 cm mass.", ["2.5 cm mass."]),
        ("…\n---\n", []),
        ("", []),
    ],
)
def test_a_text_is_cut_into_verbatim_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected
    assert all(sentence in text for sentence in sentences(text))


def test_a_sentence_rests_on_the_evidence_of_its_organs() -> None:
    (claim,) = make_claims("The liver touches the stomach.", evidence("stomach", "liver"), GLOBAL)
    assert claim.organs == ("liver", "stomach")
    assert claim.evidence_uris == ("u://liver", "u://stomach")


def test_a_sentence_without_an_organ_rests_on_the_sentence_before() -> None:
    claims = make_claims("All is dark. The liver is large. It has a mass.", evidence("liver"), GLOBAL)
    assert [claim.evidence_uris for claim in claims] == [(GLOBAL,), ("u://liver",), ("u://liver",)]
    assert [claim.organs for claim in claims] == [(), ("liver",), ("liver",)]


def test_an_organ_that_was_never_examined_rests_on_the_global_tokens() -> None:
    (claim,) = make_claims("Liver and spleen.", evidence("liver"), GLOBAL)
    assert claim.evidence_uris == (GLOBAL, "u://liver")


def test_without_global_tokens_a_sentence_may_rest_on_nothing() -> None:
    (claim,) = make_claims("All is dark.", {}, None)
    assert claim.evidence_uris == ()


@pytest.mark.parametrize(
    ("sentence", "flagged"),
    [
        ("The esophagus is normal.", True),
        ("Wall thickening of the esophagus.", True),
        ("No lesion in the esophagus.", True),
        ("The esophagus is not in the scan.", False),
        ("The esophagus was not assessed.", False),
        ("The esophagus is not fully included in the field of view.", False),
        ("The esophagus lies outside the field of view.", False),
        ("The esophagus cannot be evaluated.", False),
        ("The liver is normal.", False),
    ],
)
def test_speaking_of_an_absent_organ_as_if_it_was_assessed_is_flagged(sentence: str, flagged: bool) -> None:
    assert bool(absent_described(f"Fine. {sentence}", ["esophagus"])) is flagged


@pytest.mark.parametrize(
    ("question", "conclusion", "organ"),
    [
        ("TNM?", "Pancreatic adenocarcinoma, T2 N0 M0.", "pancreas"),
        ("TNM stage of the liver tumor?", "T1a N0 M0.", "liver"),
        ("TNM?", "Stomach: T3 N1 M0.", "stomach"),
        ("TNM?", "T3 N1 M0.", None),
        ("Liver or stomach?", "T3 N1 M0.", None),
    ],
)
def test_the_tnm_is_checked_for_the_organ_that_question_and_answer_name(
    question: str, conclusion: str, organ: str | None
) -> None:
    assert read_tnm(question, conclusion).primary_organ == organ


def test_an_impossible_combination_is_flagged_and_not_corrected() -> None:
    tnm = read_tnm("TNM?", "Pancreatic carcinoma T2 N0 M0, stage IV.")
    assert (tnm.t, tnm.n, tnm.m, tnm.stage) == ("T2", "N0", "M0", "IV")
    assert tnm.flags


@pytest.mark.parametrize(
    ("text", "p_abnormal", "flagged"),
    [
        ("Impression: tumor of the pancreas. Answer: pancreas.", 0.21, ("pancreas", "calls normal")),
        ("Impression: tumor of the pancreas. Answer: pancreas.", 0.93, None),
        ("Impression: no tumor. The pancreas is normal.", 0.21, None),
        ("Impression: no tumor. The pancreas is normal.", 0.93, None),
        ("Impression: no tumor of the stomach.", 0.93, ("pancreas", "says nothing of")),
        ("Impression: tumor of the stomach.", 0.21, None),
        ("Impression: tumor of the pancreas.", None, None),
    ],
)
def test_an_answer_that_the_classifier_does_not_bear_out_is_flagged(
    text: str, p_abnormal: float | None, flagged: tuple[str, str] | None
) -> None:
    label = "not assessed" if p_abnormal is None else "abnormal" if p_abnormal >= 0.5 else "normal"
    cls = Classification.model_validate(
        {"organ": "pancreas", "present": True, "p_abnormal": p_abnormal, "label": label, "checkpoint_id": "c"}
    )
    shown = {"pancreas": evidence("pancreas")["pancreas"].model_copy(update={"classification": cls})}
    found = classifier_disagrees(text, shown)
    assert [(notice.organ, flagged is not None and flagged[1] in notice.message) for notice in found] == (
        [(flagged[0], True)] if flagged else []
    )


COLON = (
    "Findings: a mass of the ascending colon. No mass in the liver. Impression: tumor of the colon. Answer: "
)
NONE = "Findings: no mass in the liver. Impression: no tumor. Answer: "


@pytest.mark.parametrize(
    "text",
    [
        COLON + "yes, a tumor of the liver.",
        COLON + "liver.",
        COLON + "no tumor.",
        COLON + "no tumor of the colon.",
        COLON + "cT4a N0 M0, stomach, over 4 cm.",
        NONE + "pancreas.",
        NONE + "yes, a tumor of the pancreas.",
    ],
)
def test_a_short_answer_that_contradicts_its_own_text_is_noticed(text: str) -> None:
    (notice,) = contradicts_itself(text)
    assert notice.code == "contradicts_itself"
    assert text.rpartition("Answer: ")[2] in notice.message
    seen = "a tumor of the colon and rectum" if text.startswith(COLON) else "no tumor"
    assert f"its text sees {seen}" in notice.message


@pytest.mark.parametrize(
    "text",
    [
        COLON + "colon.",
        COLON + "yes, a tumor of the colon.",
        COLON + "no tumor of the liver.",
        COLON + "cT4a N0 M0, colon, over 4 cm.",
        COLON + "ascending colon.",
        COLON + "liver metastases.",
        COLON + "N0.",
        COLON + "multiple.",
        NONE + "no tumor.",
        NONE + "no tumor of the liver.",
        NONE + "esophagus not assessed.",
        "The liver holds a hepatocellular carcinoma.",
        "No tumor is seen. The pancreas is normal.",
    ],
)
def test_a_short_answer_that_agrees_or_speaks_of_something_else_is_not_noticed(text: str) -> None:
    assert contradicts_itself(text) == []
