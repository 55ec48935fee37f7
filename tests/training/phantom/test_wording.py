"""However it is worded, what is said of a phantom reads back as its truth."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from tests.training.phantom.truths import random_truth, sampled_truths
from tumorchain_agent.tools.organs import MERGE, match_organs, mentioned_organs
from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.tnm import parse_tnm, primary_organ
from tumorchain_agent.training.phantom import wording as W
from tumorchain_agent.training.phantom.lesions import BOUNDARIES, DENSITIES, SHAPES
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.reports import clinical_stage, pathology_report, radiology_report
from tumorchain_agent.training.phantom.text import compose, final_text, findings, impression, short_answer
from tumorchain_agent.training.quick_evaluation import organ_in
from tumorchain_agent.training.tasks import SUBTASKS

PATIENTS = 400


def patients(seed: int, ill: bool | None = None) -> Iterator[tuple[np.random.Generator, Truth]]:
    rng = np.random.default_rng(seed)
    for k in range(PATIENTS):
        organ = (None, *ORGANS)[k % 6] if ill is None else ORGANS[k % 5] if ill else None
        yield rng, random_truth(rng, organ)


def said(text: str, canonical: tuple[str, ...]) -> list[str]:
    """Those of the canonical words that a text says, in any of their wordings."""
    return [
        name
        for name in canonical
        if any(
            re.search(rf"(?<![\w-]){re.escape(way)}(?![\w-])", text) for way in (name, *W.SAME.get(name, ()))
        )
    ]


def test_tnm_reads_back_from_every_wording_without_a_flag(seed: int) -> None:
    for rng, truth in patients(seed, ill=True):
        for text in (final_text(truth, list(ORGANS), "report", rng=rng), pathology_report(truth)):
            read = parse_tnm(text, truth.organ)
            assert (read.t, read.n, read.m) == (truth.t, truth.n, truth.m), text
            assert not read.flags, (text, read.flags)


def test_no_category_is_read_where_there_is_no_tumour(seed: int) -> None:
    for rng, truth in patients(seed, ill=False):
        for text in (final_text(truth, list(ORGANS), "report", rng=rng), pathology_report(truth)):
            read = parse_tnm(text)
            assert (read.t, read.n, read.m, read.stage) == ("TX", "NX", "MX", None), text


def test_a_pathology_report_states_the_stage_and_the_disease(seed: int) -> None:
    for _, truth in patients(seed, ill=True):
        report = pathology_report(truth)
        read = parse_tnm(report)
        assert (read.primary_organ, read.stage) == (truth.organ, clinical_stage(truth)), report
        assert primary_organ(report) == truth.organ


def test_the_verdict_of_an_impression_is_read_by_the_evaluation(seed: int) -> None:
    for rng, truth in patients(seed):
        assert organ_in(final_text(truth, list(ORGANS), "organ", rng=rng)) == truth.organ
        assert organ_in(radiology_report(truth)) == truth.organ
        assert organ_in(impression(truth, rng)) == truth.organ


def test_organ_and_section_are_matched_in_every_wording_of_a_mass(seed: int) -> None:
    for rng, truth in patients(seed, ill=True):
        text = W.mass(truth, W.size_phrase(truth.size_mm, rng), rng)
        (mention,) = match_organs(text)
        assert (mention.organ, mention.substructure) == (truth.organ, truth.substructure), text


def test_attributes_of_a_mass_are_said_once_each_and_right(seed: int) -> None:
    for rng, truth in patients(seed, ill=True):
        text = W.mass(truth, W.size_phrase(truth.size_mm, rng), rng)
        assert said(text, SHAPES) == [truth.shape], text
        assert said(text, BOUNDARIES) == [truth.boundary], text
        assert said(text, DENSITIES) == [truth.density], text
        assert said(text, ("solitary", "multiple")) == ["solitary" if truth.count == 1 else "multiple"], text
        assert said(text, ("under 2 cm", "2 to 4 cm", "over 4 cm")) == [W.size_phrase(truth.size_mm)], text


def test_no_two_facts_share_a_word() -> None:
    ways = [way for canonical, others in W.SAME.items() for way in (canonical, *others)]
    assert len(ways) == len(set(ways))


def test_a_radiology_report_states_size_nodes_and_sites_and_nothing_of_pathology(seed: int) -> None:
    numbers = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for _, truth in patients(seed, ill=True):
        report = radiology_report(truth)
        (number, unit) = re.search(r"(\d+(?:\.\d)?) (mm|cm)\b", report).groups()  # type: ignore[union-attr]
        assert float(number) * (10 if unit == "cm" else 1) == truth.size_mm, report
        nodes = re.search(r"(\w+) enlarged regional lymph nodes?\.", report)
        count = nodes[1].lower() if nodes else "0"
        assert (numbers.index(count) if count in numbers else int(count)) == truth.nodes, report
        sites = {
            "liver": r"[Mm]etast\w+[^.]* liver",
            "lung": "[Mm]etast[^.]* lung",
            "peritoneum": "peritoneum",
        }
        assert {site for site, words in sites.items() if re.search(words, report)} == set(truth.sites), report
        assert parse_tnm(report, truth.organ).t == "TX"
        named = set(mentioned_organs(report))
        assert {TABLE[int(MERGE[number])] for number in (*truth.compresses, *truth.invaded)} <= named
        assert set(ORGANS) & named >= {truth.organ}
        assert report == radiology_report(truth)


def test_a_healthy_organ_is_called_so_and_no_ill_one_is(seed: int) -> None:
    for _, truth in patients(seed):
        report = radiology_report(truth)
        found = re.search(r"([^.]*) (?:is|are) (?:unremarkable|normal|free of masses)\.", report)
        healthy = set(mentioned_organs(found[1])) if found else set()
        mimicked = {each.split(":")[0] for each in truth.mimics}
        assert healthy == set(ORGANS) - set(truth.abnormal_organs) - mimicked, report


def test_rounds_name_what_the_next_is_shown_in_every_wording(seed: int) -> None:
    for rng, truth in patients(seed):
        suspicion = dict(zip(rng.permutation(ORGANS).tolist(), rng.random(5).tolist(), strict=True))
        subtask = SUBTASKS[int(rng.integers(len(SUBTASKS)))]
        sample = compose(rng, truth, subtask, suspicion)
        for text, organs in zip(sample.texts[:-1], sample.organs[1:], strict=True):
            assert tuple(mentioned_organs(text)) == organs, text
        shown = {organ for organs in sample.organs for organ in organs}
        assert set(mentioned_organs(sample.texts[-1])) <= shown, sample.texts[-1]


def test_the_answer_is_the_canonical_one_whatever_the_wording(seed: int) -> None:
    for rng, truth in patients(seed):
        suspicion = dict(zip(ORGANS, rng.random(5).tolist(), strict=True))
        for subtask in SUBTASKS:
            sample = compose(rng, truth, subtask, suspicion)
            answer = sample.texts[-1].rsplit("Answer: ", 1)[1]
            assert answer == f"{short_answer(truth, subtask, sample.asked_organ)}."


def test_findings_impression_and_pathology_come_in_this_order(seed: int) -> None:
    for rng, truth in patients(seed):
        text = final_text(truth, list(ORGANS), "report", rng=rng)
        found = re.findall(r"(?:^|\. )(Findings|Impression|Pathology|Answer): ", text)
        assert found == ["Findings", "Impression", "Pathology", "Answer"], text


def test_wordings_differ_between_patients_and_the_canonical_is_the_commonest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_truth(rng, "pancreas")
    texts = [final_text(truth, list(ORGANS), "report", rng=rng) for _ in range(200)]
    assert len(set(texts)) > 60
    words = [W.word(rng, "ill-defined") for _ in range(600)]
    assert 0.4 < words.count("ill-defined") / 600 < 0.6
    assert {radiology_report(random_truth(rng, None)).split(".")[0].split(",")[0] for _ in range(60)} == {
        "CT of the abdomen",
        "Abdominal CT",
    }


def test_without_a_generator_the_wording_is_canonical() -> None:
    truth = random_truth(np.random.default_rng(1), "stomach")
    assert final_text(truth, list(ORGANS), "shape") == final_text(truth, list(ORGANS), "shape")
    assert str(truth.density) in final_text(truth, list(ORGANS), "shape")


def test_findings_of_a_tumor_tell_of_nodes_and_metastases_whether_there_are_any_or_not(seed: int) -> None:
    told = [truth for truth in sampled_truths(seed, 25) if truth.organ]
    for truth in told:
        text = findings(truth, list(ORGANS))
        assert ("No enlarged regional lymph nodes." in text) is (truth.n == "N0")
        assert ("Enlarged regional lymph nodes." in text) is (truth.n != "N0")
        assert ("No metastases." in text) is (truth.m == "M0")
        if truth.sites == ("liver",) and truth.organ != "liver":
            assert "etastas" not in findings(truth, [str(truth.organ)]), "the liver was not looked at"
    assert len(told) > 10
