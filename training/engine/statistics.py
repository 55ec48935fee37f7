"""What a data set of the engine holds, and what its making took: counts like the paper's Figure 2, faults, costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.training.data.summary import Summary, Tally
from tumorchain_agent.training.engine.calls import Usage
from tumorchain_agent.training.engine.config import STAGES, Stage
from tumorchain_agent.training.engine.samples import Outcome


class StageUse(Record):
    """What a stage was asked for the data set, cached replies included: the same however often it was interrupted."""

    stage: Stage
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float


class FaultCount(Record):
    """How often a fault was found, by whom, and how often it ended in a case being set aside."""

    by: str
    kind: str
    found: int
    set_aside: int


class Statistics(Record):
    """Of a run."""

    notice: str = DISCLAIMER
    graph: str
    """Hash of the knowledge graph."""
    cases: int
    set_aside: int
    summary: Summary
    """Samples by task and subtask, patients by side."""
    forms: dict[str, int]
    """Samples by answer type."""
    organs: dict[str, int]
    """Samples by the organ of the tumor."""
    rounds: float
    """Mean rounds of a sample."""
    words: float
    """Mean words of a sample's reasoning."""
    calibrations: int
    """Chains that the calibrator sent back."""
    returns: int
    """Chains that the summarizer sent back."""
    trends: dict[str, int]
    """Of MICS."""
    faults: tuple[FaultCount, ...]
    use: tuple[StageUse, ...]

    @property
    def cost(self) -> float:
        return sum(each.cost for each in self.use)

    def markdown(self) -> str:
        """All of it as tables."""
        organs = [
            (name if name == "no tumor" else display_name(name), count) for name, count in self.organs.items()
        ]
        parts = [
            "# Data engine",
            f"{self.notice} {self.cases:,} cases, {self.set_aside:,} set aside, "
            f"{self.summary.samples.both:,} samples of {self.summary.patients.both:,} patients; "
            f"{self.rounds:.1f} rounds and {self.words:.0f} words of reasoning a sample.",
            self.summary.table(),
            _table(("form", "samples"), self.forms.items()),
            _table(("organ of the tumor", "samples"), organs),
            "## Reviews",
            f"The calibrator sent {self.calibrations:,} chains back, the summarizer {self.returns:,}.",
            _table(
                ("found by", "fault", "found", "cases set aside"),
                [tuple(dict(f).values()) for f in self.faults],
            ),
            "## What it took",
            _table(
                ("stage", "calls", "prompt tokens", "completion tokens", "cost"),
                [(u.stage, u.calls, u.prompt_tokens, u.completion_tokens, f"{u.cost:.4f}") for u in self.use],
            ),
        ]
        if self.trends:
            parts += ["## Score trends of MICS", _table(("trend", "paths"), self.trends.items())]
        return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    cells = [[f"{each:,}" if isinstance(each, int) else str(each) for each in row] for row in rows]
    if not cells:
        return ""
    lines = [list(head), ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass
class Counts:
    """Counts outcomes as they pass; of patients it keeps the id."""

    tally: Tally = field(default_factory=Tally)
    cases: int = 0
    samples: int = 0
    rounds: int = 0
    words: int = 0
    calibrations: int = 0
    returns: int = 0
    aside: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    organs: Counter[str] = field(default_factory=Counter)
    trends: Counter[str] = field(default_factory=Counter)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    use: dict[Stage, Usage] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        self.cases += 1
        self.calibrations += outcome.calibrations
        self.returns += outcome.returns
        self.found.update((each.by, each.kind) for each in outcome.caught)
        if outcome.by is not None:
            self.aside += 1
            self.reasons.update({outcome.faults[0].kind})
            self.ended.update({(outcome.by, each.kind) for each in outcome.faults})
        if outcome.trend is not None:
            self.trends[outcome.trend.kind] += 1
        for stage, usage in outcome.usage.items():
            sums = self.use.setdefault(stage, Usage())
            sums.calls += usage.calls
            sums.prompt_tokens += usage.prompt_tokens
            sums.completion_tokens += usage.completion_tokens
            sums.cost += usage.cost
        for sample in outcome.samples:
            self.tally.add(sample)
            self.samples += 1
            self.rounds += len(sample.rounds)
            self.words += sum(len(text.split()) for text in sample.texts)
            self.forms[sample.answer_type] += 1
            self.organs[str(sample.provenance.get("tumor_organ") or "no tumor")] += 1

    def statistics(self, graph_id: str) -> Statistics:
        kinds = sorted(self.found | self.ended, key=lambda each: (-self.found[each], each))
        return Statistics(
            graph=graph_id,
            cases=self.cases,
            set_aside=self.aside,
            summary=self.tally.summary(),
            forms=dict(sorted(self.forms.items())),
            organs=dict(sorted(self.organs.items())),
            rounds=self.rounds / max(1, self.samples),
            words=self.words / max(1, self.samples),
            calibrations=self.calibrations,
            returns=self.returns,
            trends=dict(sorted(self.trends.items())),
            faults=tuple(
                FaultCount(by=b, kind=k, found=self.found[b, k], set_aside=self.ended[b, k]) for b, k in kinds
            ),
            use=tuple(
                StageUse(stage=stage, calls=u.calls, prompt_tokens=u.prompt_tokens,
                         completion_tokens=u.completion_tokens, cost=round(u.cost, 9))
                for stage in STAGES if (u := self.use.get(stage))
            ),
        )  # fmt: skip
