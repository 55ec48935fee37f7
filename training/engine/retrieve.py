"""The part of the knowledge graph that a case needs (paper 2.2): what its findings name, and one step on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tumorchain_agent.tools.ajcc import AXES
from tumorchain_agent.training.engine.features import Features, Pathology
from tumorchain_agent.training.engine.knowledge import KnowledgeGraph, Measured, Triple

SMALL_MM = 20.0


def measured_of(features: Features) -> Measured:
    """What a CT report measures; what it doesn't state is left open."""
    lesion, nodes, spread = features.lesion, features.nodes, features.spread
    number = 0 if nodes.status == "none" else nodes.number
    sites = 0 if spread.status == "none" else (len(set(spread.sites)) or None)
    return Measured(
        size_mm=lesion.size_mm if lesion else None,
        count=lesion.count if lesion else None,
        nodes=number,
        sites=sites,
        peritoneum="peritoneum" in spread.sites if spread.sites else None,
        vascular=features.neighbors.vascular,
        invasion=bool(features.neighbors.invaded),
        deposits=False,
    )


def measured_by(pathology: Pathology) -> Measured:
    """What a pathology report measures."""
    return Measured(size_mm=pathology.size_mm, nodes=pathology.nodes)


def retrieve(graph: KnowledgeGraph, features: Features, limit: int) -> tuple[Triple, ...]:
    """At most ``limit`` triples, those first that the case's own words name; in the graph's order.

    Without a tumor: what the benign findings are taken for.
    """
    organs = [features.lesion.organ] if features.lesion else sorted({each.organ for each in features.benign})
    measured = measured_of(features)
    scored: list[tuple[int, int, Triple]] = []
    for organ in organs:
        if organ not in graph.stages:
            continue
        triples = graph.of(organ)
        named = set(_entities(features))
        open_categories = {name for axis in AXES for name in graph.possible(organ, axis, measured)}
        reached = {t.tail for t in triples if t.head in named and t.category == "findings"}
        for index, triple in enumerate(triples):
            score = _score(triple, named, reached, open_categories, features)
            if score:
                scored.append((-score, index, triple))
    best = sorted(scored, key=lambda each: each[:2])[:limit]
    return tuple(triple for _, _, triple in sorted(best, key=lambda each: (each[2].organ, each[1])))


def _score(
    triple: Triple, named: set[str], reached: set[str], open_categories: set[str], features: Features
) -> int:
    if triple.category == "stages":
        categories = re.findall(r"[TNM]\w+", triple.head)
        return int(
            features.lesion is not None and all(_is_open(each, open_categories) for each in categories)
        )
    if triple.category == "criteria":
        return 4 * int(features.lesion is not None and triple.head in open_categories)
    if triple.relation == "adjacent_to":
        return 3 * int(triple.tail in {*features.neighbors.invaded, *features.neighbors.displaced})
    if triple.head in named or triple.tail in named:
        return 5
    if triple.relation == "arises_in":
        return 4 * int(features.lesion is not None)
    if triple.head in reached:
        return 2
    return 0


def _is_open(rule: str, categories: set[str]) -> bool:
    return any(name.startswith(rule.partition("-")[0]) for name in categories) or "-" in rule


def _entities(features: Features) -> Iterator[str]:
    lesion = features.lesion
    if lesion:
        found = (
            lesion.location,
            lesion.shape,
            lesion.margin,
            lesion.density,
            lesion.count,
            lesion.enhancement,
        )
        yield from (each for each in found if each)
        if lesion.size_mm is not None and lesion.size_mm < SMALL_MM:
            yield "mass under 2 cm"
    if features.nodes.status == "present":
        yield "enlarged lymph nodes"
    yield from (each.lower() for each in features.clinical.history)
    for benign in features.benign:
        name = benign.finding.lower()
        yield name
        yield {"liver": "hepatic", "pancreas": "pancreatic"}.get(benign.organ, benign.organ) + f" {name}"
    yield from (f"{site} metastases" for site in features.spread.sites)
