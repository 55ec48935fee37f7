"""The calibrator's mechanical part: does a chain follow from the features, step by step (paper 11.1, v)?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from tumorchain_agent.records import Record
from tumorchain_agent.tools.ajcc import AXES
from tumorchain_agent.tools.organs import FIVE, Mention, match_organs
from tumorchain_agent.training.engine.denial import claimed, denied
from tumorchain_agent.training.engine.faults import Fault
from tumorchain_agent.training.engine.features import Features, FiveOrgan, Lesion, OrganName, Pathology
from tumorchain_agent.training.engine.grounding import (
    DENIED,
    INVADES,
    MASS,
    NODES,
    PUSHES,
    SPREAD,
    claims_nodes,
    claims_spread,
    numbers_in,
    sites_in,
)
from tumorchain_agent.training.engine.knowledge import KnowledgeGraph, Triple
from tumorchain_agent.training.engine.retrieve import measured_of
from tumorchain_agent.training.engine.terms import CLAUSE, read_sizes, read_terms

Line = Annotated[str, StringConstraints(min_length=3, max_length=4000)]
_ORDER: Final = ("finding", "impression", "pathology")
_BENIGN: Final = re.compile(r"\b(?:benign|cysts?|pseudocysts?|pancreatitis|inflammation)\b", re.I)
_DENIED_MASS: Final = re.compile(
    r"\b(?:no|without an?y?|without)\s+(?:\w+\s+){0,2}?(?:mass|tumou?r|lesion|malignan|cancer)", re.I
)
_RULES: Final = re.compile(r"\b(?:(?:is|are) defined|by definition|criteri\w+)\b", re.I)
CATEGORY: Final = {
    "T": re.compile(r"(?<![A-Za-z0-9])[cpyar]{0,3}T(is|[0-4][a-d]?|X)(?=[^A-Za-z0-9]|[cp]?N|$)(?!-?\s?weighted)"),
    "N": re.compile(r"(?:(?<![A-Za-z0-9])|(?<=[0-9a-dsX]))[cp]?N([0-3][a-c]?|X)(?=[^A-Za-z0-9]|[cp]?M|$)"),
    "M": re.compile(r"(?:(?<![A-Za-z0-9])|(?<=[0-9a-cX]))[cp]?M([01][a-d]?|X)(?![A-Za-z0-9])"),
}  # fmt: skip


class Step(Record):
    """One step of a chain, with the triples that it rests on."""

    kind: Literal["finding", "impression", "pathology"]
    text: Line
    organs: tuple[OrganName, ...] = ()
    triples: tuple[str, ...] = ()


class Chain(Record):
    """Findings → impression → pathology, and what they come to."""

    steps: tuple[Step, ...] = Field(min_length=2, max_length=40)
    organ: FiveOrgan | None
    """Of the tumor; ``None`` without one."""
    malignant: bool
    t: str | None = None
    """Only where the CT report can tell; ``None`` otherwise."""
    n: str | None = None
    m: str | None = None
    conclusion: Line


def categories_in(text: str) -> dict[str, set[str]]:
    """T, N and M categories that a text states."""
    return {axis: {axis + each for each in pattern.findall(text)} for axis, pattern in CATEGORY.items()}


def check_chain(
    chain: Chain,
    features: Features,
    graph: KnowledgeGraph,
    shown: Sequence[Triple],
    specimen: Pathology | None = None,
) -> list[Fault]:
    """All that contradicts the features, the knowledge graph or itself.

    A chain that the summarizer has sent back may take T and N from the ``specimen``, where CT and pathology differ.
    """
    faults = [*_form(chain, shown), *_verdict(chain, features), *_staging(chain, features, graph, specimen)]
    stated = {"T": chain.t, "N": chain.n, "M": chain.m}
    for text in (*(step.text for step in chain.steps), chain.conclusion):
        faults += check_text(text, features)
        for axis, found in categories_in(text).items():
            if found - {stated[axis]} and not _RULES.search(text):
                faults.append(
                    _fault(
                        "chain_contradicts_itself", f"{text[:80]!r} states another {axis} than {axis.lower()}"
                    )
                )
    return [*faults, *_complete(chain, features)]


def _fault(kind: str, message: str) -> Fault:
    return Fault(kind=kind, message=message)


def _form(chain: Chain, shown: Sequence[Triple]) -> Iterator[Fault]:
    kinds = [_ORDER.index(step.kind) for step in chain.steps]
    if kinds != sorted(kinds) or not {0, 1} <= set(kinds):
        yield _fault("disordered", "steps must go from findings to impression, and have both")
    known = {each.id for each in shown}
    cited = {triple for step in chain.steps for triple in step.triples}
    if cited - known:
        yield _fault(
            "unknown_triple", f"{', '.join(sorted(cited - known)[:3])} is none of the triples that were shown"
        )
    if known and not cited:
        yield _fault("untraced", "no step names the triples that it rests on")
    texts = [step.text for step in chain.steps]
    if len(set(texts)) < len(texts):
        yield _fault("repeated_step", "a step stands there twice")


def _verdict(chain: Chain, features: Features) -> Iterator[Fault]:
    organ = features.lesion.organ if features.lesion else None
    if chain.organ != organ:
        yield _fault("wrong_organ", f"the tumor's organ is {organ}, not {chain.organ}")
    if chain.malignant != (organ is not None):
        yield _fault("wrong_malignancy", f"malignant is {chain.malignant}, unlike the report")


def _staging(
    chain: Chain, features: Features, graph: KnowledgeGraph, specimen: Pathology | None
) -> Iterator[Fault]:
    stated = {axis: getattr(chain, axis.lower()) for axis in AXES}
    if chain.organ is None:
        if any(stated.values()):
            yield _fault("invented_tnm", "without a tumor there is no TNM")
        return
    measured = measured_of(features)
    against = {"T": "t_contradicts_size", "N": "n_contradicts_nodes", "M": "m_contradicts_sites"}
    for axis in AXES:
        value = stated[axis]
        if value is None:
            continue
        if value not in graph.criteria[chain.organ][axis]:
            yield _fault("unknown_category", f"{value} is no {axis} category of the {chain.organ}")
            continue
        known = specimen is not None and value == {"T": specimen.t, "N": specimen.n}.get(axis)
        fits = (value,) if known else graph.possible(chain.organ, axis, measured)
        if value not in fits or (axis == "T" and _more_urgent(value, fits, features)):
            yield _fault(
                against[axis],
                f"{value} does not fit what the report measures; {', '.join(fits) or 'none'} would",
            )
        elif not known and axis != "T" and _status(axis, features) == _opposite(value):
            yield _fault(against[axis], f"{value} does not fit what the report sees")
        elif axis == "T" and not any(each.when for each in (graph.criteria[chain.organ]["T"][value],)):
            yield _fault(
                "t_not_assessable",
                f"{value} of the {chain.organ} is depth of growth, which the report can't tell; give null",
            )
    if all(stated.values()) and not any(
        graph.stage(chain.organ, *(str(stated[axis]) for axis in AXES), histology=histology)
        for histology in graph.stages[chain.organ]
    ):
        yield _fault(
            "impossible_tnm", f"{' '.join(str(each) for each in stated.values())} is no combination of AJCC 8"
        )


def _more_urgent(value: str, fits: Sequence[str], features: Features) -> bool:
    """Invasion that the report sees leaves only T4 of a hollow organ."""
    hollow = features.lesion is not None and features.lesion.organ in ("stomach", "colorectum", "esophagus")
    return hollow and bool(features.neighbors.invaded) and not value.startswith("T4")


def _opposite(value: str) -> str:
    return "present" if value.endswith("0") else "none"


def _status(axis: str, features: Features) -> str:
    return features.nodes.status if axis == "N" else features.spread.status


def check_text(text: str, features: Features) -> list[Fault]:
    """What a text says against the features, clause by clause."""
    found: list[Fault] = []
    for clause in CLAUSE.split(text):
        if _RULES.search(clause):
            continue
        if NODES.search(clause):
            found += _about_nodes(clause, features)
        if SPREAD.search(clause):
            found += _about_spread(clause, features)
        if not NODES.search(clause) and not SPREAD.search(clause):
            found += _about_tumor(clause, features)
    return found


def _about_nodes(clause: str, features: Features) -> Iterator[Fault]:
    nodes, seen = features.nodes, claims_nodes(clause)
    if nodes.status == "not stated":
        if seen:
            yield _fault("invented_nodes", f"the report does not state lymph nodes: {clause[:80]!r}")
    elif seen != (nodes.status == "present"):
        yield _fault("contradicts_nodes", f"of lymph nodes the report says {nodes.status}: {clause[:80]!r}")
    part = clause[max(0, NODES.search(clause).start() - 40) :]  # type: ignore[union-attr]
    numbers = numbers_in(part) if not SPREAD.search(clause) else set()
    if seen and nodes.number is not None and numbers and nodes.number not in numbers:
        yield _fault("contradicts_nodes", f"the report counts {nodes.number} lymph nodes: {clause[:80]!r}")


def _about_spread(clause: str, features: Features) -> Iterator[Fault]:
    spread, seen = features.spread, claims_spread(clause)
    if seen != (spread.status == "present") and spread.status != "not stated":
        yield _fault(
            "contradicts_metastasis", f"of metastases the report says {spread.status}: {clause[:80]!r}"
        )
    elif seen and spread.status != "present":
        yield _fault("contradicts_metastasis", f"the report has no metastases: {clause[:80]!r}")
    stray = sites_in(clause) - set(spread.sites) - ({features.lesion.organ} if features.lesion else set())
    if seen and stray:
        yield _fault(
            "contradicts_metastasis",
            f"the report has no metastases of {', '.join(sorted(stray))}: {clause[:80]!r}",
        )


def _about_tumor(clause: str, features: Features) -> Iterator[Fault]:
    lesion, mentions = features.lesion, match_organs(clause)
    if lesion is None:
        if any(claimed(MASS, clause)) and not _BENIGN.search(clause):
            yield _fault("tumor_invented", f"the report sees no tumor: {clause[:80]!r}")
        return
    yield from _organs(clause, features, lesion, mentions)
    if _BENIGN.search(clause):
        return
    yield from _invasion(clause, features, lesion, mentions)
    for term in read_terms(clause):
        known = getattr(lesion, term.attribute)
        if known is None and not term.denied:
            yield _fault(
                f"invented_{term.attribute}", f"the report does not say {term.value}: {clause[:80]!r}"
            )
        elif known is not None and (term.value == known) == term.denied:
            yield _fault(f"contradicts_{term.attribute}", f"the report says {known}: {clause[:80]!r}")
    for size in read_sizes(clause):
        if lesion.size_mm is None or abs(size - lesion.size_mm) > 1.0:
            yield _fault("contradicts_size", f"the report says {lesion.size_mm} mm: {clause[:80]!r}")


def _organs(clause: str, features: Features, lesion: Lesion, mentions: Sequence[Mention]) -> Iterator[Fault]:
    named, some_denied = {each.organ for each in mentions}, DENIED.search(clause) is not None
    if _DENIED_MASS.search(clause) and (lesion.organ in named or not named):
        yield _fault("tumor_denied", f"the report sees a tumor of the {lesion.organ}: {clause[:80]!r}")
    stray = named - features.known_organs() - set(features.spread.sites)
    if stray and not some_denied:
        yield _fault(
            "invented_organ", f"the report has nothing in {', '.join(sorted(stray))}: {clause[:80]!r}"
        )
    claims = any(claimed(MASS, clause)) and not _BENIGN.search(clause)
    if claims and named & set(FIVE) and lesion.organ not in named and not INVADES.search(clause):
        yield _fault("wrong_organ", f"the tumor's organ is {lesion.organ}: {clause[:80]!r}")
    if some_denied or _BENIGN.search(clause) or lesion.location is None:
        return
    parts = {each.substructure for each in mentions if each.organ == lesion.organ and each.substructure}
    if parts and lesion.location not in parts:
        sides = any("left" in str(each) or "right" in str(each) for each in parts)
        kind = (
            "wrong_side"
            if sides and ("left" in lesion.location or "right" in lesion.location)
            else "wrong_location"
        )
        yield _fault(kind, f"the report says {lesion.location}: {clause[:80]!r}")


def _invasion(
    clause: str, features: Features, lesion: Lesion, mentions: Sequence[Mention]
) -> Iterator[Fault]:
    invades, pushes = INVADES.search(clause), PUSHES.search(clause)
    if invades and not denied(clause, invades):
        after = {each.organ for each in mentions if each.start >= invades.start()} - {lesion.organ}
        if after - set(features.neighbors.invaded):
            yield _fault("invented_invasion", f"the report has no such invasion: {clause[:80]!r}")
    if invades and denied(clause, invades) and features.neighbors.invaded and not pushes:
        yield _fault("contradicts_invasion", f"the report has invasion: {clause[:80]!r}")
    if pushes:
        moved = {each.organ for each in mentions} - {lesion.organ}
        if moved - set(features.neighbors.displaced):
            yield _fault("invented_displacement", f"the report has no such displacement: {clause[:80]!r}")


def _complete(chain: Chain, features: Features) -> Iterator[Fault]:
    """Findings must say all that the report says of the tumor: later answers rest on them."""
    text = " ".join(step.text for step in chain.steps if step.kind == "finding")
    lesion = features.lesion
    if lesion is None:
        return
    said = {(each.attribute, each.value) for each in read_terms(text)}
    missing = [
        a for a in ("shape", "margin", "density", "count") if (v := getattr(lesion, a)) and (a, v) not in said
    ]
    if lesion.location and lesion.location not in {each.substructure for each in match_organs(text)}:
        missing.append("location")
    if lesion.size_mm and not any(abs(each - lesion.size_mm) <= 1.0 for each in read_sizes(text)):
        missing.append("size")
    missing += ["nodes"] if features.nodes.status != "not stated" and not NODES.search(text) else []
    missing += ["metastases"] if features.spread.status != "not stated" and not SPREAD.search(text) else []
    if missing:
        yield _fault("incomplete", f"the findings leave out {', '.join(missing)}")
