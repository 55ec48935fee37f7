"""The knowledge graph: whole, sourced, and of one mind with AJCC 8 for every T × N × M."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.training.engine.making import made_up
from tests.training.engine.scripted import extraction
from tumorchain_agent.errors import DataError
from tumorchain_agent.tools.ajcc import AXES, criteria, stage_group
from tumorchain_agent.tools.organs import FIVE, ORGANS, SUBSTRUCTURES
from tumorchain_agent.training.engine import knowledge
from tumorchain_agent.training.engine.features import Extraction
from tumorchain_agent.training.engine.knowledge import KnowledgeGraph, Measured, load_knowledge
from tumorchain_agent.training.engine.knowledge_picture import draw_knowledge
from tumorchain_agent.training.engine.retrieve import retrieve

HISTOLOGIES = {"esophagus": ("squamous", "adenocarcinoma")}
FACTS = {
    ("esophagus", "squamous"): ("esophagus", "stage_clinical_squamous"),
    ("esophagus", "adenocarcinoma"): ("esophagus", "stage_clinical_adeno"),
    ("stomach", None): ("stomach", "stage_clinical"),
    ("colorectum", None): ("colon", "stage"),
}
FOLDER = Path(knowledge.__file__).parent / "knowledge"


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return load_knowledge()


def combinations(organ: str) -> itertools.product[tuple[str, ...]]:
    return itertools.product(*([name for name in criteria(organ, axis) if name != "T0"] for axis in AXES))


@pytest.mark.parametrize("organ", FIVE)
def test_stage_rules_are_those_of_ajcc_for_every_combination(
    graph: KnowledgeGraph, shared: Path, organ: str
) -> None:
    facts = json.loads((shared / "facts/ajcc8_tnm_five_organs.json").read_text())
    for histology in HISTOLOGIES.get(organ, (None,)):
        entry, table = FACTS.get((organ, histology), (organ, "stage"))
        for t, n, m in combinations(organ):
            found = graph.stage(organ, t, n, m, histology=histology)
            assert found == stage_group(organ, t, n, m, histology=histology), (organ, t, n, m)
            assert found == from_facts(facts[entry][table], (t, n, m)), (organ, t, n, m)


def from_facts(rows: list[list[str]], values: tuple[str, ...]) -> str | None:
    for *cells, stage in rows:
        patterns = [
            ".*" if cell == "any" else re.sub(r"(\d)-(\d)", r"[\1-\2]", cell) + "[a-d]?" for cell in cells
        ]
        if all(re.fullmatch(pattern, value) for pattern, value in zip(patterns, values, strict=True)):
            return stage
    return None


@pytest.mark.parametrize("organ", FIVE)
def test_an_organ_has_sixty_triples_beside_its_stage_rules_of_all_kinds_and_all_its_parts(
    graph: KnowledgeGraph, organ: str
) -> None:
    triples = [each for each in graph.of(organ) if each.category != "stages"]
    assert len(triples) >= 60
    assert {each.category for each in triples} == set(knowledge.CATEGORIES) - {"stages"}
    assert {each.level for each in triples} == {"A", "B", "C"}
    parts = {each.head for each in triples if each.relation == "part_of"}
    assert parts >= set(SUBSTRUCTURES[organ])
    assert {axis: set(graph.criteria[organ][axis]) for axis in AXES} == {
        axis: set(criteria(organ, axis)) - {"T0"} for axis in AXES
    }


def test_neighbors_are_organs_of_table_10_or_parts(graph: KnowledgeGraph) -> None:
    for organ in FIVE:
        near = set(graph.neighbors(organ)) & set(ORGANS.values())
        assert len(near) >= 3, organ


@pytest.mark.parametrize(
    ("organ", "measured", "open_"),
    [
        ("pancreas", Measured(size_mm=30, vascular=False), {"Tis", "T2"}),
        ("pancreas", Measured(size_mm=30), {"Tis", "T2", "T4"}),
        ("liver", Measured(size_mm=30, count="solitary", vascular=False, invasion=False), {"T1b"}),
        ("liver", Measured(size_mm=60, count="multiple", vascular=False, invasion=False), {"T3"}),
        ("colorectum", Measured(invasion=False), {"Tis", "T1", "T2", "T3", "T4a"}),
    ],
)
def test_what_is_measured_leaves_some_categories_open(
    graph: KnowledgeGraph, organ: str, measured: Measured, open_: set[str]
) -> None:
    assert set(graph.possible(organ, "T", measured)) == open_


def test_a_case_gets_the_triples_that_its_words_name(graph: KnowledgeGraph) -> None:
    truth = made_up(7, organ="pancreas")
    features = Extraction.model_validate(extraction(truth)).features
    found = retrieve(graph, features, 40)
    assert {each.organ for each in found} == {"pancreas"}
    heads = {each.head for each in found}
    assert {truth.substructure, truth.shape, truth.density, truth.t} <= heads
    assert len(retrieve(graph, features, 5)) == 5
    assert retrieve(graph, features, 40) == found


def broken(tmp_path: Path, organ: str, old: str, new: str) -> Path:
    folder = tmp_path / "graph"
    shutil.copytree(FOLDER, folder)
    text = (folder / f"{organ}.yaml").read_text()
    assert old in text
    (folder / f"{organ}.yaml").write_text(text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("| supplied_by | portal vein | B | anatomy", "| feeds | portal vein | B | anatomy", "feeds is no relation"),
        ("| A | lirads", "| D | lirads", "level"),
        ("| A | lirads", "| A | hearsay", "hearsay is not in sources.yaml"),
        ("  - trabecular growth | pattern_of | hepatocellular carcinoma | B | who", "  - a | b", "head | relation"),
        ("cirrhosis | risk_factor_for | hepatocellular carcinoma", "cirrhosis | risk_factor_for | x", "nothing"),
        ("  - alcohol", "  - aflatoxin | risk_factor_for | hepatocellular carcinoma | B | iarc\n  - alcohol", "twice"),
        ("stages:", "stagings:", "stages is missing"),
    ],
)  # fmt: skip
def test_a_damaged_graph_is_refused_by_name(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)):
        load_knowledge(broken(tmp_path, "liver", old, new))


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sources\.yaml"):
        load_knowledge(tmp_path)


@pytest.mark.parametrize("organ", FIVE)
def test_the_picture_holds_every_entity_of_an_organ_and_the_disclaimer(
    graph: KnowledgeGraph, organ: str
) -> None:
    root = ElementTree.fromstring(draw_knowledge(graph, organ))
    texts = {str(each.text) for each in root.iter() if each.tag.endswith("text")}
    heads = {each.head for each in graph.of(organ) if each.category != "stages"} - {organ}
    assert {head for head in heads if len(head) < 42} <= texts
    assert any("not a medical device" in text for text in texts)


def test_ids_are_kept_when_others_come(graph: KnowledgeGraph, tmp_path: Path) -> None:
    line = "  - obesity | risk_factor_for | hepatocellular carcinoma | B | iarc\n  - alcohol"
    more: Any = load_knowledge(broken(tmp_path, "liver", "  - alcohol", line))
    assert set(graph.by_id) < set(more.by_id)
    assert more.id != graph.id
