"""What LLMs that read no tokens are shown, and what an organ's evidence holds."""

from __future__ import annotations

from typing import Any

import anyio
from langchain_core.messages import SystemMessage

from tests.graph.fakes import CHECKPOINT, LABELS, SCAN, FakeCT, ScriptedModel
from tumorchain_agent.graph.client import connect
from tumorchain_agent.graph.prompts import SYSTEM
from tumorchain_agent.graph.run import ask
from tumorchain_agent.records import Answer, EvidenceKind

SCAN_LINE = "CT scan of 60 × 50 × 40 voxels of 1.50 × 1.50 × 3.00 mm (right–left × back–front × feet–head).\n"
MEASURED = (
    "Measured in the segmentation, liver: volume 27.0 ml; mean 50 HU (standard deviation 13); "
    "largest diameter 61 mm; largest axial diameter 41 mm"
)


def run(kind: EvidenceKind, ct: FakeCT | None = None) -> tuple[Answer, ScriptedModel, FakeCT]:
    ct, model = ct or FakeCT(), ScriptedModel(replies=["See the liver.", "Liver: T1."])

    async def scenario() -> Answer:
        async with connect(ct.server()) as client:
            return await ask(client, model, "ct", "What?", evidence=kind, checkpoint_db=None)

    return anyio.run(scenario), model, ct


def test_images_are_three_outlined_slices_and_the_measurement() -> None:
    answer, model, ct = run("images")
    assert model.said[0] == [("system", [SYSTEM["images"]]), ("human", [f"{SCAN_LINE}What?"])]
    assert model.said[1][2:] == [
        ("ai", ["See the liver."]),
        (
            "human",
            [
                "The question requires greater attention to liver\n",
                f"{MEASURED}.\n",
                "<picture>",
                "<picture>",
                "<picture>",
            ],
        ),
    ]
    parts: Any = model.calls[1][-1].content
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,iVBOR") for url in urls)
    assert {tool for tool, _ in ct.calls} == {"open_scan", "segment_organs", "measure_organs", "view_organ"}
    assert answer.rounds[1].prompt.endswith(
        "[axial slice of liver] [coronal slice of liver] [sagittal slice of liver]"
    )
    assert answer.claims[0].evidence_uris == (
        f"picture://{SCAN}/{LABELS}/liver/axial",
        f"picture://{SCAN}/{LABELS}/liver/coronal",
        f"picture://{SCAN}/{LABELS}/liver/sagittal",
        f"measurement://{SCAN}/{LABELS}/liver",
    )


def test_text_is_measurement_and_classifier_in_words() -> None:
    _, model, ct = run("text", FakeCT(cut={"liver": ("superior",)}))
    assert model.said[0][0] == ("system", [SYSTEM["text"]])
    assert model.said[1][-1] == (
        "human",
        [
            "The question requires greater attention to liver\n",
            f"{MEASURED}; cut by the scan's edge (superior), so volume and size are lower bounds.\n",
            "Abnormality classifier, liver: abnormal, p(abnormal) = 0.75.\n",
        ],
    )
    assert "encode_scan" not in {tool for tool, _ in ct.calls}


def test_tokens_come_without_a_system_message() -> None:
    _, model, _ = run("tokens")
    assert not any(isinstance(message, SystemMessage) for call in model.calls for message in call)


def test_an_organs_evidence_names_all_its_resources() -> None:
    answer, _, _ = run("tokens", FakeCT(cut={"liver": ("superior", "left")}))
    (liver,) = answer.rounds[1].evidence
    assert liver.uris == (
        f"tokens://{SCAN}/{CHECKPOINT}/{LABELS}/liver",
        f"measurement://{SCAN}/{LABELS}/liver",
        f"classification://{SCAN}/{CHECKPOINT}/{LABELS}/liver",
    )
    assert liver.classification is not None
    assert liver.classification.p_abnormal == 0.75
    assert {notice.code for notice in liver.notices} == {"demonstration_model", "cut_by_edge"}
    assert answer.versions.checkpoint_id == CHECKPOINT


def test_a_notice_of_many_organs_stands_once_in_the_answer() -> None:
    async def scenario() -> Answer:
        model = ScriptedModel(replies=["Liver, spleen, stomach.", "Done."])
        async with connect(FakeCT().server()) as client:
            return await ask(client, model, "ct", "What?", checkpoint_db=None)

    codes = [notice.code for notice in anyio.run(scenario).notices]
    assert codes.count("demonstration_model") == 1
    assert codes.count("nano_segmentation") == 1
