"""What is asked of one patient, and the lines that come of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tumorchain_agent.model.wording import in_mode
from tumorchain_agent.training.modes import FULL, Mode
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.text import QUESTIONS
from tumorchain_agent.training.phantom.wording import spoken
from tumorchain_agent.training.suite.answers import NONE, read_fields
from tumorchain_agent.training.suite.finished import (
    Answered,
    Answers,
    Features,
    Finished,
    OrganFeatures,
    Pair,
    Pairs,
    PatientFacts,
    Swap,
    Unfounded,
)
from tumorchain_agent.training.suite.plan import Column
from tumorchain_agent.training.suite.questions import Question, questions_of, unfounded_question_of
from tumorchain_agent.training.suite.talks import Blank, EncodedScan, Shown, Swapped, Talk, Unzoomed

WHICH_ORGAN: Final = QUESTIONS["organ"][0]
IN_THIS_ORGAN: Final = QUESTIONS["tumor_position"][0]
"""What counterfactuals and swaps are asked: always in the same words."""


@dataclass(frozen=True)
class Run:
    """What all lines of a model have in common."""

    checkpoint_id: str
    masks: str
    max_rounds: int
    mode: Mode = FULL
    """In which counterfactuals and swaps are asked."""

    @property
    def mode_name(self) -> str:
        return Column(self.mode).name

    def talk(self, scan: Shown, question: str, mode: Mode | None = None) -> Talk:
        """A conversation that has not begun; without IIR it ends with the first round."""
        mode = mode or self.mode
        rounds = self.max_rounds if mode.iir else 1
        return Talk(scan, in_mode(question, iir=mode.iir, cot=mode.cot), rounds)

    def key(self, seed: int) -> tuple[str, ...]:
        """Of a patient's lines, after their kind."""
        return (self.checkpoint_id, self.masks, str(seed))


@dataclass
class PatientWork:
    """The conversations about one patient in some columns, and about its counterfactuals."""

    run: Run
    scan: EncodedScan
    variants: Sequence[EncodedScan]
    """The patient as drawn and its counterfactuals; none where they aren't asked for."""
    columns: Sequence[Column]
    unfounded: bool = False
    """Whether a patient without a tumor is asked about one."""
    asked: list[Question] = field(init=False)
    talks: dict[str, list[Talk]] = field(init=False)
    """Column → conversations, in the order of the questions."""
    pairs: list[Talk] = field(init=False)
    presuming: list[tuple[Question, Talk]] = field(init=False)
    """At most one."""

    def __post_init__(self) -> None:
        self.asked = questions_of(self.scan.truth, self.scan.organs)
        self.talks = {}
        for column in self.columns:
            shown = _shown(self.scan, column)
            self.talks[column.name] = [self.run.talk(shown, q.text, column.mode) for q in self.asked]
        self.pairs = [self.run.talk(each, WHICH_ORGAN) for each in self.variants]
        presumed = unfounded_question_of(self.scan.truth) if self.unfounded else None
        self.presuming = [(presumed, self.run.talk(self.scan, presumed.text))] if presumed else []

    def all_talks(self) -> list[Talk]:
        asked = [talk for talks in self.talks.values() for talk in talks]
        return [*asked, *self.pairs, *(talk for _, talk in self.presuming)]

    def lines(self) -> Iterator[Finished]:
        """What is finished once all conversations are over."""
        run, seed = self.run, self.scan.truth.seed
        for name, talks in self.talks.items():
            yield Answers(
                checkpoint_id=run.checkpoint_id,
                masks=run.masks,
                seed=seed,
                column=name,
                facts=facts_of(self.scan.truth),
                answers=tuple(map(_answered, self.asked, talks)),
            )
        if self.pairs:
            yield Pairs(
                checkpoint_id=run.checkpoint_id,
                masks=run.masks,
                seed=seed,
                mode=run.mode_name,
                variants=tuple(map(_pair, self.variants, self.pairs)),
            )
        for question, talk in self.presuming:
            yield Unfounded(
                checkpoint_id=run.checkpoint_id,
                masks=run.masks,
                seed=seed,
                mode=run.mode_name,
                answer=_answered(question, talk),
            )


def _shown(scan: EncodedScan, column: Column) -> Shown:
    plain = scan if column.zoom else Unzoomed(scan)
    return Blank(plain) if column.blank else plain


def facts_of(truth: Truth) -> PatientFacts:
    return PatientFacts(
        organ=truth.organ,
        size_mm=truth.size_mm,
        edge=truth.edge,
        pushes=bool(truth.compresses),
        mimic=bool(truth.mimics),
    )


def _answered(question: Question, talk: Talk) -> Answered:
    return Answered(
        subtask=question.subtask,
        question=talk.question,
        asked_organ=question.asked_organ,
        truth=question.truth,
        read=read_fields(talk.texts[-1], question.subtask, question.asked_organ),
        organs=talk.organs,
        texts=talk.texts,
        cut_off=talk.cut_off,
    )


def _pair(scan: EncodedScan, talk: Talk) -> Pair:
    read = read_fields(talk.texts[-1], "organ")
    return Pair(
        variant=scan.variant,
        truth=scan.truth.organ or NONE,
        read=read["organ"] if read else None,
    )


def features_of(run: Run, scan: EncodedScan) -> Features:
    """Statistics of the ROI tokens of those of the five organs that the model sees."""
    found = {}
    for organ in ORGANS:
        tokens = scan.raw_roi(organ).float() if organ in scan.present else None
        if tokens is not None and len(tokens):
            found[organ] = OrganFeatures(
                intensity=scan.intensities[organ],
                p_abnormal=scan.p_abnormal(organ),
                mean=_rounded(tokens.mean(0).tolist()),
                most=_rounded(tokens.amax(0).tolist()),
                sd=_rounded(tokens.std(0, correction=0).tolist()),
            )
    return Features(
        checkpoint_id=run.checkpoint_id,
        masks=run.masks,
        seed=scan.truth.seed,
        facts=facts_of(scan.truth),
        abnormal=scan.truth.abnormal_organs,
        organs=found,
    )


def _rounded(values: list[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def swap_cases(cohort: Sequence[Features]) -> list[tuple[int, int, str]]:
    """(patient with a tumor of an organ, partner in whom that organ is healthy, organ).

    The partner is the one in whom the organ's mean in the model volume is nearest: what differs is the tumor, not the
    contrast phase.
    """
    cases = []
    for ill in cohort:
        organ = ill.facts.organ
        well = [each for each in cohort if organ in each.organs and organ not in each.abnormal]
        if organ is None or organ not in ill.organs or not well:
            continue
        away = {each.seed: abs(each.organs[organ].intensity - ill.organs[organ].intensity) for each in well}
        cases.append((ill.seed, min(away, key=lambda seed: (away[seed], seed)), organ))
    return cases


@dataclass
class SwapWork:
    """Two patients, one with a tumor of an organ and one without, asked about it with their own tokens of it, and then
    with each other's after their own first round."""

    run: Run
    organ: str
    scans: tuple[EncodedScan, EncodedScan]
    own: tuple[Talk, Talk] = field(init=False)
    swapped: tuple[Talk, Talk] = field(init=False)

    def __post_init__(self) -> None:
        question = IN_THIS_ORGAN.format(organ=spoken(self.organ))
        first, second = self.scans
        self.own = (self.run.talk(first, question), self.run.talk(second, question))
        self.swapped = (
            self.run.talk(Swapped(first, self.organ, second), question),
            self.run.talk(Swapped(second, self.organ, first), question),
        )

    def keep_first_rounds(self) -> None:
        """Once the own conversations are over: the swapped ones begin as they did."""
        for own, swapped in zip(self.own, self.swapped, strict=True):
            swapped.said(own.texts[0])

    def lines(self) -> Iterator[Swap]:
        own = [self._verdict(talk) for talk in self.own]
        for k in (0, 1):
            yield Swap(
                checkpoint_id=self.run.checkpoint_id,
                masks=self.run.masks,
                seed=self.scans[k].truth.seed,
                mode=self.run.mode_name,
                partner=self.scans[1 - k].truth.seed,
                organ=self.organ,
                own=own[k],
                partners=own[1 - k],
                swapped=self._verdict(self.swapped[k]),
            )

    def _verdict(self, talk: Talk) -> str | None:
        read = read_fields(talk.texts[-1], "tumor_position", self.organ)
        return read["present"] if read else None
