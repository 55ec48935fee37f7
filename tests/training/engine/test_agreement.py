"""CT and pathology: what may differ in practice, and what can't both be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.making import config_for, made_up, outcomes, run, write_cases
from tests.training.engine.scripted import Ask, Experts, case_key
from tests.training.engine.server import ModelServer, Said, serving
from tumorchain_agent.training.engine.agreement import check_differences, check_reports
from tumorchain_agent.training.engine.features import (
    Clinical,
    Extraction,
    Features,
    Lesion,
    Neighbors,
    Nodes,
    Pathology,
    Spread,
)
from tumorchain_agent.training.engine.knowledge import load_knowledge
from tumorchain_agent.training.engine.samples import Outcome
from tumorchain_agent.training.phantom.patient import Truth

GRAPH = load_knowledge()


def reports(organ: str, ct_mm: float, tnm: str, *, ct_nodes: int = 0, **more: Any) -> Extraction:
    t, n, m = tnm.split()
    nodes = Nodes(status="present", number=ct_nodes) if ct_nodes else Nodes(status="none")
    features = Features(
        clinical=Clinical(), lesion=Lesion(organ=organ, size_mm=ct_mm, quote="x"), neighbors=Neighbors(), nodes=nodes,
        spread=Spread(status="none"), conclusion="x",
    )  # fmt: skip
    stated = {"size_mm": ct_mm, "t": t, "n": n, "m": m, "conclusion": "x", **more}
    return Extraction(features=features, pathology=Pathology(malignant=True, organ=organ, **stated))


def told(found: Extraction) -> tuple[list[str], list[str]]:
    """Kinds of contradictions and of differences."""
    both = (check_reports(found, GRAPH), check_differences(found, GRAPH))
    contradictions, differences = ([each.kind.removeprefix("pathology_") for each in some] for some in both)
    return contradictions, differences


@pytest.mark.parametrize(
    ("found", "differs"),
    [
        (reports("pancreas", 19, "T2 N0 M0", size_mm=22, stage="IB"), ["differs_t"]),
        (reports("pancreas", 38, "T3 N0 M0", size_mm=43, stage="IIA"), ["differs_t"]),
        (reports("pancreas", 30, "T2 N1 M0", nodes=2, stage="IIB"), ["differs_n"]),
        (reports("colorectum", 30, "T3 N1c M0", nodes=0, stage="IIIB"), ["differs_n"]),
        (reports("pancreas", 12, "Tis N0 M0", stage="0"), []),
    ],
    ids=["T by 3 mm", "T by 5 mm", "nodes", "deposits", "in situ"],
)
def test_what_differs_in_practice_is_counted_and_no_contradiction(
    found: Extraction, differs: list[str]
) -> None:
    assert told(found) == ([], differs)


@pytest.mark.parametrize(
    ("found", "kinds"),
    [
        (reports("pancreas", 19, "T3 N0 M0"), {"t_contradicts_itself", "disagrees_t"}),
        (reports("pancreas", 19, "T3 N0 M0", size_mm=45), {"disagrees_size", "disagrees_t"}),
        (reports("pancreas", 30, "T2 N0 M1"), {"disagrees_m"}),
        (reports("pancreas", 30, "T2 N0 M0", ct_nodes=5), {"disagrees_n"}),
        (reports("colorectum", 30, "T3 N1c M0", nodes=2), {"n_contradicts_itself"}),
    ],
    ids=["T by far", "size by far", "M", "fewer nodes than CT", "deposits with nodes"],
)
def test_what_can_not_both_be_right_is_a_contradiction(found: Extraction, kinds: set[str]) -> None:
    assert set(told(found)[0]) == kinds


@pytest.mark.parametrize(
    ("organ", "tnm", "right", "wrong"),
    [
        ("stomach", "T1b N1 M0", ("IB", "IIA"), ("IIIA", "0")),
        ("stomach", "T1a N0 M0", ("IA", "I"), ("IB", "IVB")),
        ("stomach", "T4a N2 M0", ("IIIA", "III"), ("IIB", "IVB")),
        ("esophagus", "T3 N0 M0", ("IIA", "IIB", "II", "III"), ("0", "IVB")),
        ("esophagus", "T1b N2 M0", ("IIIA", "III"), ("0", "IVB")),
        ("liver", "T1b N0 M0", ("IB",), ("IA", "II")),
    ],
)
def test_a_stage_of_the_clinical_or_the_pathological_table_is_right(
    organ: str, tnm: str, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    def kinds(stage: str) -> list[str]:
        return told(reports(organ, 30, tnm, stage=stage))[0]

    assert {stage: kinds(stage) for stage in right} == {stage: [] for stage in right}
    assert {stage: kinds(stage) for stage in wrong} == {stage: ["stage_contradicts_tnm"] for stage in wrong}


def differing(axis: str) -> tuple[Truth, str, str, str]:
    """A truth, a pathology report with another T or N, and that category as CT and pathology have it."""
    base = replace(
        made_up(3, organ="pancreas"), size_mm=19.0, count=1, nodes=0, sites=(), metastases=0, mimics=(), m="M0",
    )  # fmt: skip
    if axis == "T":
        text = "Ductal adenocarcinoma of the pancreas, 22 mm. Pathology: pT2 pN0 cM0. Stage IB."
        return replace(base, t="T2", n="N0"), text, "T1c", "T2"
    text = "Ductal adenocarcinoma of the pancreas, 19 mm. Pathology: pT1c pN1 cM0. Stage IIB."
    return replace(base, t="T1c", n="N1"), text, "N0", "N1"


def review(axis: str, folder: Path, *, learns: bool) -> Outcome:
    """A reasoner that goes by the CT, and by pathology once the summarizer has told it, if it learns."""
    truth, text, of_ct, of_specimen = differing(axis)

    def reason(ask: Ask, said: Said) -> Said:
        if ask.expert != "reasoner" or (learns and ask.again):
            return said
        chain = json.loads(said.text.replace(of_specimen, of_ct))
        return Said(json.dumps(chain))

    key = case_key(truth, text)
    experts = Experts({key: truth}, {key: text})
    cases = write_cases(folder / "cases.jsonl", [truth, made_up(1)], {truth.seed: text})
    experts.truths[case_key(made_up(1))] = made_up(1)
    with serving(ModelServer(experts, reason)) as server:
        run(config_for(cases, server.url), folder / "out")
    return outcomes(folder / "out")[0]


@pytest.mark.parametrize("axis", ["T", "N"])
def test_a_difference_ends_in_a_review_round_and_in_samples_with_the_category_of_pathology(
    tmp_path: Path, axis: str
) -> None:
    outcome = review(axis, tmp_path, learns=True)
    assert (outcome.by, outcome.returns) == (None, 1)
    assert [each.kind for each in outcome.caught] == [
        f"pathology_differs_{axis.lower()}",
        "pathology_disagrees",
    ]
    assert any(differing(axis)[3] in sample.answer for sample in outcome.samples)


def test_a_reasoner_that_never_agrees_about_the_nodes_is_set_aside(tmp_path: Path) -> None:
    outcome = review("N", tmp_path, learns=False)
    assert (outcome.by, outcome.faults[0].kind) == ("summarizer", "pathology_disagrees")
