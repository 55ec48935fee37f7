"""Cohorts of phantoms' truths as case files, and runs of the engine over them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from tumorchain_agent.tools.organs import SUBSTRUCTURES
from tumorchain_agent.training.engine.config import EngineConfig, Experts, Mics, ModelConfig
from tumorchain_agent.training.engine.runner import Finished, run_engine
from tumorchain_agent.training.engine.samples import Outcome
from tumorchain_agent.training.engine.store import open_store
from tumorchain_agent.training.phantom.categories import m_category, n_category, t_category
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.reports import pathology_report, radiology_report


def made_up(seed: int, *, organ: str | None = None, healthy: bool = False) -> Truth:
    """A truth such as phantoms have, drawn without painting the patient; for what needs reports and no scan."""
    rng = np.random.default_rng([4711, seed])
    kinds = ("liver:cyst", "pancreas:cyst", "pancreas:pseudocyst", "pancreas:pancreatitis")
    mimics = tuple(sorted(set(rng.choice(kinds, int(rng.integers(0, 2))).tolist())))
    empty = Truth(
        seed=seed, phase=str(rng.choice(("arterial", "portal venous", "delayed", "non-contrast"))), organ=None,
        substructure=None, size_mm=0.0, shape=None, boundary=None, density=None, count=0, nodes=0, metastases=0,
        t=None, n=None, m=None, invaded=(), abnormal_organs=(), z_range_mm=(0.0, 200.0), mimics=mimics,
    )  # fmt: skip
    if healthy or (organ is None and rng.random() < 0.2):
        return empty
    organ = organ or str(rng.choice(ORGANS))
    parts = {"liver": ("left lobe", "right lobe"), "esophagus": ("lower thoracic", "abdominal")}
    size, count = float(rng.integers(10, 75)), int(rng.choice((1, 1, 2, 3)))
    hollow = organ not in ("liver", "pancreas")
    invaded = (1,) if hollow and rng.random() < 0.2 else ()
    reach = float(rng.uniform(0, 12)) if hollow else 0.0
    nodes = int(rng.choice((0, 0, 1, 2, 3, 5, 8)))
    sites = tuple(
        sorted(set(rng.choice(("lung", "peritoneum", "liver"), int(rng.integers(0, 3))).tolist()) - {organ})
    )
    return replace(
        empty, organ=organ, substructure=str(rng.choice(parts.get(organ, SUBSTRUCTURES[organ][-3:]))), size_mm=size,
        shape=str(rng.choice(("round", "lobulated", "irregular"))), count=count, nodes=nodes, sites=sites,
        boundary=str(rng.choice(("well-defined", "ill-defined"))), metastases=2 * len(sites), invaded=invaded,
        density=str(rng.choice(("hypodense", "hyperdense", "heterogeneous"))),
        t=t_category(organ, size, count, reach, invaded), n=n_category(organ, nodes), m=m_category(organ, sites),
        abnormal_organs=(organ,), compresses=(5,) if organ == "stomach" and not invaded else (),
    )  # fmt: skip


def write_cases(path: Path, truths: Sequence[Truth], pathology: Mapping[int, str] | None = None) -> Path:
    """A file of cases as a hospital would bring them; there are no scans. ``pathology`` replaces reports by seed."""
    with path.open("w", encoding="utf-8") as file:
        for truth in truths:
            name = f"case-{truth.seed:06d}"
            line = {
                "id": name, "patient": name, "scan": f"scans/{name}.nii.gz", "radiology": radiology_report(truth),
                "pathology": (pathology or {}).get(truth.seed, pathology_report(truth)),
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    return path


def model(url: str, name: str = "scripted", **more: Any) -> ModelConfig:
    return ModelConfig(url=url, model=name, price_in=1.0, price_out=2.0, **more)


def config_for(
    cases: Path, url: str, *, mics: Mics | None = None, model_options: Any = None, **more: Any
) -> EngineConfig:
    options = dict(model_options or {})
    names = ("extractor", "reasoner", "calibrator", "summarizer")
    experts = Experts(**{name: model(url, f"scripted-{name}", **options) for name in names})
    return EngineConfig(cases=cases, experts=experts, mics=mics, **more)


def run(config: EngineConfig, out: Path) -> Finished:
    return anyio.run(run_engine, config, out)


def outcomes(out: Path) -> list[Outcome]:
    with open_store(out) as store:
        return [Outcome.model_validate_json(text) for text in store.outcomes()]
