"""The passes of a model over the cohort: all questions and counterfactuals, the ROI swap, and what a probe reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.segment import Segmenter
from tumorchain_agent.training.suite.finished import (
    Answers,
    Features,
    FinishedLines,
    Line,
    Pairs,
    Swap,
    Unfounded,
)
from tumorchain_agent.training.suite.patients import (
    LARGE_MM,
    Making,
    View,
    ahead,
    scans_of,
    view,
    views_of,
)
from tumorchain_agent.training.suite.plan import Cohort, Column
from tumorchain_agent.training.suite.talks import MOST_BESIDE, Asker, EncodedScan
from tumorchain_agent.training.suite.work import PatientWork, Run, SwapWork, features_of, swap_cases

Advance = Callable[[str, int, int], None]
"""``advance(what, finished, of)`` when some more are finished."""


class ModelPasses:
    """One checkpoint and what is finished of it. Holds the vision tokens of the whole cohort in memory."""

    def __init__(
        self,
        asker: Asker,
        settings: Settings,
        cohort: Cohort,
        columns: Sequence[Column],
        lines: FinishedLines,
    ) -> None:
        self.asker, self.settings, self.cohort, self.columns, self.lines = (
            asker,
            settings,
            cohort,
            columns,
            lines,
        )
        self.run = Run(asker.info.checkpoint_id, cohort.masks, settings.max_rounds, columns[0].mode)
        self.making = Making(
            asker.served.preprocessing, counterfactuals=cohort.grounding, zoom=asker.served.zoom()
        )
        self._scans: dict[int, EncodedScan] = {}

    def all(self, advance: Advance, workers: int) -> None:
        """Do whatever isn't finished yet."""
        self.ask(advance, workers)
        if self.cohort.grounding and self.run.mode.iir:
            self.swap(advance, workers)
        self._scans.clear()
        self.probe(advance, workers)

    def ask(self, advance: Advance, workers: int) -> None:
        """Every patient's questions in all columns, its features, and its counterfactuals."""
        todo = [seed for seed in self.cohort.seeds if self._unfinished(seed)]
        done, total = self.cohort.patients - len(todo), self.cohort.patients
        advance("questions", done, total)
        waiting: list[PatientWork] = []
        for views in self._views(todo, self.making, workers):
            waiting.append(self._work(views))
            full = sum(len(work.all_talks()) for work in waiting) >= MOST_BESIDE
            if full or done + len(waiting) == total:
                self._finish(waiting)
                done += len(waiting)
                advance("questions", done, total)
                waiting = []

    def _unfinished(self, seed: int) -> bool:
        key = self.run.key(seed)
        known = self.lines.get(Features, *key)
        if known is None or self._missing(seed):
            return True
        if not self.cohort.grounding:
            return False
        if known.facts.organ is None:
            return self._lacks(Unfounded, seed)
        return known.facts.size_mm >= LARGE_MM and self._lacks(Pairs, seed)

    def _lacks(self, kind: type[Line], seed: int) -> bool:
        return self.lines.get(kind, *self.run.key(seed), self.run.mode_name) is None

    def _missing(self, seed: int) -> list[Column]:
        return [c for c in self.columns if self.lines.get(Answers, *self.run.key(seed), c.name) is None]

    def _work(self, views: Sequence[View]) -> PatientWork:
        scans = [self.asker.encode(each) for each in views]
        seed = scans[0].truth.seed
        if self.cohort.grounding:
            self._scans[seed] = scans[0]
        variants = scans if len(scans) > 1 and self._lacks(Pairs, seed) else ()
        unfounded = self.cohort.grounding and self._lacks(Unfounded, seed)
        return PatientWork(self.run, scans[0], variants, self._missing(seed), unfounded)

    def _finish(self, works: Sequence[PatientWork]) -> None:
        self.asker.answer([talk for work in works for talk in work.all_talks()])
        for work in works:
            known = self.lines.get(Features, *self.run.key(work.scan.truth.seed))
            self.lines.add(*work.lines(), *([] if known else [features_of(self.run, work.scan)]))

    def swap(self, advance: Advance, workers: int) -> None:
        """Patients with a tumor of an organ against partners without one, both ways."""
        known = [f for seed in self.cohort.seeds if (f := self.lines.get(Features, *self.run.key(seed)))]
        cases = swap_cases(known)
        todo = [case for case in cases if self._swap_unfinished(*case)]
        done = len(cases) - len(todo)
        advance("ROI swap", done, len(cases))
        missing = sorted({seed for ill, well, _ in todo for seed in (ill, well)} - set(self._scans))
        making = replace(self.making, counterfactuals=False)
        for views in self._views(missing, making, workers):
            self._scans[views[0].truth.seed] = self.asker.encode(views[0])
        most = MOST_BESIDE // 4
        for first in range(0, len(todo), most):
            works = [
                SwapWork(self.run, organ, (self._scans[ill], self._scans[well]))
                for ill, well, organ in todo[first : first + most]
            ]
            self.asker.answer([talk for work in works for talk in work.own])
            for work in works:
                work.keep_first_rounds()
            self.asker.answer([talk for work in works for talk in work.swapped])
            self.lines.add(*(line for work in works for line in work.lines()))
            done += len(works)
            advance("ROI swap", done, len(cases))

    def _swap_unfinished(self, ill: int, well: int, organ: str) -> bool:
        ways = ((ill, well), (well, ill))
        mode = self.run.mode_name
        return any(self.lines.get(Swap, *self.run.key(a), mode, str(b), organ) is None for a, b in ways)

    def probe(self, advance: Advance, workers: int) -> None:
        """Features of the patients that a probe learns from."""
        seeds = self.cohort.probe_seeds
        todo = [seed for seed in seeds if self.lines.get(Features, *self.run.key(seed)) is None]
        done = len(seeds) - len(todo)
        for views in self._views(todo, replace(self.making, counterfactuals=False, zoom=None), workers):
            self.lines.add(features_of(self.run, self.asker.encode(views[0])))
            done += 1
            advance("probe", done, len(seeds))

    def _views(self, seeds: Sequence[int], making: Making, workers: int) -> Iterator[list[View]]:
        if self.cohort.masks == "truth":
            yield from ahead(views_of, seeds, making, workers)
            return
        with ExitStack() as stack:
            segmenter = stack.enter_context(Segmenter(self.settings))
            for scans in ahead(scans_of, seeds, making, workers):
                yield [view(each, making, segmenter.segment(each.ct)) for each in scans]
