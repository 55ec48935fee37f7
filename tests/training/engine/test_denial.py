"""A negation in a report counts for the words that it governs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tumorchain_agent.training.engine.cases import Case
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
from tumorchain_agent.training.engine.grounding import (
    check_extraction,
    claims_mass,
    claims_nodes,
    claims_spread,
    sites_in,
)
from tumorchain_agent.training.engine.logic import check_text

UNSTATED = Nodes(status="not stated")


def features(
    report: str, lesion: Lesion | None, nodes: Nodes = UNSTATED, sites: tuple[str, ...] = ()
) -> Features:
    spread = {
        "status": "present" if sites else "not stated",
        "sites": sites,
        "quote": report if sites else "",
    }
    return Features(
        clinical=Clinical(), lesion=lesion, neighbors=Neighbors(), nodes=nodes,
        spread=Spread.model_validate(spread), conclusion=report,
    )  # fmt: skip


def kinds(report: str, found: Features) -> list[str]:
    case = Case(0, "a", "a", Path("a.nii.gz"), None, report, None)
    return [fault.kind for fault in check_extraction(Extraction(features=found, pathology=None), case)]


@pytest.mark.parametrize(
    ("rest", "sites"),
    [
        ("without calcification", ()),
        ("with no invasion of the spleen", ()),
        ("that does not invade the spleen", ()),
        ("with liver metastases", ("liver",)),
        ("with liver metastases but no lung metastases", ("liver",)),
        ("the remaining pancreas is normal", ()),
        ("no cyst", ()),
    ],
)
def test_a_mass_of_which_something_else_is_denied_is_extracted_as_a_mass(
    rest: str, sites: tuple[str, ...]
) -> None:
    report = f"A 32 mm mass in the pancreatic tail, {rest}."
    lesion = Lesion(organ="pancreas", location="tail", size_mm=32, quote=report)
    assert kinds(report, features(report, lesion, sites=sites)) == []
    assert kinds(report, features(report, None, sites=sites)) == ["lost_lesion"]


@pytest.mark.parametrize(
    "nodes",
    ["Enlarged celiac lymph nodes without necrosis.", "No ascites, but several enlarged lymph nodes."],
)
def test_nodes_of_which_something_else_is_denied_are_present(nodes: str) -> None:
    report = f"No tumor. {nodes}"
    present, none = Nodes(status="present", quote=nodes), Nodes(status="none", quote=nodes)
    assert kinds(report, features(report, None, present)) == []
    assert kinds(report, features(report, None, none)) == ["wrong_nodes"]
    assert check_text(nodes, features(report, None, present)) == []


@pytest.mark.parametrize(
    "text",
    [
        "No mass in the pancreas.", "Pancreas without evidence of a mass.", "The pancreas is free of masses.",
        "A mass is not seen.", "Mass: none", "No mass, enlarged node or metastasis.", "Negative for malignancy.",
        "Neither mass nor metastasis.", "No focal liver or pancreatic lesion.", "Metastatic lesions of the liver.",
        "Liver lesions suspicious for metastases.", "A lesion of the liver, benign cyst.",
        "Lymph nodes are free of tumor.", "No ascites, mass or cyst.",
    ],
)  # fmt: skip
def test_a_mass_that_is_denied_or_a_metastasis_or_benign_is_no_tumor(text: str) -> None:
    assert not claims_mass(text)


@pytest.mark.parametrize(
    "text",
    [
        "No ascites, but a mass in the liver.", "No liver metastases but a 3 cm mass in the pancreas.",
        "CT without contrast shows a mass of the liver.", "No abnormality other than a 3 cm mass of the liver.",
        "The liver is not enlarged, hypodense mass in the pancreas.", "The mass is not calcified.",
        "The spleen is not enlarged and there is a mass in the pancreas.", "No calcification, 2 masses of the liver.",
        "Adenocarcinoma without lymphovascular invasion, margins negative.", "No change of the mass in the tail.",
        "Liver metastases and a 32 mm mass in the pancreatic tail.",
    ],
)  # fmt: skip
def test_a_mass_beyond_the_reach_of_a_negation_is_claimed(text: str) -> None:
    assert claims_mass(text)


@pytest.mark.parametrize(
    "text",
    [
        "Lymph nodes are not enlarged.", "No enlarged lymph nodes or metastases.", "No lymph node is involved.",
        "Lymph nodes: none enlarged.", "Normal-sized lymph nodes.", "Lymph nodes without enlargement.",
        "No enlarged liver, spleen or lymph nodes.", "Lymph nodes show no enlargement.", "Lymph nodes are normal.",
        "None of the lymph nodes is enlarged.", "Lymph nodes negative for tumor.",
    ],
)  # fmt: skip
def test_nodes_that_are_denied_or_normal_are_none(text: str) -> None:
    assert not claims_nodes(text)


def test_metastases_are_denied_by_what_is_said_of_them_alone() -> None:
    denied = ("No metastases.", "Metastases are absent.", "Metastases: none", "A mass with no metastases.")
    assert not any(map(claims_spread, denied))
    seen = ("Liver metastases without necrosis.", "No ascites, but peritoneal carcinomatosis.")
    assert all(map(claims_spread, seen))
    assert sites_in("Liver metastases without lung metastases") == {"liver"}


def test_a_pathology_report_that_denies_something_else_still_has_its_tumor() -> None:
    report = "Adenocarcinoma of the pancreas without perineural invasion, margins negative."
    case = Case(0, "a", "a", Path("a.nii.gz"), None, "No tumor.", report)

    def told(malignant: bool) -> list[str]:
        pathology = Pathology(malignant=malignant, organ="pancreas", conclusion=report)
        found = Extraction(features=features("No tumor.", None), pathology=pathology)
        return [fault.kind for fault in check_extraction(found, case)]

    assert told(malignant=True) == []
    assert told(malignant=False) == ["wrong_malignancy"]
