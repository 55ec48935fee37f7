"""The two reports of a phantom, from the same truth: what a radiologist dictates, and what a pathologist writes."""

from __future__ import annotations

import numpy as np

from tumorchain_agent.tools.tnm import stage_group
from tumorchain_agent.training.phantom import wording as W
from tumorchain_agent.training.phantom.patient import ORGANS, Truth

_TAG = 20260401
_PLACES = {
    "liver": ("in the liver", "of the liver"),
    "lung": ("in the lung bases", "of both lung bases"),
    "peritoneum": ("of the peritoneum", "along the peritoneum"),
}
_DISEASE = {
    "liver": "hepatocellular carcinoma",
    "pancreas": "ductal adenocarcinoma of the pancreas",
    "stomach": "adenocarcinoma of the stomach",
    "colorectum": "adenocarcinoma of the colon",
    "esophagus": "squamous-cell carcinoma of the esophagus",
}
"""The disease that the staging rules in use are for."""
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def clinical_stage(truth: Truth) -> str | None:
    """Stage group of the truth, by the table; phantoms of the esophagus are squamous-cell carcinomas."""
    histology = "squamous" if truth.organ == "esophagus" else None
    return stage_group(str(truth.organ), str(truth.t), str(truth.n), str(truth.m), histology=histology)


def radiology_report(truth: Truth) -> str:
    """Technique, findings and impression, worded by the patient's seed; nothing of pathology."""
    rng = _rng(truth, 0)
    scan = W.pick(rng, ("CT of the abdomen", "Abdominal CT"))
    phase = "without contrast" if truth.phase == "non-contrast" else f"{truth.phase} phase"
    found = _tumor(truth, rng) if truth.organ else []
    found += [W.benign(truth.mimics, rng)] if truth.mimics else []
    healthy = [o for o in ORGANS if o not in truth.abnormal_organs]
    rest = _unremarkable(healthy, truth, rng)
    found = [*found, rest] if rng.random() < 0.6 else [rest, *found]
    return f"{scan}, {phase}. Findings: {' '.join(found)} Impression: {W.verdict(truth, rng)}."


def pathology_report(truth: Truth) -> str:
    """Disease, nodes, TNM with stage group, worded by the patient's seed; or the absence of disease."""
    rng = _rng(truth, 1)
    if truth.organ is None:
        return f"Pathology: {W.tnm(truth, rng)}."
    disease = _DISEASE[truth.organ]
    parts = [f"{W.capital(disease)}, {length(truth.size_mm, rng)}.", _involved(truth.nodes, rng)]
    if rng.random() < 0.3:
        parts.reverse()
    stage = W.pick(rng, ("Stage {stage}.", "Stage group {stage}.", "This is stage {stage}."))
    return f"{' '.join(parts)} Pathology: {W.tnm(truth, rng)}. {stage.format(stage=clinical_stage(truth))}"


def length(size_mm: float, rng: np.random.Generator) -> str:
    """A diameter in mm or cm."""
    return f"{size_mm:.0f} mm" if rng.random() < 0.5 else f"{size_mm / 10:.1f} cm"


def _rng(truth: Truth, report: int) -> np.random.Generator:
    return np.random.default_rng([_TAG, report, truth.seed])


def _number(count: int, rng: np.random.Generator) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) and rng.random() < 0.5 else str(count)


def _tumor(truth: Truth, rng: np.random.Generator) -> list[str]:
    largest = "up to " if truth.count > 1 else W.pick(rng, ("", "measuring "))
    found = [W.capital(W.mass(truth, largest + length(truth.size_mm, rng), rng)) + "."]
    found += [W.invades(truth.invaded, rng)] if truth.invaded else []
    found += [W.pushes(truth.compresses, rng)] if truth.compresses else []
    found.append(_nodes(truth.nodes, rng))
    if truth.sites:
        where = " and ".join(W.pick(rng, _PLACES[site]) for site in truth.sites)
        many = "Metastasis" if truth.metastases == 1 else "Metastases"
        found.append(f"{many} {where} ({_number(truth.metastases, rng)} in all).")
    else:
        found.append(W.pick(rng, ("No metastases.", "No distant metastasis.")))
    return found


def _nodes(count: int, rng: np.random.Generator) -> str:
    if not count:
        return W.pick(rng, ("No enlarged lymph nodes.", "Lymph nodes are not enlarged."))
    nodes = "node" if count == 1 else "nodes"
    return f"{W.capital(_number(count, rng))} enlarged regional lymph {nodes}."


def _involved(count: int, rng: np.random.Generator) -> str:
    nodes = "node" if count == 1 else "nodes"
    if not count:
        return W.pick(rng, ("Lymph nodes are free of tumor.", "No lymph node is involved."))
    return W.capital(f"{_number(count, rng)} regional lymph {nodes} involved.")


def _unremarkable(organs: list[str], truth: Truth, rng: np.random.Generator) -> str:
    harmed = {each.split(":")[0] for each in truth.mimics}
    names = [W.spoken(organ, rng) for organ in rng.permutation(organs).tolist() if organ not in harmed]
    if not names:
        return "No further finding."
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{W.capital(W.listing(names))} {verb} {W.pick(rng, ('unremarkable', 'normal', 'free of masses'))}."
    )
