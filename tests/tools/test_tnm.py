"""AJCC 8 stage groups against the facts file, and TNM statements read from text."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tumorchain_agent.tools.ajcc import applies_to, possible_stages
from tumorchain_agent.tools.organs import FIVE
from tumorchain_agent.tools.tnm import check, criteria, parse_tnm, primary_organ, stage_group

TABLES = [
    ("liver", "liver", "stage", None),
    ("pancreas", "pancreas", "stage", None),
    ("stomach", "stomach", "stage_clinical", None),
    ("colorectum", "colon", "stage", None),
    ("esophagus", "esophagus", "stage_clinical_squamous", "squamous"),
    ("esophagus", "esophagus", "stage_clinical_adeno", "adenocarcinoma"),
]
COMBINATIONS = [
    (organ, entry, table, histology, *values)
    for organ, entry, table, histology in TABLES
    for values in itertools.product(
        *([name for name in criteria(organ, axis) if name != "T0"] for axis in ("T", "N", "M"))
    )
]


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    return dict(json.loads((shared / "facts/ajcc8_tnm_five_organs.json").read_text()))


def from_facts(rows: list[list[str]], values: tuple[str, ...]) -> str | None:
    """First row whose cells, as regular expressions, match: written apart from the code under test."""
    for *cells, stage in rows:
        patterns = [
            ".*" if cell == "any" else re.sub(r"(\d)-(\d)", r"[\1-\2]", cell) + "[a-d]?" for cell in cells
        ]
        if all(re.fullmatch(pattern, value) for pattern, value in zip(patterns, values, strict=True)):
            return stage
    return None


@pytest.mark.parametrize(
    ("organ", "entry", "table", "histology", "t", "n", "m"),
    COMBINATIONS,
    ids=["-".join(filter(None, (each[0], each[3], *each[4:]))) for each in COMBINATIONS],
)
def test_every_combination_has_the_stage_of_the_facts(
    facts: dict[str, Any], organ: str, entry: str, table: str, histology: str | None, t: str, n: str, m: str
) -> None:
    expected = from_facts(facts[entry][table], (t, n, m))
    assert stage_group(organ, t, n, m, histology=histology) == expected
    assert bool(check(organ, t, n, m, histology=histology)) == (expected is None)


def test_pathological_stages_of_the_stomach_are_those_of_the_facts(facts: dict[str, Any]) -> None:
    table = facts["stomach"]["stage_pathological"]
    for t, row in table.items():
        for n, stage in row.items() if t != "M1" else ():
            assert stage_group("stomach", t, n, "M0", basis="pathological") == stage
    assert stage_group("stomach", "T1a", "N0", "M1", basis="pathological") == table["M1"]


@pytest.mark.parametrize(("organ", "entry"), sorted({(organ, entry) for organ, entry, *_ in TABLES}))
def test_categories_and_criteria_are_those_of_the_facts(
    facts: dict[str, Any], organ: str, entry: str
) -> None:
    assert criteria(organ, "T") == {"T0": "no primary tumour found", **facts[entry]["T"]}
    assert criteria(organ, "N") == facts[entry]["N"]
    assert criteria(organ, "M") == facts[entry]["M"]
    assert applies_to(organ)[0] == facts[entry]["applies_to"]


def test_the_data_names_its_sources() -> None:
    folder = Path(__file__).resolve().parents[2] / "tools" / "data"
    data = json.loads((folder / "ajcc8.json").read_text(encoding="utf-8"))
    assert set(data["organs"]) == set(FIVE)
    assert any("VistA" in source for source in data["sources"])


@pytest.mark.parametrize(
    ("values", "stage"),
    [
        (("pancreas", "T1", "N0", "M0"), "IA"),
        (("pancreas", "TX", "N2", "M0"), "III"),
        (("pancreas", "T1", "NX", "M1"), "IV"),
        (("pancreas", "TX", "N0", "M0"), None),
        (("liver", "T1", "N0", "M0"), "I"),
        (("liver", "T3", "N1", "MX"), "IV"),
        (("colorectum", "T3", "N1", "M1"), "IV"),
        (("colorectum", "T4", "N0", "M0"), "II"),
        (("stomach", "T4", "N0", "M0"), None),
        (("esophagus", "T2", "N0", "M0"), "II"),
        (("esophagus", "T1", "N1", "M0"), None),
        (("pancreas", "T4b", "N0", "M0"), None),
        (("kidney_left", "T1", "N0", "M0"), None),
    ],
)
def test_an_open_category_gives_a_stage_only_where_all_it_may_be_agree(
    values: tuple[str, str, str, str], stage: str | None
) -> None:
    assert stage_group(*values) == stage


def test_stages_left_open_are_listed() -> None:
    assert possible_stages("stomach", "T4", "N0", "M0") == ("IIB", "IVA")


READ = [
    ("cT2 N0 M0", "pancreas", "T2 N0 M0 IB"),
    ("T2N1M0", "pancreas", "T2 N1 M0 IIB"),
    ("T4a, N2, M1b", "colorectum", "T4a N2 M1b IVB"),
    ("T3/N1a/M0", "colorectum", "T3 N1a M0 IIIB"),
    ("pT3pN2bpM0", "colorectum", "T3 N2b M0 IIIC"),
    ("cT1cN0cM0", "pancreas", "T1 N0 M0 IA"),
    ("cT2cN1M0", "pancreas", "T2 N1 M0 IIB"),
    ("cT1cN0M0", "pancreas", "T1c N0 M0 IA"),
    ("cT3 cN1c cM0", "colorectum", "T3 N1c M0 IIIB"),
    ("TisN0M0", "stomach", "Tis N0 M0 0"),
    ("t2n0m0", "liver", "T2 N0 M0 II"),
    ("T: T2; N: N0; M: M0; Stage: IB", "pancreas", "T2 N0 M0 IB"),
    ("T stage: 3, N category: N1, M stage M0", "colorectum", "T3 N1 M0 IIIB"),
    ("The tumour is T2 (3.1 cm).\nNodes are N1.\nM0.", "pancreas", "T2 N1 M0 IIB"),
    ("pT3N2M0", "stomach", "T3 N2 M0 IIIA"),
    ("cT3N2M0", "stomach", "T3 N2 M0 III"),
    ("Squamous cell carcinoma, T2 N1 M0", "esophagus", "T2 N1 M0 II"),
    ("Adenocarcinoma, T2 N1 M0", "esophagus", "T2 N1 M0 III"),
    ("T2N0M0, stage 1B", "pancreas", "T2 N0 M0 IB"),
    ("T2N0M0 (IB)", "pancreas", "T2 N0 M0 IB"),
    ("T3N1M0, stage III", "colorectum", "T3 N1 M0 IIIB"),
    ("stage IIB", "pancreas", "TX NX MX IIB"),
    ("TX N2 M0", "pancreas", "TX N2 M0 III"),
    ("T1a, that is T1, N0, M0", "liver", "T1a N0 M0 IA"),
    ("Bright on T1- and T2-weighted images; metal at T12, T4 vertebra intact", "liver", "TX NX MX None"),
    ("Nothing to stage.", "liver", "TX NX MX None"),
    ("", "liver", "TX NX MX None"),
    ("T2 N0 M0", "kidney_left", "T2 N0 M0 None"),
    ("T3 N1, multiple liver metastases", "pancreas", "T3 N1 M1 IV"),
    ("Metastases to the liver.", "colorectum", "TX NX M1 IV"),
    ("T2 N1, metastatic to bone", "liver", "T2 N1 M1 IVB"),
    ("T3 N1, no liver metastases", "pancreas", "T3 N1 MX None"),
    ("Suspicious for hepatic metastases", "stomach", "TX NX MX None"),
]


@pytest.mark.parametrize(("text", "organ", "expected"), READ, ids=[each[0][:50] for each in READ])
def test_a_consistent_statement_is_read_without_a_flag(text: str, organ: str, expected: str) -> None:
    tnm = parse_tnm(text, organ)
    assert f"{tnm.t} {tnm.n} {tnm.m} {tnm.stage}" == expected
    assert tnm.flags == ()
    assert tnm.primary_organ == organ


FLAGGED = [
    ("T4b N0 M0", "pancreas", "T4b N0 M0 None", "T4b is no AJCC 8 category for the pancreas"),
    ("T2 N3 M0", "liver", "T2 N3 M0 None", "N3 is no AJCC 8 category for the liver"),
    ("T5 N0 M0", "liver", "T5 N0 M0 None", "T5 is no AJCC 8 category"),
    ("T2N0M2", "stomach", "T2 N0 M2 None", "M2 is no AJCC 8 category"),
    ("Tis N1 M0", "pancreas", "Tis N1 M0 None", "no combination"),
    ("T3 N0 M0, stage III", "pancreas", "T3 N0 M0 III", "states stage III; .* is stage IIA"),
    ("T3 N0 M0 (IIB)", "pancreas", "T3 N0 M0 IIB", "is stage IIA"),
    ("T2 or T3, N0 M0", "pancreas", "TX N0 M0 None", "T2 and T3"),
    ("T1-2 N0 M0", "stomach", "TX N0 M0 None", "T1 and T2"),
    ("T2 N0 M0. Conclusion: T3 N0 M0.", "pancreas", "TX N0 M0 None", "T2 and T3"),
    ("Above 4 cm it were T3. So: T2 N0 M0.", "pancreas", "T2 N0 M0 IB", "T2 is taken, from its full"),
    ("N0 or N1, T2, M0", "liver", "T2 NX M0 None", "N0 and N1"),
    ("T2 N0 M0, stage IB or stage IIA", "pancreas", "T2 N0 M0 IB", "stage IB and stage IIA"),
    ("T3N1M0 with liver metastases", "pancreas", "T3 N1 M0 IIB", "M0 and liver metastases"),
    ("T3N1M0, liver metastases", "liver", "T3 N1 M0 IVA", "M1 of another primary"),
    ("cT2 N0 M0, later pT3", "stomach", "T2 N0 M0 I", "mixes clinical"),
    ("Gastric lymphoma, T2 N0 M0", "stomach", "T2 N0 M0 I", "names lymphoma"),
    ("Intrahepatic cholangiocarcinoma, T2 N0 M0", "liver", "T2 N0 M0 II", "names cholangiocarcinoma"),
]


@pytest.mark.parametrize(
    ("text", "organ", "expected", "flag"), FLAGGED, ids=[each[0][:50] for each in FLAGGED]
)
def test_what_cannot_be_right_is_flagged_and_not_corrected(
    text: str, organ: str, expected: str, flag: str
) -> None:
    tnm = parse_tnm(text, organ)
    assert f"{tnm.t} {tnm.n} {tnm.m} {tnm.stage}" == expected
    assert any(re.search(flag, each) for each in tnm.flags), tnm.flags


def test_each_part_that_is_missing_has_its_reason() -> None:
    reasons = parse_tnm("A lesion.", "pancreas").reasons
    for part in ("TX", "NX", "MX"):
        assert any(reason.startswith(f"{part}:") for reason in reasons)
    assert (
        "MX: liver metastases are named as possible only."
        in parse_tnm("Possible liver metastases, T2 N0.", "pancreas").reasons
    )


def test_categories_after_treatment_are_not_staged_with_the_clinical_table() -> None:
    tnm = parse_tnm("ypT3N2M0", "stomach")
    assert (tnm.t, tnm.stage) == ("T3", None)
    assert any("post-treatment" in reason for reason in tnm.reasons)


def test_stages_that_depend_on_what_the_text_leaves_open_are_named() -> None:
    assert any("IIB or IVA" in reason for reason in parse_tnm("T4 N0 M0", "stomach").reasons)
    assert any("II or IIB" in reason for reason in parse_tnm("T2 N0 M0", "esophagus").reasons)


@pytest.mark.parametrize(
    ("text", "organ"),
    [
        ("Pancreatic ductal adenocarcinoma with liver metastases.", "pancreas"),
        ("Adenocarcinoma of the sigmoid colon.", "colorectum"),
        ("Hepatocellular carcinoma in segment VII.", "liver"),
        ("HCC.", "liver"),
        ("Carcinoma of the gastroesophageal junction", "esophagus"),
        ("No gastric cancer. Colon cancer.", "colorectum"),
        ("Gastric cancer or pancreatic cancer.", None),
        ("Liver metastatic tumor", None),
        ("Normal liver.", None),
    ],
)
def test_the_primary_organ_is_the_one_named_as_seat_of_a_cancer(text: str, organ: str | None) -> None:
    assert primary_organ(text) == organ
    assert parse_tnm(text).primary_organ == organ


def test_without_a_primary_organ_the_categories_are_kept_unchecked() -> None:
    tnm = parse_tnm("T2 N3 M0, stage II")
    assert (tnm.t, tnm.n, tnm.m, tnm.stage, tnm.flags) == ("T2", "N3", "M0", "II", ())
    assert any("no primary organ" in reason for reason in tnm.reasons)
