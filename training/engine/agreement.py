"""The summarizer's mechanical part: does the chain agree with pathology, and pathology with itself (paper 11.1, vi)?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tumorchain_agent.tools.ajcc import AXES, Axis, agree, has_table, possible_stages
from tumorchain_agent.training.engine.faults import Fault
from tumorchain_agent.training.engine.features import Extraction, Features, Pathology
from tumorchain_agent.training.engine.knowledge import KnowledgeGraph
from tumorchain_agent.training.engine.logic import Chain
from tumorchain_agent.training.engine.retrieve import measured_by, measured_of

SIZE_SHARE: Final = 0.3
SIZE_MM: Final = 5.0
"""A specimen may differ so much from the CT, whichever is more."""


def check_reports(found: Extraction, graph: KnowledgeGraph) -> list[Fault]:
    """Where the two reports can't both be right, or pathology contradicts itself; no reasoning mends that."""
    if found.pathology is None:
        return []
    return [*_itself(found.pathology, graph), *_against_ct(found.features, found.pathology, graph)]


def check_differences(found: Extraction, graph: KnowledgeGraph) -> list[Fault]:
    """Where CT and pathology differ as they do in practice: T by a size within the tolerance, nodes that CT missed.

    These are counted and set no case aside; a chain that contradicts pathology is sent back for them.
    """
    features, pathology = found.features, found.pathology
    if pathology is None or features.lesion is None or features.lesion.organ not in graph.criteria:
        return []
    faults, measured = [], measured_of(features)
    axes: tuple[Axis, ...] = ("T", "N")
    for axis in axes:
        value = getattr(pathology, axis.lower())
        open_ = graph.possible(features.lesion.organ, axis, measured)
        if value in graph.criteria[features.lesion.organ][axis] and value not in open_:
            text = f"{value} in pathology, the CT report alone would leave {', '.join(open_)}"
            faults.append(_fault(f"differs_{axis.lower()}", text))
    return faults


def _fault(kind: str, message: str) -> Fault:
    return Fault(kind=f"pathology_{kind}", message=message)


def _itself(pathology: Pathology, graph: KnowledgeGraph) -> Iterator[Fault]:
    organ = pathology.organ
    stated = {axis: getattr(pathology, axis.lower()) for axis in AXES}
    if organ is None or pathology.malignant is False:
        if any(stated.values()):
            yield _fault("contradicts_itself", "there is a TNM without a tumor of one of the five organs")
        return
    measured = measured_by(pathology)
    for axis, value in stated.items():
        if value is None or value == f"{axis}X":
            continue
        if value not in graph.criteria[organ][axis]:
            if not any(name.startswith(value) for name in graph.criteria[organ][axis]):
                yield _fault("unknown_category", f"{value} is no {axis} category of the {organ}")
        elif value not in graph.possible(organ, axis, measured):
            yield _fault(
                f"{axis.lower()}_contradicts_itself",
                f"{value} does not fit what the pathology report measures",
            )
    if all(stated.values()) and not any(value.endswith("X") for value in stated.values() if value):
        t, n, m = (str(each) for each in stated.values())
        yield from _stage(organ, (t, n, m), pathology.stage, graph)


def _stage(
    organ: str, tnm: tuple[str, str, str], stated: str | None, graph: KnowledgeGraph
) -> Iterator[Fault]:
    """The stage group of either basis will do: reports give the clinical as well as the pathological one."""
    of_graph = {graph.stage(organ, *tnm, histology=h) for h in graph.stages[organ]}
    known = {each for each in of_graph if each}
    known |= {*possible_stages(organ, *tnm), *possible_stages(organ, *tnm, basis="pathological")}
    if not known:
        yield _fault("impossible_tnm", f"{' '.join(tnm)} is no combination of AJCC 8")
    elif stated is None or any(agree(stated, each) for each in known):
        return
    elif has_table(organ, "pathological") or not _may_be_pathological(stated, tnm[0], tnm[2]):
        yield _fault(
            "stage_contradicts_tnm", f"stage {stated} is not that of its TNM, {' or '.join(sorted(known))}"
        )


def _may_be_pathological(stated: str, t: str, m: str) -> bool:
    """What holds of every table, where there is none for pathology: 0 is Tis, IVB is M1."""
    if m.startswith("M1"):
        return agree(stated, "IVB")
    return (stated == "0") == (t == "Tis") and stated != "IVB"


def _against_ct(features: Features, pathology: Pathology, graph: KnowledgeGraph) -> Iterator[Fault]:
    lesion = features.lesion
    if pathology.malignant is not None and pathology.malignant != (lesion is not None):
        yield _fault(
            "disagrees_malignancy", f"malignant is {pathology.malignant}; the CT report says otherwise"
        )
        return
    if lesion is None:
        return
    if pathology.organ is not None and pathology.organ != lesion.organ:
        yield _fault(
            "disagrees_organ",
            f"the CT report has a tumor of the {lesion.organ}, pathology of the {pathology.organ}",
        )
        return
    slack = max(SIZE_MM, SIZE_SHARE * (lesion.size_mm or 0.0))
    if lesion.size_mm and pathology.size_mm and abs(lesion.size_mm - pathology.size_mm) > slack:
        yield _fault(
            "disagrees_size", f"{pathology.size_mm} mm in pathology, {lesion.size_mm} mm in the CT report"
        )
    if lesion.organ not in graph.criteria:
        return
    measured = replace(measured_of(features), slack_mm=slack)
    for axis in AXES:
        value = getattr(pathology, axis.lower())
        open_ = graph.possible(lesion.organ, axis, measured)
        missed = axis == "N" and value and value > min(open_, default="")  # nodes that CT does not see
        if value and value in graph.criteria[lesion.organ][axis] and value not in open_ and not missed:
            yield _fault(
                f"disagrees_{axis.lower()}",
                f"{value} does not fit the CT report, which leaves {', '.join(open_)}",
            )
    t = str(pathology.t or "")
    if lesion.organ in ("stomach", "colorectum", "esophagus") and t and t != "TX":
        if features.neighbors.invaded and not t.startswith("T4"):
            yield _fault(
                "disagrees_t",
                f"{t}, yet the CT report sees invasion of {', '.join(features.neighbors.invaded)}",
            )
        elif t == "T4b" and not features.neighbors.invaded:
            yield _fault("disagrees_t", "T4b, yet the CT report sees no invasion of a neighbor")


def check_agreement(chain: Chain, pathology: Pathology | None) -> list[Fault]:
    """Where the chain says something else than pathology: the chain is sent back."""
    if pathology is None:
        return []
    faults = []
    if pathology.malignant is not None and chain.malignant != pathology.malignant:
        faults.append(_fault("disagrees", f"pathology: malignant is {pathology.malignant}"))
    if pathology.organ is not None and chain.organ != pathology.organ:
        faults.append(_fault("disagrees", f"pathology: a tumor of the {pathology.organ}"))
    for axis in AXES:
        said, known = getattr(chain, axis.lower()), getattr(pathology, axis.lower())
        if said and known and not (said.startswith(known) or known.startswith(said) or known.endswith("X")):
            faults.append(_fault("disagrees", f"pathology: {known}, the chain: {said}"))
    return faults
