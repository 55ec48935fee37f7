"""Finished lines → the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tumorchain_agent.training.modes import MODES
from tumorchain_agent.training.suite.finished import (
    Answers,
    Features,
    FinishedLines,
    Line,
    Pairs,
    Swap,
    Unfounded,
)
from tumorchain_agent.training.suite.plan import TITLES, Column, Plan
from tumorchain_agent.training.suite.probe import LEAST, PROBES, predict
from tumorchain_agent.training.suite.result import ColumnResult, ModelResult, ProbeResult, SuiteResult
from tumorchain_agent.training.suite.scores import (
    Array,
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

if TYPE_CHECKING:
    from tumorchain_agent.model.checkpoint import CheckpointInfo

Model = tuple[str, "CheckpointInfo"]
"""Title and what the checkpoint tells of itself."""


def summarise(plan: Plan, models: Sequence[Model], lines: FinishedLines) -> SuiteResult:
    """The result, once every line that the plan asks for is finished."""
    known = _Known(plan, lines)
    table = _Table(Bootstrap(plan.cohort.patients))
    several = len(models) > 1
    for blank in (False, True):
        for number, (title, info) in enumerate(models):
            for column in plan.columns(number, zooms=info.zoom is not None):
                if column.blank is blank:
                    answers = known.answers(info, column)
                    table.add(answers, column, info, title if several else "")
    first = known.answers(models[0][1], plan.columns(0)[0])
    table.add_majority(first)
    return SuiteResult(
        first_seed=plan.cohort.first_seed,
        patients=len(first),
        tumors=sum(line.facts.organ is not None for line in first),
        questions=sum(len(line.answers) for line in first),
        masks=plan.cohort.masks,
        columns=tuple(table.columns),
        models=tuple(known.beside(title, info, table.bootstrap) for title, info in models),
    )


@dataclass
class _Table:
    """Columns over the same patients, each compared with the first."""

    bootstrap: Bootstrap
    columns: list[ColumnResult] = field(default_factory=list)
    first: Mapping[str, Array] | None = None

    def add(self, answers: Sequence[Answers], column: Column, info: CheckpointInfo, model: str) -> None:
        mode = next(name for name, mode in MODES.items() if mode == column.mode)
        words = TITLES[mode] + ("" if column.zoom else ", w/o zoom") + (", text only" if column.blank else "")
        kind: Literal["model", "text only"] = "text only" if column.blank else "model"
        self._add(answers, f"{model} {words}".strip(), kind, organ_reads(answers), info, mode)

    def add_majority(self, answers: Sequence[Answers]) -> None:
        """The commonest class of each subtask in this cohort; as a tumor's organ the commonest from 2 cm on."""
        best = best_organ([line.facts for line in answers])
        self._add(majority(answers), "majority class", "majority", best)

    def _add(
        self,
        answers: Sequence[Answers],
        title: str,
        kind: Literal["model", "text only", "majority"],
        organs: Sequence[str | None],
        info: CheckpointInfo | None = None,
        mode: str | None = None,
    ) -> None:
        rows = row_shares(self.bootstrap, subtask_sums(answers))
        texts = [each.texts for line in answers for each in line.answers if each.texts]
        self.columns.append(
            ColumnResult(
                title=title,
                kind=kind,
                checkpoint_id=info.checkpoint_id if info else None,
                alpha=info.alpha if info else None,
                mode=mode,
                cells=cells(answers, rows, self.first),
                tumors=tumor_rates(self.bootstrap, [line.facts for line in answers], organs),
                mean_rounds=sum(map(len, texts)) / len(texts) if texts else None,
                cut_off=sum(each.cut_off for line in answers for each in line.answers),
            )
        )
        self.first = self.first or rows


@dataclass(frozen=True)
class _Known:
    """The lines of a plan, in the order of the patients."""

    plan: Plan
    lines: FinishedLines

    def answers(self, info: CheckpointInfo, column: Column) -> list[Answers]:
        return self._of(Answers, info, self.plan.cohort.seeds, column.name)

    def _of(self, kind: type[Line], info: CheckpointInfo, seeds: Iterable[int], *rest: str) -> list[Line]:
        masks = self.plan.cohort.masks
        found = (self.lines.get(kind, info.checkpoint_id, masks, str(seed), *rest) for seed in seeds)
        return [line for line in found if line is not None]

    def beside(self, title: str, info: CheckpointInfo, bootstrap: Bootstrap) -> ModelResult:
        """What there is of a model beside the questions."""
        cohort = self.plan.cohort
        mode = self.plan.columns(0)[0]
        swapping = cohort.grounding and mode.mode.iir
        cases = swap_cases(self._of(Features, info, cohort.seeds)) if swapping else []
        swaps = [
            line
            for ill, well, organ in cases
            for own, partner in ((ill, well), (well, ill))
            for line in self._of(Swap, info, [own], mode.name, str(partner), organ)
        ]
        return ModelResult(
            title=title,
            checkpoint_id=info.checkpoint_id,
            pairs=pair_rates(self._of(Pairs, info, cohort.seeds, mode.name)) if cohort.grounding else (),
            swap=swap_rates(swaps),
            unfounded=unfounded_rates(self._of(Unfounded, info, cohort.seeds, mode.name))
            if cohort.grounding
            else None,
            probes=self._probes(info, bootstrap),
        )

    def _probes(self, info: CheckpointInfo, bootstrap: Bootstrap) -> tuple[ProbeResult, ...]:
        cohort = self.plan.cohort
        learn = self._of(Features, info, cohort.probe_seeds)
        held_out = self._of(Features, info, cohort.seeds)
        if len(learn) < LEAST:
            return ()
        facts = [line.facts for line in held_out]
        return tuple(
            ProbeResult(
                name=name,
                patients=len(learn),
                tumors=tumor_rates(bootstrap, facts, predict(name, learn, held_out)),
            )
            for name in PROBES
        )
