"""TumorChain-Eval (paper 2.3, 12): finding, impression and long reasoning chain of a text, ten scores, CoT_e (eq. 9).

The deterministic judge here compares triples; ``chain_judge`` asks a model. Identical chains score 100, chains without
a fact in common 0, an empty one too; leaving facts out, putting wrong ones in, denying them or moving them to another
organ lowers it. A level without facts in the reference has no score: it is left out of the mean of that level, and
CoT_e weighs the other levels by eq. 9's weights over their sum. A reference without any fact is unscored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from tumorchain_agent.graph.claims import sentences
from tumorchain_agent.records import Record
from tumorchain_agent.training.evaluation.facts import Triple, triples

Level = Literal["s1_finding", "s2_impression", "s3_reasoning"]

DIMENSIONS: Final[dict[Level, tuple[str, ...]]] = {
    "s1_finding": ("existence_match", "completeness", "accuracy"),
    "s2_impression": ("clarity", "consistency", "medical_utility"),
    "s3_reasoning": ("logical_completeness", "reasoning_depth", "clinical_relevance", "evidence_integration"),
}
"""Tables 12–14."""
WEIGHTS: Final[dict[Level, float]] = {"s1_finding": 0.3, "s2_impression": 0.3, "s3_reasoning": 0.4}
"""W_FC, W_IC, W_LRC of eq. 9."""
_HEADING: Final = re.compile(
    r"\b(findings?|impressions?|pathology|answer|conclusions?|diagnosis)\s*:", re.IGNORECASE
)
_SECTION: Final[dict[str, Level]] = {"finding": "s1_finding", "impression": "s2_impression"}
_LONG: Final = re.compile(
    r"\b[cp]?T(?:is|[0-4xX])|\bstage\b|overall|therefore|in (?:summary|conclusion)|patholog|diagnos|final",
    re.IGNORECASE,
)
_IMPRESSION: Final = re.compile(
    r"suggest|suspicious|consistent with|compatible|likely|indicat|favou?r|represent|support|probabl|impression",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Chain:
    """The texts of the three chains; each fact stands in the highest level that says it first."""

    texts: Mapping[Level, str]

    @cached_property
    def facts(self) -> dict[Level, set[Triple]]:
        return {level: set(triples(text)) for level, text in self.texts.items()}


def split_chain(text: str) -> Chain:
    """By headings (Findings, Impression, Pathology or Answer), else sentence by sentence by how it argues."""
    parts: dict[Level, list[str]] = {level: [] for level in DIMENSIONS}
    marks = list(_HEADING.finditer(text))
    head = text[: marks[0].start()] if marks else text
    for sentence in sentences(head):
        parts[_level(sentence)].append(sentence)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        name = mark[1].lower().rstrip("s")
        parts[_SECTION.get(name, "s3_reasoning")].append(text[mark.end() : end].strip())
    return Chain({level: " ".join(found) for level, found in parts.items()})


def _level(sentence: str) -> Level:
    if _LONG.search(sentence):
        return "s3_reasoning"
    return "s2_impression" if _IMPRESSION.search(sentence) else "s1_finding"


class ChainScore(Record):
    """Each dimension 0..10; chains and CoT_e 0..100. ``None``, and no dimensions: the reference has no such level."""

    scoring: dict[str, dict[str, float]]
    fc: float | None
    ic: float | None
    lrc: float | None
    overall_score: float


def cot_e(fc: float | None, ic: float | None, lrc: float | None) -> float:
    """Eq. 9 of one sample, or of means; its weights over the levels that there are, at least one."""
    told = [(w, value) for w, value in zip(WEIGHTS.values(), (fc, ic, lrc), strict=True) if value is not None]
    return sum(w * value for w, value in told) / sum(w for w, _ in told)


def chain_score(scoring: Mapping[str, Mapping[str, float]]) -> ChainScore:
    """A chain's score is the mean of its dimensions, × 10; ``scoring`` holds one level at least."""
    plain: dict[str, dict[str, float]] = {
        str(level): {name: float(scoring[level][name]) for name in names}
        for level, names in DIMENSIONS.items()
        if level in scoring
    }
    means = {level: 10 * sum(points.values()) / len(points) for level, points in plain.items()}
    fc, ic, lrc = (means.get(level) for level in DIMENSIONS)
    return ChainScore(scoring=plain, fc=fc, ic=ic, lrc=lrc, overall_score=cot_e(fc, ic, lrc))


Means = tuple[float | None, float | None, float | None, float]


def mean_score(scores: Sequence[ChainScore]) -> Means | None:
    """S_FC, S_IC, S_LRC, each over the samples that have the level, and CoT_e of them (eq. 9); ``None`` when nothing
    was scored."""
    if not scores:
        return None
    fc, ic, lrc = (_mean([getattr(each, name) for each in scores]) for name in ("fc", "ic", "lrc"))
    return fc, ic, lrc, cot_e(fc, ic, lrc)


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return sum(told) / len(told) if told else None


def judge_chain(reference: str, prediction: str) -> ChainScore | None:
    """The deterministic judge's scores of a predicted chain; ``None`` when the reference has no fact."""
    ref = split_chain(reference).facts
    there = [level for level in DIMENSIONS if ref[level]]
    if not there:
        return None
    pred = _placed(split_chain(prediction).facts, ref)
    recall = {level: _share(ref[level] & pred[level], ref[level]) for level in there}
    precision = {level: _share(ref[level] & pred[level], pred[level]) for level in there}
    both = {level: _f1(recall[level], precision[level]) for level in there}
    first, second, third = DIMENSIONS
    scoring: dict[str, dict[str, float]] = {}
    if first in there:
        scoring[first] = _tens(
            existence_match=both[first], completeness=recall[first], accuracy=precision[first]
        )
    if second in there:
        scoring[second] = _tens(
            clarity=precision[second], consistency=_supported(ref, pred), medical_utility=recall[second]
        )
    if third in there:
        grounds = [recall[level] for level in (first, second) if level in there] or [1.0]
        scoring[third] = _tens(
            logical_completeness=_links(ref, pred),
            reasoning_depth=_depth(ref, pred),
            clinical_relevance=precision[third],
            evidence_integration=both[third] * sum(grounds) / len(grounds),
        )
    return chain_score(scoring)


def _placed(pred: Mapping[Level, set[Triple]], ref: Mapping[Level, set[Triple]]) -> dict[Level, set[Triple]]:
    """The prediction's facts; a wrong one of a level that the reference hasn't counts where the reference begins."""
    there = [level for level in DIMENSIONS if ref[level]]
    elsewhere = {fact for level in DIMENSIONS if level not in there for fact in pred[level]}
    wrong = elsewhere - set().union(*ref.values())
    return {**pred, there[0]: pred[there[0]] | wrong}


def _tens(**shares: float) -> dict[str, float]:
    return {name: 10 * share for name, share in shares.items()}


def _share(common: set[Triple], whole: set[Triple]) -> float:
    return len(common) / len(whole) if whole else 0.0


def _f1(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _supported(ref: Mapping[Level, set[Triple]], pred: Mapping[Level, set[Triple]]) -> float:
    """Share of the predicted impression that is right, each fact weighed by how much of its grounds was found."""
    impressions = pred["s2_impression"]
    if not impressions:
        return 0.0
    right = impressions & ref["s2_impression"]
    return sum(_grounds(fact, ref["s1_finding"], pred["s1_finding"]) for fact in right) / len(impressions)


def _grounds(fact: Triple, wanted: set[Triple], found: set[Triple]) -> float:
    """Share of the reference's findings of the fact's organ that the prediction has."""
    own = {each for each in wanted if each.organ == fact.organ}
    return len(own & found) / len(own) if own else 1.0


def _links(ref: Mapping[Level, set[Triple]], pred: Mapping[Level, set[Triple]]) -> float:
    """Share of the steps finding → impression → conclusion both of whose ends the prediction has."""
    first, second, third = DIMENSIONS
    pairs = [(a, b) for a in ref[first] for b in ref[second]] + [
        (b, c) for b in ref[second] for c in ref[third]
    ]
    if not pairs:
        return _share(ref[third] & pred[third], ref[third])
    known = pred[first] | pred[second] | pred[third]
    return sum(a in known and b in known for a, b in pairs) / len(pairs)


def _depth(ref: Mapping[Level, set[Triple]], pred: Mapping[Level, set[Triple]]) -> float:
    """Of the reference's entities at each level, the share that the prediction speaks of rightly at that level."""
    wanted = {(level, fact.organ) for level in DIMENSIONS for fact in ref[level]}
    met = {(level, fact.organ) for level in DIMENSIONS for fact in ref[level] & pred[level]}
    return len(met) / len(wanted)
