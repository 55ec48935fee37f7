"""The diagnostic knowledge graph of the five organs (paper 11.2): loaded from YAML, validated, and asked.

A triple is entity – relation – entity with an evidence level and its source. TNM criteria carry conditions on what a
report measures, so that a category can be checked; stage rules are rows as in AJCC 8, the first that matches wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tumorchain_agent.errors import DataError
from tumorchain_agent.records import Record
from tumorchain_agent.tools.ajcc import AXES, Axis
from tumorchain_agent.tools.organs import FIVE
from tumorchain_agent.training.data.explain import explain

Level = Literal["A", "B", "C"]
CATEGORIES: Final = (
    "anatomy",
    "findings",
    "impressions",
    "histopathology",
    "risk_factors",
    "criteria",
    "stages",
)
MIN_TRIPLES: Final = 60
"""Of an organ; stage rules not counted."""
RELATIONS: Final[dict[str, frozenset[str]]] = {
    "anatomy": frozenset({
        "part_of", "adjacent_to", "supplied_by", "drains_to", "continues_as", "layer_of", "contains", "lacks", "merges",
    }),
    "findings": frozenset({"suggests", "typical_of", "requires_exclusion_of", "is_missed_by"}),
    "impressions": frozenset({
        "arises_in", "subtype_of", "mimics", "spreads_to", "is_compatible_with", "is_staged_as",
    }),
    "histopathology": frozenset({
        "histology_of", "is_a", "subtype_of", "pattern_of", "precursor_of", "has_other_table_than", "decides_t_of",
        "raises_category_of", "explains", "is_staged_for",
    }),
    "risk_factors": frozenset({"risk_factor_for"}),
    "criteria": frozenset({"is_defined_by"}),
    "stages": frozenset({"is_stage"}),
}  # fmt: skip
TOLERANCE_MM: Final = 0.5
"""Reports round lengths, so that limits are met within this."""


class Triple(Record):
    """Entity – relation – entity."""

    id: str
    """``organ-`` and a hash of the rest: an entry keeps it when others come or go."""
    organ: str
    category: str
    head: str
    relation: str
    tail: str
    level: Level
    source: str
    """A key of the graph's sources."""

    def text(self) -> str:
        """``[pancreas-1a2b3c] hypodense – typical of – pancreatic ductal adenocarcinoma (A)``"""
        return f"[{self.id}] {self.head} – {self.relation.replace('_', ' ')} – {self.tail} ({self.level})"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Limits = tuple[float | None, float | None]


class Condition(_Strict):
    """What must hold of measured things; what is not known may hold."""

    size_mm: Limits | None = None
    count: Literal["solitary", "multiple"] | None = None
    nodes: Limits | None = None
    sites: Limits | None = None
    peritoneum: bool | None = None
    vascular: bool | None = None
    invasion: bool | None = None
    deposits: bool | None = None


class Criterion(_Strict):
    """A T, N or M category: in words, and as alternatives of which one must hold."""

    text: str
    when: tuple[Condition, ...] = ()


class _File(_Strict):
    anatomy: tuple[str, ...]
    findings: tuple[str, ...]
    impressions: tuple[str, ...]
    histopathology: tuple[str, ...]
    risk_factors: tuple[str, ...]
    criteria: dict[Axis, dict[str, Criterion]]
    stages: dict[str, tuple[tuple[str, str, str, str], ...]] = Field(min_length=1)


@dataclass(frozen=True)
class Measured:
    """What a report measures of a tumor, as far as it is known."""

    size_mm: float | None = None
    count: str | None = None
    nodes: int | None = None
    sites: int | None = None
    peritoneum: bool | None = None
    vascular: bool | None = None
    invasion: bool | None = None
    deposits: bool | None = None
    slack_mm: float = TOLERANCE_MM
    """Sizes meet limits within this."""


@dataclass(frozen=True)
class KnowledgeGraph:
    """All five organs."""

    triples: tuple[Triple, ...]
    criteria: Mapping[str, Mapping[Axis, Mapping[str, Criterion]]]
    stages: Mapping[str, Mapping[str, tuple[tuple[str, str, str, str], ...]]]
    sources: Mapping[str, str]
    id: str
    """Hash of the content."""

    @cached_property
    def by_id(self) -> dict[str, Triple]:
        return {each.id: each for each in self.triples}

    def of(self, organ: str) -> tuple[Triple, ...]:
        return tuple(each for each in self.triples if each.organ == organ)

    def neighbors(self, organ: str) -> tuple[str, ...]:
        """Organs that touch an organ, as far as the graph knows."""
        near = [
            t.tail
            for t in self.of(organ)
            if t.relation in ("adjacent_to", "continues_as") and t.head == organ
        ]
        return tuple(dict.fromkeys(near))

    def stage(self, organ: str, t: str, n: str, m: str, *, histology: str | None = None) -> str | None:
        """Clinical stage group; ``None`` where no rule matches, or the histologies' rules disagree."""
        tables = self.stages[organ]
        chosen = [rows for name, rows in tables.items() if histology and name[:5] == histology[:5].lower()]
        found = {_first(rows, (t, n, m)) for rows in chosen or tables.values()}
        return found.pop() if len(found) == 1 else None

    def possible(self, organ: str, axis: Axis, measured: Measured) -> tuple[str, ...]:
        """Categories that what is measured leaves open."""
        return tuple(
            name
            for name, criterion in self.criteria[organ][axis].items()
            if not criterion.when or any(_may_hold(each, measured) for each in criterion.when)
        )


def _first(rows: Iterable[tuple[str, str, str, str]], values: tuple[str, str, str]) -> str | None:
    for t, n, m, stage in rows:
        if all(_fits(rule, value) for rule, value in zip((t, n, m), values, strict=True)):
            return stage
    return None


def _fits(rule: str, value: str) -> bool:
    """``T1`` fits T1 and T1b, ``N1-3`` fits N1 to N3b, ``any`` fits all."""
    if rule == "any":
        return True
    axis, _, upper = rule[0], *rule[1:].partition("-")[1:]
    lower = rule[1:].partition("-")[0]
    if upper:
        return value[0] == axis and lower <= value[1:2] <= upper
    return value == rule or (value.startswith(rule) and value[len(rule) :].isalpha())


def _may_hold(condition: Condition, measured: Measured) -> bool:
    for name, wanted in condition:
        known = getattr(measured, name)
        if wanted is None or known is None:
            continue
        if isinstance(wanted, tuple):
            slack = measured.slack_mm if name == "size_mm" else 0.0
            low, high = wanted
            if (low is not None and known < low - slack) or (high is not None and known > high + slack):
                return False
        elif known != wanted:
            return False
    return True


def load_knowledge(folder: Path | None = None) -> KnowledgeGraph:
    """The graph in the package, or one in a folder of the same make. DataError names what is wrong with it."""
    import yaml

    place = resources.files(__package__).joinpath("knowledge") if folder is None else folder
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    texts: dict[str, str] = {}
    try:
        for name in ("sources", *FIVE):
            texts[name] = place.joinpath(f"{name}.yaml").read_text(encoding="utf-8")
        values: dict[str, Any] = {name: yaml.load(text, loader) for name, text in texts.items()}
        files = {organ: _File.model_validate(values[organ]) for organ in FIVE}
    except OSError as error:
        raise DataError(
            f"{error.filename} can't be read; a knowledge graph has sources.yaml and one for each organ"
        ) from error
    except yaml.YAMLError as error:
        raise DataError(
            f"knowledge graph: not YAML ({' '.join(str(error).split())[:200]}); mend it"
        ) from error
    except ValidationError as error:
        raise DataError(f"knowledge graph: {explain(error)}") from error
    graph = KnowledgeGraph(
        triples=tuple(itertools.chain.from_iterable(_triples(organ, file) for organ, file in files.items())),
        criteria={organ: file.criteria for organ, file in files.items()},
        stages={organ: file.stages for organ, file in files.items()},
        sources={str(key): str(value) for key, value in dict(values["sources"]).items()},
        id=blake2b("\0".join(texts.values()).encode(), digest_size=8).hexdigest(),
    )
    problems = list(validate(graph))
    if problems:
        raise DataError(f"knowledge graph: {'; '.join(problems[:5])} ({len(problems)} problems); mend them")
    return graph


def _triples(organ: str, file: _File) -> Iterator[Triple]:
    for category in CATEGORIES[:5]:
        for line in getattr(file, category):
            parts = [part.strip() for part in line.split("|")]
            if len(parts) != 5 or not all(parts):
                raise DataError(
                    f"knowledge graph: {organ} {line!r} is not head | relation | tail | level | source"
                )
            yield _triple(organ, category, *parts)
    for axis in AXES:
        for name, criterion in file.criteria.get(axis, {}).items():
            yield _triple(organ, "criteria", name, "is_defined_by", criterion.text, "A", "ajcc8")
    for histology, rows in file.stages.items():
        for *values, stage in rows:
            head = " ".join(value for value in values if value != "any")
            of = "" if histology == "any" else f" ({histology})"
            yield _triple(organ, "stages", head + of, "is_stage", stage, "A", "ajcc8")


def _triple(
    organ: str, category: str, head: str, relation: str, tail: str, level: str, source: str
) -> Triple:
    digest = blake2b("\0".join((organ, head, relation, tail)).encode(), digest_size=4).hexdigest()
    try:
        return Triple.model_validate(
            {"id": f"{organ}-{digest}", "organ": organ, "category": category, "head": head, "relation": relation,
             "tail": tail, "level": level, "source": source}
        )  # fmt: skip
    except ValidationError as error:
        raise DataError(f"knowledge graph: {organ} {head} | {relation} | {tail}: {explain(error)}") from error


def validate(graph: KnowledgeGraph) -> Iterator[str]:
    """What is wrong with a graph, one sentence each."""
    seen: set[str] = set()
    for each in graph.triples:
        where = f"{each.organ} {each.head} {each.relation} {each.tail}"
        if each.id in seen:
            yield f"{where} stands there twice"
        seen.add(each.id)
        if each.relation not in RELATIONS[each.category]:
            yield f"{where}: {each.relation} is no relation of {each.category}"
        if each.source not in graph.sources:
            yield f"{where}: source {each.source} is not in sources.yaml"
    for organ in FIVE:
        triples = graph.of(organ)
        count = sum(each.category != "stages" for each in triples)
        if count < MIN_TRIPLES:
            yield f"{organ} has {count} triples, fewer than {MIN_TRIPLES}"
        yield from (
            f"{organ} has no {name}" for name in CATEGORIES if name not in {t.category for t in triples}
        )
        stray = _stray(organ, [t for t in triples if t.category not in ("criteria", "stages")])
        yield from (f"{organ}: {name} hangs together with nothing" for name in stray)


def _stray(organ: str, triples: list[Triple]) -> list[str]:
    """Entities that no way leads to from the organ."""
    near: dict[str, set[str]] = {}
    for each in triples:
        near.setdefault(each.head, set()).add(each.tail)
        near.setdefault(each.tail, set()).add(each.head)
    reached, rest = {organ}, [organ]
    while rest:
        fresh = near.get(rest.pop(), set()) - reached
        reached |= fresh
        rest += fresh
    return sorted(set(near) - reached)
