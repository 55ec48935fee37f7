"""Every fault that an expert can make is caught by the calibrator, the summarizer or a validator, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.engine.injected import Injected, Tampering, catalogue, disagreeing
from tests.training.engine.making import config_for, made_up, outcomes, run, write_cases
from tests.training.engine.scripted import Experts, case_key
from tests.training.engine.server import ModelServer, serving
from tumorchain_agent.training.data.files import read_samples
from tumorchain_agent.training.engine.samples import Outcome
from tumorchain_agent.training.phantom.patient import Truth

CHECKERS = {"calibrator", "summarizer", "validator"}


def befall(faults: Sequence[Injected], seed: int) -> dict[Injected, Truth]:
    """For each fault a patient whom it can befall."""
    found: dict[Injected, Truth] = {}
    for number, fault in enumerate(faults):
        seeds = range(seed + 1000 * number, seed + 1000 * (number + 1))
        found[fault] = next(truth for truth in map(made_up, seeds) if fault.fits(truth))
    return found


def run_with(
    chosen: dict[Injected, Truth], folder: Path, *, once: bool, tampering: bool = True
) -> list[Outcome]:
    """Outcomes of the chosen patients, in order; a patient whom nothing befalls is run with them."""
    truths, good = list(chosen.values()), made_up(1)
    experts = Experts.of([*truths, good])
    faults = {case_key(truth): fault for fault, truth in chosen.items()} if tampering else {}
    folder.mkdir()
    cases = write_cases(folder / "cases.jsonl", [*truths, good])
    with serving(ModelServer(experts, Tampering(faults, experts.truths, once=once))) as server:
        run(config_for(cases, server.url), folder / "out")
    *found, last = outcomes(folder / "out")
    assert last.by is None
    return found


def test_there_are_more_than_forty_faults_of_different_names() -> None:
    names = {fault.name for fault in catalogue()}
    assert len(names) == len(catalogue()) > 40
    assert len(disagreeing()) >= 6


@pytest.mark.slow
def test_every_lasting_fault_ends_in_the_case_being_set_aside_with_the_reason(
    tmp_path: Path, seed: int
) -> None:
    chosen = befall(catalogue(), seed % 10**6)
    found = run_with(chosen, tmp_path / "lasting", once=False)
    missed = [fault.name for fault, outcome in zip(chosen, found, strict=True) if outcome.by not in CHECKERS]
    assert missed == []
    assert all(outcome.faults and outcome.caught and not outcome.samples for outcome in found)
    statistics = (tmp_path / "lasting/out/statistics.json").read_text()
    assert f'"set_aside": {len(chosen)}' in statistics
    assert all(f'"kind": "{outcome.faults[0].kind}"' in statistics for outcome in found)


@pytest.mark.slow
def test_a_fault_that_is_made_once_is_mended_and_counted(tmp_path: Path, seed: int) -> None:
    chosen = befall(catalogue(), seed % 10**6)
    found = run_with(chosen, tmp_path / "once", once=True)
    assert [fault.name for fault, outcome in zip(chosen, found, strict=True) if outcome.by] == []
    assert [fault.name for fault, outcome in zip(chosen, found, strict=True) if not outcome.caught] == []
    some = dict(list(chosen.items())[::8])
    clean = run_with(some, tmp_path / "clean", once=True, tampering=False)
    assert [said(outcome) for outcome in found[::8]] == [said(outcome) for outcome in clean]
    assert not any(outcome.caught for outcome in clean)


def said(outcome: Outcome) -> list[tuple[str, ...]]:
    return [(each.id, each.prompt, *each.texts, each.answer) for each in outcome.samples]


def test_faults_of_each_expert_are_caught_by_whom_the_paper_has_check_it(tmp_path: Path) -> None:
    names = ("extractor mixes up sides", "reasoner contradicts the size by T", "summarizer answers another organ",
             "reasoner: a refusal", "extractor: a truncated reply")  # fmt: skip
    chosen = befall([fault for fault in catalogue() if fault.name in names], 40)
    found = {f.name: o for f, o in zip(chosen, run_with(chosen, tmp_path / "run", once=False), strict=True)}
    kinds = {name: (outcome.by, outcome.faults[0].kind) for name, outcome in found.items()}
    assert kinds == {
        "extractor mixes up sides": ("validator", "wrong_side"),
        "reasoner contradicts the size by T": ("calibrator", "t_contradicts_size"),
        "summarizer answers another organ": ("summarizer", "wrong_answer"),
        "reasoner: a refusal": ("validator", "refusal"),
        "extractor: a truncated reply": ("validator", "truncated"),
    }


@pytest.mark.slow
def test_pathology_of_another_patient_is_never_agreed_with(tmp_path: Path, seed: int) -> None:
    truths, reports, names = [], {}, []
    for number, (name, make) in enumerate(disagreeing().items()):
        for each in range(4):
            start = seed % 10**6 + 10_000 * number + 1000 * each
            truth = next(t for t in map(made_up, range(start, start + 900)) if make(t))
            truths.append(truth)
            reports[truth.seed] = str(make(truth))
            names.append(name)
    experts = Experts({case_key(t, reports[t.seed]): t for t in truths})
    experts.pathology = {case_key(t, reports[t.seed]): reports[t.seed] for t in truths}
    good = made_up(2)
    experts.truths[case_key(good)] = good
    cases = write_cases(tmp_path / "cases.jsonl", [*truths, good], reports)
    with serving(ModelServer(experts)) as server:
        run(config_for(cases, server.url), tmp_path / "out")
    found = outcomes(tmp_path / "out")
    assert [name for name, outcome in zip(names, found, strict=False) if outcome.by not in CHECKERS] == []
    assert found[-1].by is None
    assert {sample.patient for sample in read_samples(tmp_path / "out/samples.jsonl")} == {found[-1].patient}
