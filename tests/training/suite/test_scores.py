"""Rates, their intervals, differences and baselines against figures that are known otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.suite.made_up import CHECKPOINT, answers, features, organ_of, truths
from tumorchain_agent.training.suite.answers import NONE
from tumorchain_agent.training.suite.finished import Answered, Pair, Pairs, PatientFacts, Swap, Unfounded
from tumorchain_agent.training.suite.probe import PROBES, predict
from tumorchain_agent.training.suite.scores import (
    AVERAGE,
    Bootstrap,
    best_organ,
    cells,
    majority,
    organ_reads,
    pair_rates,
    row_shares,
    subtask_sums,
    swap_rates,
    tumor_rates,
    unfounded_rates,
)
from tumorchain_agent.training.suite.work import swap_cases
from tumorchain_agent.training.tasks import SUBTASKS, TASKS


def test_an_interval_of_independent_answers_is_that_of_the_binomial() -> None:
    points = np.zeros(400)
    points[:280] = 1
    rate = Bootstrap(400).rate((points, np.ones(400)))
    error = 1.96 * (0.7 * 0.3 / 400) ** 0.5
    assert rate.value == pytest.approx(0.7)
    assert rate.interval == pytest.approx((0.7 - error, 0.7 + error), abs=0.006)
    assert rate.count == 400


def test_answers_of_one_patient_are_drawn_together() -> None:
    """Ten equal answers of each patient tell no more than one: the interval is as wide as over patients."""
    points = np.repeat([10.0, 0.0], 50)
    low, high = Bootstrap(100).rate((points, np.full(100, 10.0))).interval or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * 0.05, abs=0.02)


def test_rows_are_subtasks_tasks_and_the_mean_of_the_twelve() -> None:
    rng = np.random.default_rng(0)
    lines = [answers(truth, 0.6, rng) for truth in truths(60)]
    rows = row_shares(Bootstrap(60, draws=50), subtask_sums(lines))
    assert list(rows) == [*SUBTASKS, "position", "lesion", "tnm", AVERAGE]
    for task, names in TASKS.items():
        assert rows[task][0] == pytest.approx(np.mean([rows[name][0] for name in names]))
    assert rows[AVERAGE][0] == pytest.approx(np.mean([rows[name][0] for name in SUBTASKS]))
    found = {each.row: each for each in cells(lines, rows, None)}
    assert found["organ"].accuracy.count == 60
    assert found["shape"].accuracy.count == 36
    assert found[AVERAGE].accuracy.count == sum(len(line.answers) for line in lines)
    unread = sum(each.read is None for line in lines for each in line.answers)
    assert found[AVERAGE].unreadable == unread > 0
    assert found["organ"].difference is None


def test_a_difference_is_paired() -> None:
    """Two columns that differ by the same questions of every patient have a difference without any spread."""
    rng = np.random.default_rng(0)
    first = [answers(truth, 0.5, rng) for truth in truths(40)]
    second = [
        line.model_copy(
            update={
                "answers": tuple(
                    each.model_copy(update={"read": each.truth if each.subtask == "organ" else each.read})
                    for each in line.answers
                )
            }
        )
        for line in first
    ]
    bootstrap = Bootstrap(40)
    rows = [row_shares(bootstrap, subtask_sums(lines)) for lines in (first, second)]
    found = {each.row: each for each in cells(second, rows[1], rows[0])}
    organ = found["organ"]
    assert organ.accuracy.value == 1
    assert organ.difference == pytest.approx(1 - rows[0]["organ"][0])
    assert organ.difference_interval is not None
    assert organ.difference_interval[0] > 0
    assert found["node"].difference == 0
    assert found["node"].difference_interval == (0, 0)
    assert found[AVERAGE].difference == pytest.approx((organ.difference or 0) / 12)


def test_the_majority_class_is_that_of_the_cohort() -> None:
    rng = np.random.default_rng(0)
    lines = [answers(truth, 0.5, rng) for truth in truths(50)]
    best = majority(lines)
    reads = [each.read for line in best for each in line.answers if each.subtask == "organ"]
    assert reads == [{"organ": NONE}] * 50
    rows = row_shares(Bootstrap(50, draws=5), subtask_sums(best))
    assert rows["organ"][0] == pytest.approx(0.4)
    assert 0.2 < rows["boundary"][0] < 0.8
    facts = [line.facts for line in best]
    large = [fact for fact in facts if fact.organ and fact.size_mm >= 20]
    organ = best_organ(facts)[0]
    rates = tumor_rates(Bootstrap(50), facts, best_organ(facts))
    assert rates.organ_2cm.value == pytest.approx(sum(f.organ == organ for f in large) / len(large))
    assert rates.balanced_accuracy.value == 0.5


def test_presence_and_organ_are_counted_by_size() -> None:
    def fact(organ: str | None, size: float) -> PatientFacts:
        small = organ is not None and size < 20
        return PatientFacts(organ=organ, size_mm=size, edge=small, pushes=size > 40, mimic=True)

    facts = [
        fact("liver", 12), fact("liver", 19.9), fact("colorectum", 20), fact("stomach", 40), fact("liver", 41),
        fact(None, 0), fact(None, 0), fact(None, 0), fact(None, 0),
    ]  # fmt: skip
    reads = [None, "liver", "liver", "stomach", NONE, NONE, "liver", None, NONE]
    rates = tumor_rates(Bootstrap(9), facts, reads)
    assert rates.sensitivity.value == pytest.approx(3 / 5)
    assert rates.specificity.value == pytest.approx(2 / 4)
    assert rates.balanced_accuracy.value == pytest.approx(0.55)
    assert rates.present_2cm.value == pytest.approx(2 / 3)
    assert rates.present_2cm.count == 3
    assert rates.organ_2cm.value == pytest.approx(1 / 3)
    assert [s.present.value for s in rates.strata] == [pytest.approx(0.5), 1, 0]
    assert [s.organ.value for s in rates.strata] == [pytest.approx(0.5), pytest.approx(0.5), 0]
    assert [s.organ.count for s in rates.strata] == [2, 2, 1]
    assert [(each.right.value, each.right.count) for each in rates.hard] == [(0.5, 4), (0.5, 2), (0, 1)]


def pairs_line(seed: int, reads: tuple[str | None, str | None, str | None]) -> Pairs:
    variants = (
        Pair(variant="as drawn", truth="liver", read=reads[0]),
        Pair(variant="without tumor", truth=NONE, read=reads[1]),
        Pair(variant="tumor moved", truth="stomach", read=reads[2]),
    )
    return Pairs(checkpoint_id=CHECKPOINT, masks="truth", seed=seed, mode="full", variants=variants)


def test_a_pair_counts_only_when_both_answers_are_right() -> None:
    reads = [("liver", NONE, "stomach"), ("liver", NONE, "liver"), ("colorectum", NONE, "stomach")]
    found = {each.name: each for each in pair_rates([pairs_line(k, each) for k, each in enumerate(reads)])}
    assert found["tumor removed"].accordingly.value == pytest.approx(2 / 3)
    assert found["tumor moved"].accordingly.value == pytest.approx(1 / 3)
    assert (found["all pairs"].accordingly.value, found["all pairs"].accordingly.count) == (0.5, 6)
    assert found["all pairs"].changed.value == pytest.approx(5 / 6)
    assert pair_rates([]) == ()


def test_a_swap_counts_where_one_verdict_is_yes_and_the_other_no() -> None:
    def swap(seed: int, partner: int, *verdicts: str | None) -> Swap:
        own, partners, swapped = verdicts
        return Swap(
            checkpoint_id=CHECKPOINT,
            masks="truth",
            seed=seed,
            mode="full",
            partner=partner,
            organ="liver",
            own=own,
            partners=partners,
            swapped=swapped,
        )

    lines = [
        swap(1, 2, "yes", "no", "no"),
        swap(2, 1, "no", "yes", "no"),
        swap(3, 4, "yes", "yes", "yes"),
        swap(5, 6, "yes", None, None),
        swap(7, 8, "another organ", "yes", "yes"),
    ]
    rates = swap_rates(lines)
    assert rates is not None
    assert (rates.followed.value, rates.followed.count, rates.cases) == (0.5, 2, 5)
    assert rates.tumor_shown.value == 0
    assert rates.tumor_hidden.value == 1
    assert swap_rates([]) is None


def test_what_is_said_of_a_tumor_that_is_not_there_is_denied_made_up_or_unreadable() -> None:
    def unfounded(seed: int, read: dict[str, str] | None) -> Unfounded:
        answer = Answered(
            subtask="shape",
            question="What shape is the tumor?",
            asked_organ=None,
            truth={"shape": NONE},
            read=read,
            organs=((),),
            texts=("Answer: as it may be.",),
            cut_off=False,
        )
        return Unfounded(checkpoint_id=CHECKPOINT, masks="truth", seed=seed, mode="full", answer=answer)

    read: list[dict[str, str] | None] = [{"shape": NONE}, {"shape": NONE}, {"shape": "round"}, None]
    rates = unfounded_rates([unfounded(seed, each) for seed, each in enumerate(read)])
    assert rates is not None
    assert (rates.denied.value, rates.made_up.value, rates.denied.count) == (0.5, 0.25, 4)
    assert unfounded_rates([]) is None


def test_a_partner_is_healthy_there_and_nearest_in_intensity() -> None:
    rng = np.random.default_rng(0)
    lines = [features(truth, rng) for truth in truths(30)]
    by_seed = {line.seed: line for line in lines}
    cases = swap_cases(lines)
    assert len(cases) == sum(line.facts.organ is not None for line in lines)
    for ill, well, organ in cases:
        assert by_seed[ill].facts.organ == organ
        assert organ not in by_seed[well].abnormal
        away = abs(by_seed[ill].organs[organ].intensity - by_seed[well].organs[organ].intensity)
        others = [each for each in lines if organ not in each.abnormal]
        own = by_seed[ill].organs[organ].intensity
        assert away == min(abs(each.organs[organ].intensity - own) for each in others)


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_finds_what_is_there_and_nothing_where_nothing_is(name: str) -> None:
    rng = np.random.default_rng(0)
    learn, held_out = truths(150), truths(60, 1000)
    found = {}
    for signal in (5.0, 0.0):
        read = predict(
            name,
            [features(truth, rng, signal=signal) for truth in learn],
            [features(truth, rng, signal=signal) for truth in held_out],
        )
        found[signal] = np.mean([a == organ_of(b) for a, b in zip(read, held_out, strict=True)])
    assert found[5.0] > 0.75
    assert found[0.0] < 0.6


def test_the_organ_is_read_from_its_own_subtask() -> None:
    rng = np.random.default_rng(0)
    people = truths(5)
    assert organ_reads([answers(truth, 1.0, rng) for truth in people]) == [organ_of(t) for t in people]
