"""A measurement asked for stands in the conclusion with its evidence, whatever the LLM reads or says."""

from __future__ import annotations

import anyio
import pytest

from tests.graph.fakes import LABELS, SCAN, FakeCT, ScriptedModel
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.run import ask
from tumorchain_agent.records import Answer, EvidenceKind

URI = f"measurement://{SCAN}/{LABELS}/"


def asked(
    question: str, *replies: str, evidence: EvidenceKind = "tokens", ct: FakeCT | None = None
) -> Answer:
    async def scenario() -> Answer:
        async with connect((ct or FakeCT()).server()) as client:
            model = ScriptedModel(replies=list(replies), endless=True)
            return await ask(client, model, "ct.nii.gz", question, evidence=evidence, checkpoint_db=None)

    return anyio.run(scenario)


@pytest.mark.parametrize("evidence", ["tokens", "images", "text"])
def test_the_measured_value_is_the_conclusions_first_sentence(evidence: EvidenceKind) -> None:
    answer = asked("How large is the liver?", "It is of normal size.", evidence=evidence)
    assert answer.conclusion == "Measured volume: liver 27.0 ml.\nIt is of normal size."
    first = answer.claims[0]
    assert (first.sentence, first.organs, first.evidence_uris) == (
        "Measured volume: liver 27.0 ml.",
        ("liver",),
        (f"{URI}liver",),
    )


def test_organs_that_the_answer_needs_are_examined_though_not_named() -> None:
    answer = asked("Is there hepatic steatosis?", "Nothing to add.")
    assert answer.organs_examined == ("liver", "spleen")
    assert answer.claims[0].evidence_uris == (f"{URI}liver", f"{URI}spleen")
    assert "ratio 1.00, not below 1" in answer.conclusion


def test_what_is_not_in_the_scan_is_not_measured_and_has_no_number() -> None:
    answer = asked("What is the volume of the esophagus?", "Nothing to add.")
    told = "Not measured: esophagus is not in the scan: not assessed, which is not normal."
    assert answer.conclusion == f"{told}\nNothing to add."
    assert (answer.claims[0].sentence, answer.claims[0].evidence_uris) == (told, ())
    assert "not_measured" in {notice.code for notice in answer.notices}


def test_a_number_of_the_llms_that_contradicts_the_measurement_is_pointed_out() -> None:
    answer = asked("What is the mean HU of the spleen?", "The spleen has 90 HU.")
    assert answer.conclusion.startswith("Measured mean attenuation: spleen 50.4 HU.")
    (notice,) = [each for each in answer.notices if each.code == "contradicts_measurement"]
    assert notice.message == (
        "The LLM's text gives 90 HU for spleen; measured are 50.4 HU. The measured value counts."
    )


def test_a_lower_bound_is_told_as_one() -> None:
    ct = FakeCT(cut={"liver": ("superior",)})
    told = asked("How large is the liver?", "Nothing to add.", ct=ct).claims[0].sentence
    assert told.endswith("Liver is cut by the scan's edge (superior): its volume is a lower bound.")


def test_questions_about_lesions_stay_the_llms() -> None:
    assert asked("How large is the tumor?", "About 3 cm.").conclusion == "About 3 cm."
