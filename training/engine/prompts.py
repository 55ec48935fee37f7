"""What the experts are told (paper 11.3): standard terms, steps with their sources, a task's limits, JSON out.

A prompt is a system text that doesn't change, whose hash is kept with every sample, and the case as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

from tumorchain_agent.tools.organs import FIVE, SUBSTRUCTURES
from tumorchain_agent.training.engine.calls import Turn
from tumorchain_agent.training.engine.config import Stage
from tumorchain_agent.training.engine.features import SITES
from tumorchain_agent.training.engine.terms import TERMS

_COMMON: Final = (
    "You work on a data set for research software, not for a decision about a patient. Use only what you are "
    "given; what is not stated stays null. Answer with one JSON object and nothing else."
)
_TERMS: Final = "; ".join(f"{name}: {', '.join(terms)}" for name, terms in TERMS.items())
_PARTS: Final = "; ".join(f"{organ}: {', '.join(SUBSTRUCTURES[organ])}" for organ in FIVE)

SYSTEM: Final[dict[Stage, str]] = {
    "extractor": f"""{_COMMON}
You extract structured features from a CT report and a pathology report.
Standard terms: {_TERMS}. Parts of organs: {_PARTS}. Sites of metastases: {", ".join(SITES)}.
Every quote is copied from its report, word by word, the whole sentence that says it.
Shape of the answer:
{{"features": {{"clinical": {{"age", "sex": "female"|"male"|null, "history": [], "phase"}},
"lesion": null | {{"organ", "location", "shape", "margin", "density", "count", "size_mm", "enhancement", "quote"}},
"neighbors": {{"invaded": [], "displaced": [], "vascular": true|false|null, "quote"}},
"nodes": {{"status": "present"|"none"|"not stated", "number", "quote"}},
"spread": {{"status": "present"|"none"|"not stated", "sites": [], "number", "quote"}},
"benign": [{{"organ", "finding", "quote"}}], "conclusion": quote of the impression}},
"pathology": null | {{"malignant", "organ", "histology", "size_mm", "nodes", "t", "n", "m",
"stage", "conclusion": quote}}}}
lesion is the tumor, the largest where there are several of an organ; benign findings are no lesion. t, n, m without the
prefix c or p, e.g. "T2", "N1b", "M0".""",
    "reasoner": f"""{_COMMON}
You write the reasoning of a radiologist from the features of a CT report: findings, then impression, then, where the
features allow it, pathology. Each step names the ids of the triples that it rests on.
Say every feature of the lesion in
the findings, in standard terms ({_TERMS}), with its size, lymph nodes and metastases. t, n and m only where the report
measures them; depth of growth can't be seen: give null for it.
Shape of the answer:
{{"steps": [{{"kind": "finding"|"impression"|"pathology", "text", "organs": [], "triples": []}}],
"organ": "{'"|"'.join(FIVE)}"|null, "malignant", "t", "n", "m", "conclusion"}}""",
    "calibrator": f"""{_COMMON}
You check the reasoning of another expert against the features of the report and the triples:
wrong organ, side, size, term,
number, staging, steps that don't follow, claims without a source.
Shape of the answer:
{{"consistent": true|false, "issues": [what is wrong, one sentence each], "suspected_cause": one sentence or null}}""",
    "summarizer": f"""{_COMMON}
You compare a chain of reasoning with the pathology report. If they disagree, say so and write no pairs.
If they agree, write
one pair for each question that is wanted. position: only where; lesion: only the attribute; tnm: the category and why;
report: all, under "Findings:", "Impression:", "Pathology:" within the reasoning.
Word questions so that they don't tell the
answer. The reasoning goes from the organ over its findings to the answer.
tumor_position asks about the organ that is given,
its answer begins with yes or no. An option is a standard term ({_TERMS}), a part, a size or a category; one is right.
Shape of the answer:
{{"consistent": true|false, "issues": [], "pairs": [{{"subtask", "form": "choice"|"open",
"question", "options": [] or null,
"reasoning", "answer"}}]}}""",
    "mentor": f"""{_COMMON}
You lead interns to the answer, which you know: go on from the steps so far and
finish the reasoning in few steps, findings
first, then impression. Each step says one thing, from the features, and names the triples that it rests on.
Shape of the answer: that of a reasoner:
{{"steps": [only the steps that follow, {{"kind", "text", "organs": [], "triples": []}}], "organ",
"malignant", "t", "n", "m",
"conclusion"}}""",
    "intern": f"""{_COMMON}
Finish the reasoning that is begun, and give the answer.
Shape of the answer: {{"thoughts", "organ", "malignant", "n", "m"}}""",
    "judge": f"""{_COMMON}
Do two answers say the same? Shape of the answer: {{"same": true|false}}""",
}
REPAIR: Final = "This can't be used:\n{problems}\nAnswer anew, whole, with all of that mended."
EXPAND: Final = (
    "Look again, and look beyond the organ: consider {organs} as well. What was found wrong:\n{problems}"
)
SUSPECT: Final = "Look again. The cause may be this: {cause}. What was found wrong:\n{problems}"


def prompt_hash(stage: Stage) -> str:
    """Of all that a stage's prompts are made of, but the case."""
    return blake2b("\0".join((SYSTEM[stage], REPAIR, EXPAND, SUSPECT)).encode(), digest_size=6).hexdigest()


def prompt(stage: Stage, case_key: str, given: dict[str, Any], notes: Sequence[str] = ()) -> list[Turn]:
    """The turns of a call; ``notes`` are what reviews said, oldest first."""
    lines = [f"Expert: {stage}", f"Case: {case_key}", json.dumps(given, ensure_ascii=False)]
    lines += [f"Review {number}: {note}" for number, note in enumerate(notes, 1)]
    return [("system", SYSTEM[stage]), ("user", "\n".join(lines))]
