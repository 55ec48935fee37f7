"""DeepTumorVQA v2's metrics, exactly: what counts as a letter, a number, yes or no; and how scores are averaged.

Quirks are kept, as the published scores have them: an answer that begins with a word in A–D ("Cannot") reads as that
letter, and an unreadable yes/no answer counts as no in the specificity. Results are rounded to 4 decimals.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

Format = Literal["mc", "freeform"]
AnswerType = Literal["numeric", "binary", "categorical"]

NUMERIC: Final = (
    "organ volume measurement", "organ HU measurement", "lesion volume measurement", "organ HU ratio",
    "tumor burden percentage", "largest lesion diameter", "largest lesion slice", "lesion counting",
    "lesion count by location", "organ aggregation", "tumor organ HU difference",
)  # fmt: skip
BINARY: Final = (
    "pancreatic lesion existence", "liver lesion existence", "kidney lesion existence", "kidney tumor existence",
    "kidney cyst existence", "colon lesion existence", "PDAC existence", "PNET existence", "lesion outlier",
    "organ enlargement", "pancreatic steatosis", "pancreatic cyst resectability", "pseudocyst determination",
    "splenomegaly detection", "portal hypertension assessment",
)  # fmt: skip
TOLERANCES: Final = (5, 10, 20, 50)
"""Percent of relative error."""
Pair = tuple[str, str]
"""What was said, what is right."""


def answer_type(subtype: str) -> AnswerType:
    """Of a subtype; one that isn't known is categorical."""
    return "numeric" if subtype in NUMERIC else "binary" if subtype in BINARY else "categorical"


def without_thinking(text: str) -> str:
    """Without ``<think>…</think>``; a block that is never closed takes the rest with it."""
    return re.sub(
        r"<think>.*$", "", re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL), flags=re.DOTALL
    ).strip()


def read_letter(text: str) -> str:
    """The first character where it is one of A–D, else the first such letter that stands alone, else nothing."""
    upper = without_thinking(text).upper()
    if upper[:1] in {"A", "B", "C", "D"}:
        return upper[0]
    found = re.search(r"\b([A-D])\b", upper)
    return found[1] if found else ""


def read_number(text: str) -> float | None:
    """The first number."""
    found = re.search(r"-?\d+\.?\d*", text)
    return float(found[0]) if found else None


def read_binary(text: str) -> str:
    """``yes``, ``no`` or nothing: by the text's beginning, else by the word, yes before no."""
    lower = text.strip().lower()
    for word in ("yes", "no"):
        if lower.startswith(word):
            return word
    return next((word for word in ("yes", "no") if re.search(rf"\b{word}\b", lower)), "")


def plain(text: str) -> str:
    """Lower case, without punctuation but hyphens, single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"[^\w\s\-]", "", text.strip().lower()))


def relative_accuracy(said: float, right: float) -> float:
    """max(0, 1 − |p − g| / |g|); of g = 0 it is 1 for 0 and 0 for all else."""
    if right == 0:
        return float(said == 0)
    return max(0.0, 1.0 - abs(said - right) / abs(right))


def score_choices(pairs: Sequence[Pair]) -> dict[str, Any]:
    letters = [(read_letter(said), right.strip().upper()) for said, right in pairs]
    return {
        "metric": "exact_match",
        "accuracy": _share(sum(a == b for a, b in letters), len(pairs)),
        "n_parsed": sum(bool(a) for a, _ in letters),
        "n_total": len(pairs),
    }


def score_numeric(pairs: Sequence[Pair]) -> dict[str, Any]:
    """References without a number are passed over; answers without one score 0."""
    known = [
        (read_number(without_thinking(said)), g)
        for said, right in pairs
        if (g := read_number(right)) is not None
    ]
    scores = [0.0 if p is None else relative_accuracy(p, g) for p, g in known]
    errors = [float("inf") if p is None else _error(p, g) for p, g in known]
    return {
        "metric": "MRA",
        "mean_mra": _share(sum(scores), len(scores)),
        "tolerance_acc": {
            f"tol_{t}%": _share(sum(e <= t / 100 for e in errors), len(known)) for t in TOLERANCES
        },
        "n_total": len(pairs),
        "n_scored": len(known),
    }


def _error(said: float, right: float) -> float:
    if right == 0:
        return 0.0 if said == 0 else float("inf")
    return abs(said - right) / abs(right)


def score_binary(pairs: Sequence[Pair]) -> dict[str, Any]:
    read = [(read_binary(without_thinking(said)), read_binary(right)) for said, right in pairs]
    ill, well = [p for p, g in read if g == "yes"], [p for p, g in read if g == "no"]
    return {
        "metric": "exact_match",
        "accuracy": _share(sum(p == g and bool(p) for p, g in read), len(pairs)),
        "sensitivity": _share(ill.count("yes"), len(ill)),
        "specificity": _share(len(well) - well.count("yes"), len(well)),
        "n_total": len(pairs),
    }


def score_categorical(pairs: Sequence[Pair]) -> dict[str, Any]:
    read = [(plain(without_thinking(said)), plain(right)) for said, right in pairs]
    partial = sum(p == g or bool(p and g and (p in g or g in p)) for p, g in read)
    return {
        "metric": "exact_match",
        "accuracy": _share(sum(p == g for p, g in read), len(pairs)),
        "partial_accuracy": _share(partial, len(pairs)),
        "n_total": len(pairs),
    }


def _share(part: float, whole: int) -> float:
    return round(part / max(whole, 1), 4)


def aggregate(results: Iterable[Mapping[str, Any]], form: Format) -> dict[str, Any]:
    """``overall``, ``by_super_type``, ``by_subtype`` of result rows: averages over questions, not over subtypes.

    Rows hold ``question_subtype``, ``question_type``, ``pred_answer`` (or ``raw_output``), ``correct_option``,
    ``answer``. A subtype's super-type is that of its first row.
    """
    pairs: dict[str, list[Pair]] = defaultdict(list)
    super_types: dict[str, str] = {}
    for row in results:
        subtype = str(row["question_subtype"])
        said = str(row.get("pred_answer") or row.get("raw_output") or "")
        pairs[subtype].append((said, str(row["correct_option" if form == "mc" else "answer"])))
        super_types.setdefault(subtype, str(row.get("question_type") or ""))
    scored = {subtype: _score(subtype, found, form) for subtype, found in pairs.items()}
    by_super: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(super_types.values()):
        if name:
            by_super[name] = _weighted(
                metric for subtype, metric in scored.items() if super_types[subtype] == name
            )
    return {
        "overall": {**_weighted(scored.values()), "n_subtypes": len(scored)},
        "by_super_type": by_super,
        "by_subtype": scored,
    }


def _score(subtype: str, pairs: Sequence[Pair], form: Format) -> dict[str, Any]:
    if form == "mc":
        return score_choices(pairs)
    kind = answer_type(subtype)
    return {"numeric": score_numeric, "binary": score_binary, "categorical": score_categorical}[kind](pairs)


def primary(metric: Mapping[str, Any]) -> float:
    """A subtype's one figure: MRA of numbers, else accuracy."""
    return float(metric["mean_mra"] if metric["metric"] == "MRA" else metric["accuracy"])


def _weighted(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    found = list(metrics)
    count = sum(int(each["n_total"]) for each in found)
    total = sum(primary(each) * each["n_total"] for each in found)
    return {"accuracy": _share(total, count), "n_total": count}
