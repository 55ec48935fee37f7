"""What is asked and answered about a phantom: questions, and the rounds that answer them.

A first round only names the organs worth a closer look; it commits to nothing, so that a later round can't copy
a verdict from it. The last round follows findings → impression → pathology.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tumorchain_agent.model.wording import in_mode
from tumorchain_agent.tools.organs import MERGE
from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.training.phantom import wording as W
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.wording import Rng

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


@dataclass(frozen=True)
class Sample:
    """A question with its rounds: ``organs[i]`` is the evidence that round ``i`` is shown (none for the first)."""

    subtask: str
    question: str
    organs: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    asked_organ: str | None = None


def ask(rng: np.random.Generator, subtask: str, organ: str | None = None) -> str:
    """A question of a subtask in one of its wordings."""
    choices = QUESTIONS[subtask]
    return choices[int(rng.integers(len(choices)))].format(organ=W.spoken(organ) if organ else "")


def findings(truth: Truth, examined: list[str], rng: Rng = None) -> str:
    """The findings sentences; ``examined`` are organs in the scan, and no other organ is named.

    Beside a tumour, nodes and metastases are told whether there are any or not: where only what is there is told, the
    likeliest next sentence is one of them even when having none is likelier. Simple cysts aren't worth a word;
    pseudocysts and pancreatitis are, as they are taken for tumours.
    """
    if not examined:
        return "Findings: nothing was assessed."
    clauses = [f"Findings: {_mass_or_none(truth, examined, rng)}."]
    for named, sentence in ((truth.invaded, W.invades), (truth.compresses, W.pushes)):
        seen = [number for number in named if TABLE[int(MERGE[number])] in examined]
        clauses += [sentence(seen, rng)] if seen else []
    clauses += [W.nodes(bool(truth.nodes), rng)] if truth.organ else []
    sites = [site for site in truth.sites if site != "liver" or "liver" in examined]
    clauses += [W.spread(site, rng) for site in sites]
    clauses += [W.no_spread(rng)] if truth.organ and not truth.sites else []
    alike = [each for each in truth.mimics if not each.endswith(":cyst") and each.split(":")[0] in examined]
    clauses += [W.benign(alike, rng)] if alike else []
    return " ".join(clauses)


def _mass_or_none(truth: Truth, examined: list[str], rng: Rng) -> str:
    if truth.organ is None:
        return W.clear(examined, rng)
    return W.mass(truth, W.size_phrase(truth.size_mm, rng), rng)


def impression(truth: Truth, rng: Rng = None) -> str:
    return f"Impression: {W.verdict(truth, rng)}."


def pathology(truth: Truth, rng: Rng = None) -> str:
    return f"Pathology: {W.tnm(truth, rng)}."


def short_answer(truth: Truth, subtask: str, asked: str | None) -> str:
    """The answer proper; what an evaluation compares.

    A report's tells TNM, organ and size, so that it can be compared where no findings are written as well.
    """
    if subtask == "tumor_position":
        return (
            f"yes, a tumor of the {W.spoken(str(asked))}"
            if asked in truth.abnormal_organs
            else f"no tumor of the {W.spoken(str(asked))}"
        )
    if truth.organ is None:
        return "no tumor"
    answers = {
        "organ": W.spoken(truth.organ),
        "segment": W.section_phrase(truth),
        "shape": str(truth.shape),
        "boundary": str(truth.boundary),
        "density": str(truth.density),
        "count": W.count_word(truth),
        "others": W.size_phrase(truth.size_mm),
        "tumor": f"c{truth.t}",
        "node": str(truth.n),
        "metastasis": str(truth.m),
        "report": f"c{truth.t} {truth.n} {truth.m}, {W.spoken(truth.organ)}, {W.size_phrase(truth.size_mm)}",
    }
    return answers[subtask]


def final_text(
    truth: Truth,
    examined: list[str],
    subtask: str,
    asked: str | None = None,
    absent: tuple[str, ...] = (),
    rng: Rng = None,
) -> str:
    """The last round: findings → impression → pathology, then the answer; an absent organ is not assessed.

    ``rng`` draws the wording of all but the answer; without it the wording is the canonical one.
    """
    parts = [findings(truth, examined, rng)]
    parts += [f"The {W.spoken(o)} is not in the scan and was not assessed." for o in absent]
    parts += [impression(truth, rng), pathology(truth, rng)]
    parts.append(closing(answer_text(truth, subtask, asked, absent)))
    return " ".join(parts)


def answer_text(truth: Truth, subtask: str, asked: str | None, absent: tuple[str, ...]) -> str:
    """The short answer, or that the organ asked about was not assessed because the scan doesn't hold it."""
    if asked and asked in absent:
        return f"{W.spoken(asked)} not assessed"
    return short_answer(truth, subtask, asked)


def closing(answer: str) -> str:
    """The sentence that closes the last round."""
    return f"Answer: {answer}."


def compose(
    rng: np.random.Generator,
    truth: Truth,
    subtask: str,
    suspicion: dict[str, float],
    *,
    iir: bool = True,
    cot: bool = True,
) -> Sample:
    """A question and its rounds. ``suspicion`` is Cls's p(abnormal) of each organ in the scan.

    The first round names the organs that the question asks about and those that Cls suspects, two at least.
    Where that misses the tumour's organ, it takes the last one's place or gets a round of its own; healthy
    patients get such a further round as well, so that neither the list nor the number of rounds gives the verdict
    away.

    Without ``iir`` there is one round, from the whole scan. Without ``cot`` the last round says the answer alone.
    The question's words tell which is wanted.
    """
    asked = str(rng.choice(ORGANS)) if subtask == "tumor_position" else None
    rounds: list[tuple[str, ...]] = [()]
    texts: list[str] = []
    if iir:
        for organs in _to_examine(rng, truth, subtask, suspicion, asked):
            if organs:
                rounds.append(tuple(organs))
                texts.append(W.look_closer(organs, rng))
        seen = [organ for organs in rounds for organ in organs]
    else:
        seen = [o for o in ORGANS if o in suspicion or o == asked]
    absent = tuple(o for o in seen if o not in suspicion)
    last = final_text(truth, [o for o in seen if o in suspicion], subtask, asked, absent, rng)
    texts.append(last if cot else closing(answer_text(truth, subtask, asked, absent)))
    question = in_mode(ask(rng, subtask, asked), iir=iir, cot=cot)
    return Sample(subtask, question, tuple(rounds), tuple(texts), asked)


def _to_examine(
    rng: np.random.Generator, truth: Truth, subtask: str, suspicion: dict[str, float], asked: str | None
) -> tuple[list[str], list[str]]:
    """Organs of the first list, and of a further round (none or one)."""
    ranked = sorted(suspicion, key=lambda o: -suspicion[o])
    first = [asked] if asked else []
    free = [o for o in ranked if o not in first]
    least = 2 - len(first)
    chosen = [o for k, o in enumerate(free) if k < least or suspicion[o] > 0.3][: 3 - len(first)]
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
