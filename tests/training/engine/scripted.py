"""Experts that know a phantom's truth: what each would answer without a mistake, worked out from the truth alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tumorchain_agent.tools.organs import FIVE, MERGE, ORGANS, SUBSTRUCTURES, display_name
from tumorchain_agent.training.engine.cases import Case
from tumorchain_agent.training.phantom.patient import Truth
from tumorchain_agent.training.phantom.reports import clinical_stage, pathology_report, radiology_report

OTHERS: dict[str, tuple[str, ...]] = {
    "shape": ("round", "lobulated", "irregular"),
    "boundary": ("well-defined", "ill-defined", "spiculated"),
    "density": ("hypodense", "hyperdense", "heterogeneous"),
    "count": ("solitary", "multiple"),
    "node": ("N0", "N1", "N2", "N3"),
    "metastasis": ("M0", "M1", "M1a", "M1c"),
    "tumor": ("T1", "T2", "T3", "T4a", "T4b", "T1a", "T1b", "T1c"),
    "others": ("under 2 cm", "2 to 4 cm", "over 4 cm"),
}
MIMICS = {"cyst": "simple cyst", "pseudocyst": "pseudocyst", "pancreatitis": "pancreatitis"}


@dataclass(frozen=True)
class Ask:
    """What an expert is asked: a request, read."""

    expert: str
    case: str
    given: dict[str, Any]
    turns: tuple[str, ...]
    """All user and assistant texts."""
    temperature: float
    model: str

    @property
    def again(self) -> bool:
        """It was asked before and sent back."""
        return len(self.turns) > 1 or "Review 1:" in self.turns[0]


def read_ask(request: dict[str, Any]) -> Ask:
    turns = tuple(str(each["content"]) for each in request["messages"] if each["role"] != "system")
    expert, case, given, *_ = turns[0].split("\n")
    return Ask(
        expert.removeprefix("Expert: "),
        case.removeprefix("Case: "),
        json.loads(given),
        turns,
        float(request.get("temperature") or 0.0),
        str(request["model"]),
    )


def case_key(truth: Truth, pathology: str | None = None) -> str:
    report = pathology or pathology_report(truth)
    return Case(0, "", "", Path(), None, radiology_report(truth), report).key


@dataclass
class Experts:
    """All experts of a cohort, by their cases."""

    truths: dict[str, Truth] = field(default_factory=dict)
    pathology: dict[str, str] = field(default_factory=dict)
    """Reports that stand in the place of a case's own."""

    @classmethod
    def of(cls, truths: Sequence[Truth]) -> Experts:
        return cls({case_key(truth): truth for truth in truths})

    def answer(self, ask: Ask) -> dict[str, Any]:
        truth = self.truths[ask.case]
        match ask.expert:
            case "extractor":
                found = extraction(truth)
                if ask.case in self.pathology:
                    found["pathology"] = read_pathology(self.pathology[ask.case])
                return found
            case "reasoner":
                return chain(truth, ask.given)
            case "mentor":
                return continuation(truth, ask.given)
            case "intern":
                return {**answer(truth), "thoughts": "by the steps"}
            case "calibrator":
                return {"consistent": True, "issues": []}
            case "summarizer":
                return {"consistent": True, "pairs": [pair(truth, each) for each in ask.given["wanted"]]}
        raise AssertionError(ask.expert)


def table(numbers: tuple[int, ...]) -> list[str]:
    return list(dict.fromkeys(ORGANS[int(MERGE[number])] for number in numbers))


def sentence(report: str, pattern: str) -> str:
    found = [each for each in re.split(r"(?<=[.])\s+", report) if re.search(pattern, each)]
    return found[0] if found else ""


def extraction(truth: Truth) -> dict[str, Any]:
    report, pathology = radiology_report(truth), pathology_report(truth)
    size = f"(?:{truth.size_mm:.0f} mm|{re.escape(f'{truth.size_mm / 10:.1f}')} cm)"
    nodes, spread = sentence(report, "ymph node"), sentence(report, "etasta")
    beside = sentence(report, "grows into|nvades|pushes|displaced")
    ill = truth.organ is not None
    lesion = {
        "organ": truth.organ, "location": truth.substructure, "shape": truth.shape, "margin": truth.boundary,
        "density": truth.density, "count": "solitary" if truth.count == 1 else "multiple", "size_mm": truth.size_mm,
        "enhancement": None, "quote": sentence(report, size),
    }  # fmt: skip
    features: dict[str, Any] = {
        "clinical": {"age": None, "sex": None, "history": [], "phase": truth.phase},
        "lesion": lesion if ill else None,
        "neighbors": {
            "invaded": table(truth.invaded), "displaced": table(truth.compresses), "vascular": None, "quote": beside,
        },
        "nodes": {
            "status": "present" if truth.nodes else "none" if ill else "not stated",
            "number": truth.nodes if ill else None, "quote": nodes,
        },
        "spread": {
            "status": "present" if truth.sites else "none" if ill else "not stated", "sites": list(truth.sites),
            "number": truth.metastases if ill else None, "quote": spread,
        },
        "benign": [
            {"organ": organ, "finding": MIMICS[kind], "quote": sentence(report, "enign")}
            for organ, kind in (each.split(":") for each in truth.mimics)
        ],
        "conclusion": sentence(report, "Impression:"),
    }  # fmt: skip
    stage = clinical_stage(truth) if ill else None
    return {
        "features": features,
        "pathology": {
            "malignant": ill, "organ": truth.organ, "histology": None, "size_mm": truth.size_mm or None,
            "nodes": truth.nodes if ill else None, "t": truth.t, "n": truth.n, "m": truth.m, "stage": stage,
            "conclusion": pathology,
        },
    }  # fmt: skip


DISEASES = {
    "hepatocellular": "liver",
    "of the pancreas": "pancreas",
    "of the stomach": "stomach",
    "of the colon": "colorectum",
    "of the esophagus": "esophagus",
}


def read_pathology(report: str) -> dict[str, Any]:
    """A pathology report whose truth isn't at hand."""
    organ = next((organ for words, organ in DISEASES.items() if words in report.lower()), None)
    found = {axis: re.search(rf"{axis}(?:\d[a-d]?|is)", report) for axis in "TNM"}
    size = re.search(r"([\d.]+) (mm|cm)", report)
    stage = re.search(r"tage (?:group )?([0IV]+[ABC]?)", report)
    return {
        "malignant": organ is not None,
        "organ": organ,
        "conclusion": report,
        "size_mm": float(size[1]) * (10 if size[2] == "cm" else 1) if size else None,
        **{axis.lower(): each[0] if each else None for axis, each in found.items()},
        "stage": stage[1] if stage else None,
    }


def section(truth: Truth) -> str:
    return part_name(str(truth.organ), str(truth.substructure))


def part_name(organ: str, part: str) -> str:
    if organ == "esophagus":
        return part if part.startswith("gastro") else f"{part} esophagus"
    return part if organ == "colorectum" else f"{part} of the {display_name(organ)}"


def mass(truth: Truth) -> str:
    count = "solitary" if truth.count == 1 else "multiple"
    noun, size = ("mass", "") if truth.count == 1 else ("masses", "up to ")
    return (
        f"{count.capitalize()} {truth.density} {truth.shape} {truth.boundary} {noun} of the {section(truth)}, "
        f"{size}{truth.size_mm:.0f} mm."
    )


def findings(truth: Truth) -> list[str]:
    if truth.organ is None:
        texts = ["No mass is seen."]
    else:
        texts = [mass(truth)]
        listed = [
            " and ".join(f"the {display_name(o)}" for o in table(n))
            for n in (truth.invaded, truth.compresses)
        ]
        texts += [f"It invades {listed[0]}."] if truth.invaded else []
        texts += [f"It displaces {listed[1]}."] if truth.compresses else []
        texts.append(
            f"{truth.nodes} enlarged regional lymph nodes." if truth.nodes else "No enlarged lymph nodes."
        )
        sites = " and ".join(f"the {site}" for site in truth.sites)
        texts.append(f"Metastases of {sites}." if sites else "No distant metastases.")
    for each in truth.mimics:
        organ, kind = each.split(":")
        texts.append(f"A {MIMICS[kind]} of the {organ}, which is benign.")
    return texts


def measured_t(truth: Truth) -> str | None:
    """T where the CT report tells it."""
    return truth.t if truth.organ in ("liver", "pancreas") else "T4b" if truth.invaded else None


def answer(truth: Truth) -> dict[str, Any]:
    return {"organ": truth.organ, "malignant": truth.organ is not None, "n": truth.n, "m": truth.m}


def chain(truth: Truth, given: dict[str, Any]) -> dict[str, Any]:
    cited = [each.split("]")[0].removeprefix("[") for each in given["triples"]][:3]
    steps: list[dict[str, Any]] = [{"kind": "finding", "text": text} for text in findings(truth)]
    ill = truth.organ is not None
    verdict = f"This is cancer of the {display_name(str(truth.organ))}." if ill else "No malignancy."
    steps.append({"kind": "impression", "text": verdict, "triples": cited})
    stated = [each for each in (measured_t(truth), truth.n, truth.m) if each]
    steps += [{"kind": "pathology", "text": f"By what is measured {', '.join(stated)}."}] if stated else []
    return {"steps": steps, **answer(truth), "t": measured_t(truth), "conclusion": verdict}


def continuation(truth: Truth, given: dict[str, Any]) -> dict[str, Any]:
    whole = chain(truth, given)
    return {**whole, "steps": whole["steps"][len(given["steps"]) :]}


def pair(truth: Truth, wanted: dict[str, Any]) -> dict[str, Any]:
    subtask, asked = wanted["subtask"], wanted.get("organ")
    right = short(truth, subtask, asked)
    form = wanted["form"]
    return {
        "subtask": subtask, "form": form, "question": question(subtask, asked, form), "answer": right,
        "options": options(truth, subtask, right, asked) if form == "choice" else None,
        "reasoning": reasoning(truth, subtask),
    }  # fmt: skip


def question(subtask: str, asked: str | None, form: str) -> str:
    texts = {
        "organ": "Which organ holds a tumor, if any?", "segment": "Which part of its organ holds the tumor?",
        "tumor_position": f"Is there a tumor in the {display_name(asked)}?" if asked else "",
        "shape": "Which shape has the tumor?", "boundary": "How is the margin of the tumor?",
        "density": "Which density has the tumor?", "count": "How many tumors are there?",
        "others": "How large is the tumor?", "tumor": "Which T category?", "node": "Which N category?",
        "metastasis": "Which M category?", "report": "Write a report of this CT.",
    }  # fmt: skip
    return f"Choose. {texts[subtask]}" if form == "choice" else texts[subtask]


def ill_organs(truth: Truth) -> set[str]:
    return {str(truth.organ)} | ({"liver"} if "liver" in truth.sites else set()) if truth.organ else set()


def short(truth: Truth, subtask: str, asked: str | None) -> str:
    if subtask == "tumor_position":
        return "yes, a tumor" if asked in ill_organs(truth) else "no tumor"
    if truth.organ is None:
        return "no tumor"
    size = truth.size_mm
    name = display_name(truth.organ)
    return {
        "organ": name, "segment": section(truth), "shape": str(truth.shape), "boundary": str(truth.boundary),
        "density": str(truth.density), "count": "solitary" if truth.count == 1 else "multiple",
        "others": "under 2 cm" if size < 20 else "2 to 4 cm" if size <= 40 else "over 4 cm",
        "tumor": str(truth.t), "node": str(truth.n), "metastasis": str(truth.m),
        "report": f"{truth.t} {truth.n} {truth.m}, {name}",
    }[subtask]  # fmt: skip


def options(truth: Truth, subtask: str, right: str, asked: str | None) -> list[str]:
    if subtask == "tumor_position":
        return [right, "no tumor" if right.startswith("yes") else "yes, a tumor"]
    if subtask == "organ":
        others = [*(display_name(organ) for organ in FIVE), "no tumor"]
    elif subtask == "segment":
        organ = str(truth.organ)
        others = [part_name(organ, part) for part in SUBSTRUCTURES[organ]]
    else:
        others = list(OTHERS[subtask])
    return [right, *[each for each in others if each != right][:3]]


def reasoning(truth: Truth, subtask: str) -> str:
    if subtask == "report":
        tnm = f"{truth.t} {truth.n} {truth.m}" if truth.organ else "TNM does not apply"
        verdict = f"cancer of the {display_name(truth.organ)}" if truth.organ else "no malignancy"
        return f"Findings: {' '.join(findings(truth))} Impression: {verdict}. Pathology: {tnm}."
    if subtask in ("tumor", "node", "metastasis"):
        value = {"tumor": truth.t, "node": truth.n, "metastasis": truth.m}[subtask]
        return f"{' '.join(findings(truth))} Pathology gives {value}."
    return findings(truth)[0]
