"""What is said about a phantom: questions, the rounds that answer them, and the two reports.

A first round only names the organs worth a closer look; it commits to nothing, so that a later round can't copy
a verdict from it. The last round follows findings → impression → pathology.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.tools.tnm import stage_group
from tumorchain_agent.training.phantom.patient import ORGANS, Truth

QUESTIONS: dict[str, tuple[str, ...]] = {
    "organ": (
        "Is there a tumor, and in which organ?",
        "Which organ holds the tumor?",
        "Is there a tumor in this scan?",
        "Does this CT show a malignant mass, and where?",
        "Is there a tumor, and what is the TNM stage?",
        "Any suspicious lesion?",
    ),
    "tumor_position": (
        "Is there a tumor in the {organ}?",
        "Is there a lesion in the {organ}?",
        "Does the {organ} show a mass?",
        "Is there a lesion in the {organ}, and what TNM stage?",
    ),
    "segment": (
        "Which part of the organ holds the tumor?",
        "Where exactly is the tumor?",
        "In which segment does the lesion lie?",
    ),
    "shape": ("What is the shape of the tumor?", "Is the lesion round, lobulated or irregular?"),
    "boundary": (
        "How is the boundary of the tumor?",
        "Is the margin of the lesion well-defined or ill-defined?",
    ),
    "density": ("What is the density of the tumor?", "Is the lesion hypodense, hyperdense or heterogeneous?"),
    "count": ("How many tumors are there?", "Is the lesion solitary or multiple?"),
    "others": ("How large is the tumor?", "What is the size of the lesion?"),
    "tumor": ("What is the T category?", "What is the T stage of the tumor?"),
    "node": ("What is the N category?", "Are regional lymph nodes involved?"),
    "metastasis": ("What is the M category?", "Are there distant metastases?"),
    "report": (
        "TNM stage?",
        "What is the TNM stage?",
        "Write a report of this CT.",
        "Describe the findings, the impression and the stage.",
    ),
}

_SPOKEN = {
    "colorectum": "colon",
    "liver": "liver",
    "pancreas": "pancreas",
    "stomach": "stomach",
    "esophagus": "esophagus",
}
_SECTION = {
    "liver": "{part} of the liver",
    "pancreas": "pancreatic {part}",
    "stomach": "gastric {part}",
    "colorectum": "{part}",
    "esophagus": "{part} esophagus",
}


@dataclass(frozen=True)
class Sample:
    """A question with its rounds: ``organs[i]`` is the evidence that round ``i`` is shown (none for the first)."""

    subtask: str
    question: str
    organs: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    asked_organ: str | None = None


def spoken(organ: str) -> str:
    """How a report names an organ: ``colon`` for ``colorectum``."""
    return _SPOKEN.get(organ, display_name(organ))


def listing(organs: list[str]) -> str:
    """``the liver``, ``the liver and the colon``, ``the liver, the colon and the stomach``."""
    names = [f"the {spoken(o)}" for o in organs]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def section_phrase(truth: Truth) -> str:
    return _SECTION[str(truth.organ)].format(part=truth.substructure)


def size_phrase(size_mm: float) -> str:
    """Small, medium or large by the strata of the evaluation."""
    return "under 2 cm" if size_mm < 20 else "2 to 4 cm" if size_mm <= 40 else "over 4 cm"


def ask(rng: np.random.Generator, subtask: str, organ: str | None = None) -> str:
    """A question of a subtask in one of its wordings."""
    choices = QUESTIONS[subtask]
    return choices[int(rng.integers(len(choices)))].format(organ=spoken(organ) if organ else "")


def look_closer(organs: list[str]) -> str:
    """The text of a round that only decides where to look."""
    verb = "needs" if len(organs) == 1 else "need"
    words = listing(organs)
    return f"{words[0].upper()}{words[1:]} {verb} a closer look."


def clinical_stage(truth: Truth) -> str | None:
    """Stage group of the truth, by the table; phantoms of the esophagus are squamous-cell carcinomas."""
    histology = "squamous" if truth.organ == "esophagus" else None
    return stage_group(str(truth.organ), str(truth.t), str(truth.n), str(truth.m), histology=histology)


def findings(truth: Truth, examined: list[str]) -> str:
    """The findings sentence; ``examined`` are organs in the scan."""
    if not examined:
        return "Findings: nothing was assessed."
    if truth.organ is None:
        return f"Findings: no mass in {listing(examined)}."
    count = "solitary" if truth.count == 1 else "multiple"
    sentence = (
        f"Findings: {count} {truth.density} {truth.shape} {truth.boundary} mass of the {section_phrase(truth)}, "
        f"{size_phrase(truth.size_mm)}."
    )
    if truth.nodes:
        sentence += " Enlarged regional lymph nodes."
    if truth.metastases and "liver" in examined:
        sentence += " Liver metastases."
    return sentence


def impression(truth: Truth) -> str:
    return (
        "Impression: no tumor." if truth.organ is None else f"Impression: tumor of the {spoken(truth.organ)}."
    )


def pathology(truth: Truth) -> str:
    if truth.organ is None:
        return "Pathology: TNM does not apply."
    return f"Pathology: c{truth.t} {truth.n} {truth.m}."


def short_answer(truth: Truth, subtask: str, asked: str | None) -> str:
    """The answer proper; what an evaluation compares."""
    if subtask == "tumor_position":
        return (
            f"yes, a tumor of the {spoken(str(asked))}"
            if asked in truth.abnormal_organs
            else f"no tumor of the {spoken(str(asked))}"
        )
    if truth.organ is None:
        return "no tumor"
    answers = {
        "organ": spoken(truth.organ),
        "segment": section_phrase(truth),
        "shape": str(truth.shape),
        "boundary": str(truth.boundary),
        "density": str(truth.density),
        "count": "solitary" if truth.count == 1 else "multiple",
        "others": size_phrase(truth.size_mm),
        "tumor": f"c{truth.t}",
        "node": str(truth.n),
        "metastasis": str(truth.m),
        "report": f"c{truth.t} {truth.n} {truth.m}",
    }
    return answers[subtask]


def final_text(
    truth: Truth, examined: list[str], subtask: str, asked: str | None = None, absent: tuple[str, ...] = ()
) -> str:
    """The last round: findings → impression → pathology, then the answer; an absent organ is not assessed."""
    parts = [findings(truth, examined)]
    parts += [f"The {spoken(o)} is not in the scan and was not assessed." for o in absent]
    parts += [impression(truth), pathology(truth), closing(answer_text(truth, subtask, asked, absent))]
    return " ".join(parts)


def answer_text(truth: Truth, subtask: str, asked: str | None, absent: tuple[str, ...]) -> str:
    """The short answer, or that the organ asked about was not assessed because the scan doesn't hold it."""
    if asked and asked in absent:
        return f"{spoken(asked)} not assessed"
    return short_answer(truth, subtask, asked)


def closing(answer: str) -> str:
    """The sentence that closes the last round."""
    return f"Answer: {answer}."


def compose(rng: np.random.Generator, truth: Truth, subtask: str, suspicion: dict[str, float]) -> Sample:
    """A question and its rounds. ``suspicion`` is Cls's p(abnormal) of each organ in the scan.

    The first round names the organs that the question asks about and those that Cls suspects. Where that misses
    the tumour's organ, it takes the last one's place or gets a round of its own; healthy patients get such a
    further round as well, so that neither the list nor the number of rounds gives the verdict away.
    """
    asked = str(rng.choice(ORGANS)) if subtask == "tumor_position" else None
    first, later = _to_examine(rng, truth, subtask, suspicion, asked)
    rounds: list[tuple[str, ...]] = [(), tuple(first)]
    texts = [look_closer(first)]
    if later:
        rounds.append(tuple(later))
        texts.append(look_closer(later))
    seen = [*first, *later]
    absent = tuple(o for o in seen if o not in suspicion)
    texts.append(final_text(truth, [o for o in seen if o in suspicion], subtask, asked, absent))
    return Sample(subtask, ask(rng, subtask, asked), tuple(rounds), tuple(texts), asked)


def _to_examine(
    rng: np.random.Generator, truth: Truth, subtask: str, suspicion: dict[str, float], asked: str | None
) -> tuple[list[str], list[str]]:
    """Organs of the first list, and of a further round (none or one)."""
    ranked = sorted(suspicion, key=lambda o: -suspicion[o])
    first = [asked] if asked else []
    free = [o for o in ranked if o not in first]
    chosen = [o for k, o in enumerate(free) if k == 0 or suspicion[o] > 0.3][: 3 - len(first)]
    needed = truth.organ if truth.organ in suspicion else None
    missed = needed is not None and needed not in first + chosen
    if missed and chosen and rng.random() < 0.6:
        chosen[-1] = str(needed)
        missed = False
    first += chosen
    if subtask in ("metastasis", "report") and "liver" in suspicion and "liver" not in first:
        first.append("liver")
        missed = missed and needed != "liver"
    rest = [o for o in ranked if o not in first]
    if missed:
        return first, [str(needed)]
    return first, rest[:1] if rest and rng.random() < 0.15 else []


def radiology_report(truth: Truth) -> str:
    """The report a radiologist would dictate; nothing of pathology."""
    return f"{findings(truth, ['liver'])} {impression(truth)}"


def pathology_report(truth: Truth) -> str:
    """TNM with stage group, or the absence of disease."""
    stage = clinical_stage(truth) if truth.organ else None
    return pathology(truth) + (f" Stage {stage}." if stage else "")
