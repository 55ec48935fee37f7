"""TumorChain-Eval over a file of chains: by the deterministic judge, or by a model behind an address (paper 12).

The model extracts the triples of both chains, then scores ten dimensions as JSON. A reply that can't be read is asked
for again; after that the chain is unscored: it is counted and left out, never 0 or 10. A reference without facts is
unscored as well; a prediction without facts scores 0 in all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from tumorchain_agent.errors import DataError
from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.rows import json_lines
from tumorchain_agent.training.evaluation.chains import (
    DIMENSIONS,
    ChainScore,
    chain_score,
    judge_chain,
    mean_score,
)
from tumorchain_agent.training.evaluation.semantic import ATTEMPTS, say
from tumorchain_agent.training.replies import json_in

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_EXTRACT: Final = """Extract every medical fact of the text as triples (subject, relation, object). Subject and object
are an organ, a structure or a lesion; the relation says how they relate (has, not observed, suggests, supports ...).
One fact a triple, nothing else. Write each as (subject, relation, object); and nothing around them.
If the text states no medical fact at all, reply with {{"triples": []}} and nothing else.
Text: {text}"""
_SCORE: Final = """You score a predicted reasoning chain about a CT scan against the reference. It has three sub-chains:
finding (facts seen), impression (first interpretations), reasoning (conclusions that integrate both).
Score each dimension 0 to 10: 10 perfect, 8-9 under 10 % at fault, 6-7 10 to 30 %, 4-5 30 to 50 %, 1-3 more than half,
0 nothing right.
finding: existence_match (facts match), completeness (none left out), accuracy (none wrong).
impression: clarity (unambiguous), consistency (follows from the findings), medical_utility (helps diagnosis).
reasoning: logical_completeness (no gaps), reasoning_depth (links entities and levels), clinical_relevance (to the
diagnosis), evidence_integration (all findings and impressions are used).
Reference: {reference}
Reference triples: {reference_triples}
Prediction: {prediction}
Prediction triples: {prediction_triples}
Reply with JSON only: {{"scoring": {{"s1_finding": {{"existence_match": "8/10", ...}}, "s2_impression": {{...}},
"s3_reasoning": {{...}}}}}}"""
OFFLINE: Final = "triples (deterministic)"
NOTHING_RIGHT: Final = chain_score({level: dict.fromkeys(names, 0.0) for level, names in DIMENSIONS.items()})
_TRIPLE: Final = re.compile(r"\(([^(),]+),([^(),]+),([^()]+)\)")
_NO_FACTS: Final = re.compile(r"\W*(?:\[\s*\]|none)\W*", re.IGNORECASE)
NONE: Final = "none"
_POINTS: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*")


class ChainPair(Record):
    """A line of a file of chains."""

    id: str
    reference: str
    prediction: str
    model: str = "prediction"
    """Who wrote the prediction: a row of the table."""


class ChainResult(Record):
    id: str
    model: str
    score: ChainScore | None
    """``None``: the judge's replies could not be read, or the reference has no fact."""


class ChainRow(Record):
    """A model's row of Table 2."""

    model: str
    s_fc: float | None
    s_ic: float | None
    s_lrc: float | None
    cot_e: float | None
    scored: int
    unscored: int


class ChainReport(Record):
    disclaimer: str = DISCLAIMER
    judge: str
    rows: tuple[ChainRow, ...]
    results: tuple[ChainResult, ...]


def read_pairs(path: Path) -> Iterator[ChainPair]:
    """``{"id", "reference", "prediction", "model"}`` a line. DataError names the first line that is none."""
    for number, row in json_lines(path):
        try:
            yield ChainPair.model_validate(row if isinstance(row, dict) else {})
        except ValidationError as error:
            raise DataError(f"{path.name} line {number}: {explain(error)}") from error


async def judge_pairs(
    pairs: Sequence[ChainPair],
    chat_model: BaseChatModel | None = None,
    name: str = OFFLINE,
    advance: Callable[[int, int], None] | None = None,
) -> ChainReport:
    """Every pair's scores and each model's row, by ``chat_model`` or by the deterministic judge."""
    results = []
    for done, pair in enumerate(pairs, start=1):
        if chat_model is None:
            score = judge_chain(pair.reference, pair.prediction)
        else:
            score = await ask_judge(chat_model, pair.reference, pair.prediction)
        results.append(ChainResult(id=pair.id, model=pair.model, score=score))
        if advance:
            advance(done, len(pairs))
    models = dict.fromkeys(pair.model for pair in pairs)
    rows = tuple(_row(model, [each for each in results if each.model == model]) for model in models)
    return ChainReport(judge=name, rows=rows, results=tuple(results))


def _row(model: str, results: Sequence[ChainResult]) -> ChainRow:
    scores = [each.score for each in results if each.score is not None]
    fc, ic, lrc, whole = mean_score(scores) or (None, None, None, None)
    return ChainRow(
        model=model,
        s_fc=fc,
        s_ic=ic,
        s_lrc=lrc,
        cot_e=whole,
        scored=len(scores),
        unscored=len(results) - len(scores),
    )


async def ask_judge(chat_model: BaseChatModel, reference: str, prediction: str) -> ChainScore | None:
    """Both stages; ``None`` when a stage's replies stay unreadable, or the reference has no fact. A prediction without
    one is 0 in all. Raises ChatModelError when the model fails."""
    found = []
    for text, without in ((reference, None), (prediction, NOTHING_RIGHT)):
        triples = await _extract(chat_model, text)
        if triples in (None, NONE):
            return None if triples is None else without
        found.append(triples)
    prompt = _SCORE.format(
        reference=reference, prediction=prediction, reference_triples=found[0], prediction_triples=found[1]
    )
    for _ in range(ATTEMPTS):
        score = read_scoring(json_in(await say(chat_model, prompt)))
        if score is not None:
            return score
    return None


async def _extract(chat_model: BaseChatModel, text: str) -> str | None:
    """Triples as text, ``NONE`` of a chain that is empty or that the model finds no fact in; ``None``: unreadable."""
    if not text.strip():
        return NONE
    for _ in range(ATTEMPTS):
        reply = await say(chat_model, _EXTRACT.format(text=text))
        found = _TRIPLE.findall(reply)
        if found:
            return "; ".join(f"({', '.join(part.strip() for part in triple)})" for triple in found)
        if json_in(reply).get("triples") == [] or _NO_FACTS.fullmatch(reply):
            return NONE
    return None


def read_scoring(reply: Mapping[str, Any]) -> ChainScore | None:
    """All ten scores, each 0..10 as ``8``, ``"8"`` or ``"8/10"``; ``None`` when one is missing or out of range."""
    scoring = reply.get("scoring")
    if not isinstance(scoring, dict):
        return None
    values: dict[str, dict[str, float]] = {}
    for level, names in DIMENSIONS.items():
        part = scoring.get(level)
        read = {name: _points(part.get(name)) for name in names} if isinstance(part, dict) else {}
        known = {name: value for name, value in read.items() if value is not None}
        if len(known) != len(names):
            return None
        values[level] = known
    return chain_score(values)


def _points(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    found = _POINTS.fullmatch(str(value))
    points = float(found[1]) if found else -1.0
    return points if 0 <= points <= 10 else None


def as_markdown(report: ChainReport) -> str:
    """Table 2's layout."""
    lines = [
        "# TumorChain-Eval",
        "",
        f"Judge: {report.judge}. CoT_e = 0.3 S_FC + 0.3 S_IC + 0.4 S_LRC (eq. 9), of the levels that the references "
        f"have. {DISCLAIMER}",
        "",
    ]
    lines += ["| Model | S_FC | S_IC | S_LRC | CoT_e | scored | unscored |", "|---|---|---|---|---|---|---|"]
    for row in report.rows:
        values = " | ".join(
            "–" if v is None else f"{v:.2f}" for v in (row.s_fc, row.s_ic, row.s_lrc, row.cot_e)
        )
        lines.append(f"| {row.model} | {values} | {row.scored} | {row.unscored} |")
    return "\n".join(lines) + "\n"


def as_jsonl(report: ChainReport) -> bytes:
    """A result a line."""
    return "".join(json.dumps(each.model_dump(mode="json")) + "\n" for each in report.results).encode()
