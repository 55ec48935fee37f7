"""T, N and M of every phantom follow from what is drawn, by the rules in ../shared/facts and by nothing else."""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training.phantom.truths import sampled_truths
from tumorchain_agent.training.phantom.categories import NODE_CUTS, t_category
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.reports import clinical_stage

Rules = dict[str, Any]
Criteria = dict[str, str]
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
_DEPTH = (
    (2.0, r"^muscularis propria$"),
    (8.0, r"subserosa|through muscularis propria|^adventitia"),
    (99.0, r"visceral peritoneum|^pleura"),
)
"""Growth beyond the wall in mm, below which a wall tumour is in the layer that the rule's words name."""


@pytest.fixture(scope="module")
def rules(shared: Path) -> Rules:
    facts: Rules = json.loads((shared / "facts/ajcc8_tnm_five_organs.json").read_text())
    return facts | {"colorectum": facts["colon"]}


def holds(words: str, value: float) -> bool:
    """Whether a number is what a criterion such as ``>2 and <=4 cm``, ``1-2``, ``>=7`` or ``0 nodes`` asks for."""
    spans = re.findall(r"(\d+\.?\d*)-(\d+\.?\d*)", words)
    if spans:
        return any(float(low) <= value <= float(high) for low, high in spans)
    limits = re.findall(r"(<=|>=|<|>)(\d+\.?\d*)", words)
    if limits:
        return all(_COMPARE[sign](value, float(limit)) for sign, limit in limits)
    number = re.match(r"\d+", words)
    if number:
        return value == float(number[0])
    return value == 0 if words == "none" else "any" in words and value >= 1


def t_by_rules(truth: Truth, rules: Rules) -> str:
    criteria: Criteria = rules[str(truth.organ)]["T"]
    cm = truth.size_mm / 10
    if truth.organ == "liver":
        several = [name for name, words in criteria.items() if "multiple" in words]
        if truth.count > 1:
            large = [name for name in several if holds(re.search(r">\d", criteria[name])[0], cm)]  # type: ignore[index]
            most = [name for name in several if "at least one" in criteria[name]]
            return most[0] if most[0] in large else next(name for name in several if name not in most)
        alone = {name: words for name, words in criteria.items() if words.startswith("solitary,")}
        return next(name for name, words in alone.items() if holds(words.split(",")[1], cm))
    if truth.organ == "pancreas":
        sized = {name: words for name, words in criteria.items() if re.search(r"\d", words)}
        return next(name for name, words in sized.items() if holds(words.split("(")[0], cm))
    if truth.invaded:
        return next(name for name, words in criteria.items() if re.search(r"adjacent|aorta", words))
    layer = next(words for limit, words in _DEPTH if truth.reach_mm < limit)
    return next(name for name, words in criteria.items() if re.search(layer, words))


def n_by_rules(truth: Truth, rules: Rules) -> str:
    criteria: Criteria = {n: w for n, w in rules[str(truth.organ)]["N"].items() if "deposits" not in w}
    return next(name for name, words in criteria.items() if holds(words, truth.nodes))


def m_by_rules(truth: Truth, rules: Rules) -> str:
    criteria: Criteria = rules[str(truth.organ)]["M"]
    if not truth.sites:
        return next(name for name, words in criteria.items() if words == "none")
    if truth.organ != "colorectum":
        return next(name for name, words in criteria.items() if words == "distant")
    several = "^one organ" if len(truth.sites) == 1 else "^two or more"
    wanted = "^peritoneum" if "peritoneum" in truth.sites else several
    return next(name for name, words in criteria.items() if re.search(wanted, words))


def stage_by_rules(truth: Truth, rules: Rules) -> str | None:
    tables = rules[str(truth.organ)]
    rows = tables.get("stage") or tables.get("stage_clinical") or tables["stage_clinical_squamous"]

    def fits(rule: str, value: str) -> bool:
        if rule == "N1-3":
            return value[1] in "123"
        return rule == "any" or value.startswith(rule)

    tnm = (str(truth.t), str(truth.n), str(truth.m))
    return next((stage for *row, stage in rows if all(map(fits, row, tnm))), None)


def check(truth: Truth, rules: Rules) -> None:
    derived = (t_by_rules(truth, rules), n_by_rules(truth, rules), m_by_rules(truth, rules))
    assert (truth.t, truth.n, truth.m) == derived, truth
    stage = stage_by_rules(truth, rules)
    assert stage is not None, f"{derived} of the {truth.organ} has no stage group"
    assert clinical_stage(truth) == stage, truth


def test_truths_follow_the_rules(rules: Rules, seed: int) -> None:
    truths = [truth for truth in sampled_truths(seed, 25) if truth.organ]
    assert len(truths) > 20
    for truth in truths:
        check(truth, rules)


@pytest.mark.slow
def test_thousands_of_truths_follow_the_rules_and_reach_every_category(rules: Rules) -> None:
    truths = [truth for truth in sampled_truths(20261121, 2200) if truth.organ]
    assert len(truths) >= 2000
    for truth in truths:
        check(truth, rules)
    for organ in ORGANS:
        own = [truth for truth in truths if truth.organ == organ]
        nodes = Counter(truth.nodes for truth in own)
        for least, name in NODE_CUTS[organ]:
            assert nodes[least], f"{organ}: no patient has just the {least} nodes that make {name}"
            assert nodes[least - 1], f"{organ}: no patient is one node short of {name}"
        assert {truth.n for truth in own} == {"N0", *(name for _, name in NODE_CUTS[organ])}
        wanted = {"M0", "M1a", "M1b", "M1c"} if organ == "colorectum" else {"M0", "M1"}
        assert {truth.m for truth in own} == wanted
        assert {truth.t for truth in own} == {
            "liver": {"T1a", "T1b", "T2", "T3"},
            "pancreas": {"T1c", "T2", "T3"},
        }.get(organ, {"T2", "T3", "T4a", "T4b"})
    shares = Counter(truth.n == "N0" for truth in truths)
    assert 0.45 < shares[True] / len(truths) < 0.65
    assert 0.3 < sum(truth.m != "M0" for truth in truths) / len(truths) < 0.5
    for organ in ORGANS:
        several = [truth.count > 1 for truth in truths if truth.organ == organ]
        assert 0.25 < sum(several) / len(several) < 0.7, (
            f"{organ}: the count of tumors is nearly always the same"
        )


@pytest.mark.parametrize(
    ("organ", "size", "count", "wanted"),
    [
        ("liver", 20, 1, "T1a"), ("liver", 21, 1, "T1b"), ("liver", 50, 2, "T2"), ("liver", 51, 2, "T3"),
        ("pancreas", 20, 1, "T1c"), ("pancreas", 21, 1, "T2"), ("pancreas", 40, 1, "T2"), ("pancreas", 41, 1, "T3"),
    ],
)  # fmt: skip
def test_a_size_on_the_limit_belongs_to_the_lower_category(
    organ: str, size: float, count: int, wanted: str
) -> None:
    assert t_category(organ, size, count) == wanted


def test_sizes_are_whole_millimetres_so_that_a_report_can_state_them(seed: int) -> None:
    for truth in sampled_truths(seed, 10):
        assert truth.size_mm == round(truth.size_mm)
