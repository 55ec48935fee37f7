"""What comes out of the extractor, beside the exact truth of phantoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from pydantic import ValidationError

from tests.training.engine.making import config_for, made_up, write_cases
from tests.training.engine.scripted import Experts, extraction, table
from tests.training.engine.server import ModelServer, serving
from tumorchain_agent.training.data.files import Problem
from tumorchain_agent.training.engine.calls import open_caller
from tumorchain_agent.training.engine.cases import Case, read_cases
from tumorchain_agent.training.engine.experts import Desk, Tally
from tumorchain_agent.training.engine.features import Extraction
from tumorchain_agent.training.engine.grounding import check_extraction
from tumorchain_agent.training.engine.knowledge import load_knowledge
from tumorchain_agent.training.engine.pipeline import Engine, State
from tumorchain_agent.training.engine.store import open_store
from tumorchain_agent.training.engine.terms import read_sizes, read_terms
from tumorchain_agent.training.phantom.patient import Truth


def right(found: Extraction, truth: Truth) -> dict[str, bool]:
    """Field → whether it is the truth's."""
    features, pathology = found.features, found.pathology
    assert pathology is not None
    lesion = features.lesion
    told: dict[str, tuple[object, object]] = {
        "phase": (features.clinical.phase, truth.phase),
        "organ": (lesion.organ if lesion else None, truth.organ),
        "pathology organ": (pathology.organ, truth.organ),
        "malignant": (pathology.malignant, truth.organ is not None),
        "t": (pathology.t, truth.t),
        "n": (pathology.n, truth.n),
        "m": (pathology.m, truth.m),
        "sites": (set(features.spread.sites), set(truth.sites)),
        "invaded": (set(features.neighbors.invaded), set(table(truth.invaded))),
        "displaced": (set(features.neighbors.displaced), set(table(truth.compresses))),
        "benign": ({each.organ for each in features.benign}, {each.split(":")[0] for each in truth.mimics}),
    }
    if truth.organ:
        assert lesion is not None
        told |= {
            "location": (lesion.location, truth.substructure),
            "shape": (lesion.shape, truth.shape),
            "margin": (lesion.margin, truth.boundary),
            "density": (lesion.density, truth.density),
            "count": (lesion.count, "solitary" if truth.count == 1 else "multiple"),
            "size": (lesion.size_mm, truth.size_mm),
            "nodes": (features.nodes.number or 0, truth.nodes),
            "metastases": (features.spread.number or 0, truth.metastases),
        }
    return {name: a == b for name, (a, b) in told.items()}


def extract_all(truths: Sequence[Truth], folder: Path) -> list[Extraction]:
    cases = write_cases(folder / "cases.jsonl", truths)

    async def go(url: str) -> list[Extraction]:
        with open_store(folder) as store:
            async with open_caller(store) as caller:
                engine = Engine(config_for(cases, url), load_knowledge(), caller, folder)
                found = []
                for case in read_cases(cases):
                    assert not isinstance(case, Problem)
                    state = await engine.extract(State(case=case, desk=Desk(caller, Tally())))
                    found.append(state["extraction"])
                return found

    with serving(ModelServer(Experts.of(truths))) as server:
        return anyio.run(go, server.url)


def share_right(truths: Sequence[Truth], folder: Path) -> float:
    checks = [
        r for f, t in zip(extract_all(truths, folder), truths, strict=True) for r in right(f, t).values()
    ]
    print(f"{sum(checks)} of {len(checks)} fields of {len(truths)} phantoms are right")
    return sum(checks) / len(checks)


def test_what_is_extracted_from_reports_of_made_up_patients_is_their_truth(tmp_path: Path, seed: int) -> None:
    first = seed % 10**6
    assert share_right([made_up(number) for number in range(first, first + 30)], tmp_path) >= 0.99


def case(radiology: str, pathology: str | None = None) -> Case:
    return Case(0, "a", "a", Path("a.nii.gz"), None, radiology, pathology)


def test_a_report_without_pathology_gives_none_and_one_that_is_made_up_is_a_fault() -> None:
    truth = made_up(11, organ="liver")
    found = Extraction.model_validate(extraction(truth))
    kinds = {fault.kind for fault in check_extraction(found, case(found.features.conclusion))}
    assert {"invented_pathology", "unquoted"} <= kinds
    assert "lost_pathology" in {
        fault.kind for fault in check_extraction(found.model_copy(update={"pathology": None}), case("x", "y"))
    }


def test_synonyms_come_out_as_standard_terms_and_other_words_are_refused() -> None:
    values = extraction(made_up(11, organ="liver"))
    values["features"]["lesion"]["density"] = "Hypoattenuating"
    found = Extraction.model_validate(values)
    assert found.features.lesion is not None
    assert found.features.lesion.density == "hypodense"
    values["features"]["lesion"]["density"] = "dark"
    with pytest.raises(ValidationError, match="no standard term"):
        Extraction.model_validate(values)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("a mass, 5.3 cm", [53.0]),
        ("masses, up to 41 mm", [41.0]),
        ("under 2 cm", []),
        ("T2: over 2 cm, 4 cm at most", []),
        ("between 2 and 4 cm", []),
        ("measuring 12 mm and ill-defined", [12.0]),
    ],
)
def test_measured_sizes_are_told_from_limits(text: str, sizes: list[float]) -> None:
    assert read_sizes(text) == sizes


def test_terms_are_read_with_their_negation_and_not_from_clauses_about_nodes() -> None:
    text = "A rounded mass, not ill-defined. Lymph nodes, several and round."
    assert [(each.value, each.denied) for each in read_terms(text)] == [
        ("round", False),
        ("ill-defined", True),
    ]
