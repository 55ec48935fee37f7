"""TumorChain-Eval: the deterministic judge on degraded chains of phantoms, and a judge behind an address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.training.evaluation.endpoint import MODEL, scripted, text_of
from tests.training.phantom.truths import random_truth
from tumorchain_agent.cli import main
from tumorchain_agent.training.evaluation import chain_judge
from tumorchain_agent.training.evaluation.chain_judge import read_scoring
from tumorchain_agent.training.evaluation.chains import (
    DIMENSIONS,
    cot_e,
    judge_chain,
    mean_score,
    split_chain,
)
from tumorchain_agent.training.evaluation.facts import Triple, triples
from tumorchain_agent.training.evaluation.meaning import same_meaning
from tumorchain_agent.training.phantom.patient import ORGANS
from tumorchain_agent.training.phantom.text import final_text

Rng = np.random.Generator
SPURIOUS = (
    "The spleen has necrosis.", "Ascites around the gallbladder.", "The duodenum is dilated.",
    "A cyst of the left kidney.", "Calcification of the right adrenal gland.", "Effusion beside the heart.",
)  # fmt: skip
ELSEWHERE = {"liver": "spleen", "pancreas": "duodenum", "pancreatic": "duodenal", "stomach": "gallbladder",
             "gastric": "duodenal", "colon": "left kidney", "esophagus": "heart"}  # fmt: skip


def chains(rng: Rng, count: int, organs: tuple[str | None, ...] = ORGANS) -> Iterator[str]:
    for k in range(count):
        truth = random_truth(rng, organs[k % len(organs)])
        organ = truth.organ or "liver"
        examined = list(dict.fromkeys([organ, "liver", "pancreas"]))
        yield final_text(truth, examined, "report", rng=rng)


def clauses(text: str) -> list[str]:
    """Sentences, headings kept."""
    return [part.strip() + "." for part in text.split(". ") if part.strip()] if text else []


def joined(parts: list[str]) -> str:
    return " ".join(part.rstrip(".") + "." for part in parts)


def deleted(parts: list[str], rng: Rng) -> list[str]:
    return [p for k, p in enumerate(parts) if k != int(rng.integers(len(parts)))]


def inserted(parts: list[str], rng: Rng) -> list[str]:
    fresh = [each for each in SPURIOUS if each not in parts]
    return [parts[0], str(rng.choice(fresh or SPURIOUS)), *parts[1:]]


def denied(text: str) -> str:
    """Every mass of it."""
    for word in ("masses", "mass", "tumor", "cancer"):
        text = text.replace(f" {word}", f" no {word}")
    return text.replace("no no ", "")


def moved(text: str) -> str:
    for organ, other in ELSEWHERE.items():
        text = text.replace(organ, other)
    return text


def score(reference: str, prediction: str) -> float:
    found = judge_chain(reference, prediction)
    assert found is not None
    return found.overall_score


def test_a_chain_is_split_by_its_headings_and_without_them_by_how_it_argues() -> None:
    told = "Findings: a mass in the liver. Impression: tumor of the liver. Pathology: cT1 N0 M0."
    free = "A mass in the liver. This suggests a tumor of the liver. Overall cT1 N0 M0 of the liver."
    for text in (told, free):
        facts = split_chain(text).facts
        assert Triple("liver", "has", "mass") in facts["s1_finding"]
        assert Triple("liver", "has", "mass") in facts["s2_impression"]
        assert {"T1", "N0", "M0"} <= {fact.object for fact in facts["s3_reasoning"]}


def test_synonyms_and_negation_are_understood() -> None:
    assert triples("Lymph nodes are not enlarged. Hypoattenuating mass in the tail of the pancreas.") == [
        Triple("scan", "has no", "enlarged nodes"),
        Triple("pancreas:tail", "has", "hypodense"),
        Triple("pancreas:tail", "has", "mass"),
    ]
    assert same_meaning("hypodense", "It is hypoattenuating.")
    assert same_meaning("no tumor", "No mass was seen in the liver or the pancreas.")
    assert same_meaning("pancreatic tail", "It lies in the tail of the pancreas.")
    assert not same_meaning("hypodense", "It is hyperdense.")
    assert not same_meaning("no tumor", "A mass in the liver.")
    assert not same_meaning("cT2 N1 M0", "cT2 N0 M0")


def test_identical_chains_score_100_and_disjoint_ones_0(rng: Rng) -> None:
    for text in chains(rng, 30, (*ORGANS, None)):
        assert score(text, text) == pytest.approx(100)
        assert score(text, "The thyroid gland has calcification. The trachea is dilated.") == 0
        assert score(text, "") == 0


WITHOUT_IMPRESSION = "Findings: A round hypodense mass in the pancreatic tail. Pathology: T2 N0 M0, stage IB."


@pytest.mark.parametrize("text", ["", "Sorry, I can't help.", "Everything is fine, the weather is good."])
def test_a_prediction_without_facts_scores_0(text: str, rng: Rng) -> None:
    for reference in (WITHOUT_IMPRESSION, *chains(rng, 10, (*ORGANS, None))):
        assert score(reference, text) == 0


def test_a_level_that_the_reference_lacks_is_left_out() -> None:
    same, nothing = (judge_chain(WITHOUT_IMPRESSION, text) for text in (WITHOUT_IMPRESSION, ""))
    assert same is not None
    assert nothing is not None
    assert (same.fc, same.ic, same.lrc, same.overall_score) == (100, None, 100, 100)
    assert (nothing.fc, nothing.ic, nothing.lrc, nothing.overall_score) == (0, None, 0, 0)
    whole = judge_chain("A mass in the liver. This suggests a tumor of the liver. Overall T1 N0 M0.", "")
    assert whole is not None
    assert whole.ic == 0
    assert mean_score([same, whole]) == pytest.approx((50, 0, 50, 35))
    assert cot_e(80, None, 10) == pytest.approx((0.3 * 80 + 0.4 * 10) / 0.7)
    invented = WITHOUT_IMPRESSION.replace("Pathology:", "Impression: metastasis of the liver. Pathology:")
    assert 0 < score(WITHOUT_IMPRESSION, invented) < 100


def test_a_reference_without_facts_is_unscored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = "Findings: bowel wall pneumatosis. Impression: ischemia."
    assert judge_chain(reference, reference) is None
    path = pairs(tmp_path / "c.jsonl", 1)
    path.write_text(
        path.read_text() + json.dumps({"id": "x", "reference": reference, "prediction": "", "model": "ours"})
    )
    assert main(["evaluate", "--suite", "chains", str(path)]) == 0
    assert "| ours | 100.00 | – | – | 100.00 | 1 | 1 |" in capsys.readouterr().out


def test_other_wordings_of_the_same_truth_score_100(rng: Rng) -> None:
    for k in range(40):
        truth = random_truth(rng, ORGANS[k % 5])
        canonical, drawn = (final_text(truth, [str(truth.organ)], "organ", rng=each) for each in (None, rng))
        assert score(canonical, drawn) == pytest.approx(100), (canonical, drawn)


def test_the_score_never_rises_with_what_is_left_out_put_in_denied_or_moved(rng: Rng) -> None:
    for text in chains(rng, 40):
        for change in (deleted, inserted):
            parts, before = clauses(text), 100.0
            while len(parts) > 1 and len(parts) < 14:
                parts = change(parts, rng)
                now = score(text, joined(parts))
                assert now <= before + 1e-9, (change.__name__, text, joined(parts))
                before = now
            assert before < 100
        for worse in (denied(text), moved(text)):
            assert score(text, worse) < 100


def degraded(text: str, share: float, rng: Rng) -> tuple[str, float]:
    """A share of the sentences left out, denied, moved to another organ or replaced; and what share it was."""
    parts = clauses(text)
    hit = rng.permutation(len(parts))[: round(share * len(parts))]
    for place in hit:
        part = parts[place]
        heading = part[: part.index(":") + 1] if ":" in part else ""
        choices = (heading, denied(part), moved(part), f"{heading} {rng.choice(SPURIOUS)}")
        worse = [each for each in choices if set(triples(each)) != set(triples(part))]
        parts[place] = str(rng.choice(worse or [heading]))
    return joined([part for part in parts if part.strip()]), len(hit) / len(parts)


def test_the_score_agrees_in_rank_with_the_corruption(rng: Rng) -> None:
    levels, scores = [], []
    for k, text in enumerate(chains(rng, 240)):
        worse, level = degraded(text, (k % 6) / 5, rng)
        levels.append(level)
        scores.append(score(text, worse))
    correlation = float(spearmanr(levels, scores).statistic)
    print(f"Spearman {correlation:.3f} over {len(scores)} chains")
    assert correlation <= -0.8


GOOD = {"scoring": {level: dict.fromkeys(names, "8/10") for level, names in DIMENSIONS.items()}}


@pytest.mark.parametrize(
    ("change", "readable"),
    [
        ({}, True),
        ({"s1_finding": {"existence_match": 7, "completeness": "7", "accuracy": "7 / 10"}}, True),
        ({"s1_finding": {"existence_match": 7, "completeness": 7}}, False),
        ({"s1_finding": {"existence_match": 11, "completeness": 7, "accuracy": 7}}, False),
        ({"s1_finding": {"existence_match": "good", "completeness": 7, "accuracy": 7}}, False),
        ({"s1_finding": {"existence_match": True, "completeness": 7, "accuracy": 7}}, False),
        ({"s1_finding": "8/10"}, False),
    ],
)
def test_a_reply_is_read_whole_or_not_at_all(change: dict[str, Any], readable: bool) -> None:
    assert (read_scoring({"scoring": GOOD["scoring"] | change}) is not None) is readable
    assert read_scoring({}) is None


def pairs(path: Path, count: int) -> Path:
    rows = [
        {"id": str(k), "reference": "A mass.", "prediction": f"A mass, {k}.", "model": "ours"}
        for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("none", ['{"triples": []}', '```json\n{"triples": []}\n```', "[]", "None."])
def test_a_prediction_in_which_the_judge_finds_no_fact_scores_0(
    none: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def say(_: object, prompt: str) -> str:
        asked.append(prompt)
        return "(pancreas, has, mass)" if prompt.endswith("A mass in the pancreas.") else none

    monkeypatch.setattr(chain_judge, "say", say)
    model: Any = object()
    refused = anyio.run(chain_judge.ask_judge, model, "A mass in the pancreas.", "I'm sorry, I can't.")
    assert refused is not None
    assert (refused.fc, refused.ic, refused.lrc, refused.overall_score) == (0, 0, 0, 0)
    assert len(asked) == 2
    assert '{"triples": []}' in asked[0]
    assert anyio.run(chain_judge.ask_judge, model, "The weather.", "A mass in the pancreas.") is None


@pytest.mark.slow
def test_a_malformed_reply_is_asked_again_and_then_counted_as_unscored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def reply(request: dict[str, Any]) -> str:
        text = text_of(request)
        if "Reply with JSON" not in text:
            return "(scan, has, mass);"
        asked.append(text)
        if "A mass, 0." in text:
            return 'I\'d give it a 10 out of 10, or {"scoring": 10}.'
        return (
            "{ broken"
            if sum("A mass, 1." in each for each in asked) == 1
            else f"```json\n{json.dumps(GOOD)}\n```"
        )

    with scripted(reply) as server:
        command = [
            "evaluate",
            "--suite",
            "chains",
            str(pairs(tmp_path / "c.jsonl", 3)),
            "--out",
            str(tmp_path / "out"),
        ]
        assert main([*command, "--judge-url", server.url, "--judge-model", MODEL]) == 0
    assert [sum(f"A mass, {k}." in each for each in asked) for k in range(3)] == [3, 2, 1]
    shown = capsys.readouterr().out
    assert "| ours | 80.00 | 80.00 | 80.00 | 80.00 | 2 | 1 |" in shown
    assert "not a medical device" in shown
    results = [json.loads(line) for line in (tmp_path / "out" / "chains.jsonl").read_text().splitlines()]
    assert [each["score"] is None for each in results] == [True, False, False]


def test_the_deterministic_judge_scores_a_file_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--suite", "chains", str(pairs(tmp_path / "c.jsonl", 2)), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["judge"], report["rows"][0]["scored"]) == ("triples (deterministic)", 2)
    first = report["results"][0]["score"]
    assert (set(first["scoring"]), first["fc"], first["ic"], first["lrc"]) == (
        {"s1_finding"},
        100,
        None,
        None,
    )
    assert report["rows"][0]["s_ic"] is None


def test_a_line_that_is_no_chain_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pairs(tmp_path / "c.jsonl", 1)
    path.write_text(path.read_text() + '{"id": "x"}\n')
    assert main(["evaluate", "--suite", "chains", str(path)]) == 2
    assert "c.jsonl line 2: " in capsys.readouterr().err
