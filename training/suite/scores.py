"""Lines → rates with bootstrap intervals by patient; columns are compared on the same draws of patients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.training.phantom.patient import ORGANS
from tumorchain_agent.training.suite.answers import NONE, score
from tumorchain_agent.training.suite.finished import Answered, Answers, Pairs, PatientFacts, Swap, Unfounded
from tumorchain_agent.training.suite.patients import LARGE_MM, Variant
from tumorchain_agent.training.suite.result import (
    Cell,
    HardCase,
    Interval,
    PairRates,
    Rate,
    Stratum,
    SwapRates,
    TumorRates,
    UnfoundedRates,
)
from tumorchain_agent.training.tasks import SUBTASKS, TASKS

DRAWS: Final = 2000
STRATA: Final = ("< 2 cm", "2-4 cm", "> 4 cm")
AVERAGE: Final = "average"
HARD: Final[dict[str, Callable[[PatientFacts], bool]]] = {
    "healthy with a benign mimic": lambda fact: fact.organ is None and fact.mimic,
    "under 2 cm at the organ's edge": lambda fact: fact.edge,
    "pushing a neighbour aside": lambda fact: fact.pushes,
}
"""The paper's error types: false positives, small lesions missed, and a healthy organ taken for the ill one."""
Array = NDArray[np.float64]
Sums = tuple[Array, Array]
"""Points and questions of each patient, [patients] or [patients, rows]."""


class Bootstrap:
    """The same draws of patients for everything that is compared."""

    def __init__(self, patients: int, draws: int = DRAWS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=draws).astype(
            np.float64
        )
        """[draws, patients]: how often each patient was drawn; before all others, everybody once."""
        self.weights = np.concatenate([np.ones((1, patients)), self.weights])

    def shares(self, sums: Sums) -> Array:
        """[1 + draws, …] points over questions; NaN where a draw has no question."""
        points, questions = (self.weights @ each for each in sums)
        return np.divide(points, questions, out=np.full_like(points, np.nan), where=questions > 0)

    def rate(self, sums: Sums) -> Rate:
        return rate_of(self.shares(sums), int(sums[1].sum()))


def rate_of(shares: Array, count: int) -> Rate:
    """A rate from its value and its draws behind it."""
    value = float(shares[0])
    return Rate(value=None if np.isnan(value) else value, interval=interval_of(shares[1:]), count=count)


def interval_of(draws: Array) -> Interval | None:
    known = draws[~np.isnan(draws)]
    if not known.size:
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def subtask_sums(lines: Sequence[Answers]) -> Sums:
    """Points and questions, [patients, 12]."""
    points, questions = np.zeros((2, len(lines), len(SUBTASKS)))
    for row, line in enumerate(lines):
        for each in line.answers:
            place = SUBTASKS.index(each.subtask)
            points[row, place] += score(each.truth, each.read)
            questions[row, place] += 1
    return points, questions


def row_shares(bootstrap: Bootstrap, sums: Sums) -> dict[str, Array]:
    """Row → its share and the draws of it: 12 subtasks, tasks (the report is both), average."""
    shares = bootstrap.shares(sums)
    rows = {name: shares[:, k] for k, name in enumerate(SUBTASKS)}
    rows |= {task: _mean([rows[name] for name in names]) for task, names in TASKS.items()}
    return rows | {AVERAGE: _mean([rows[name] for name in SUBTASKS])}


def _mean(shares: Sequence[Array]) -> Array:
    """Over those that are known."""
    stacked = np.stack(shares)
    known = (~np.isnan(stacked)).sum(0)
    sums = np.nansum(stacked, 0)
    mean: Array = np.divide(sums, known, out=np.full_like(sums, np.nan), where=known > 0)
    return mean


def rows_of(row: str) -> tuple[str, ...]:
    """The subtasks that a row is about."""
    if row == AVERAGE:
        return SUBTASKS
    return next((names for task, names in TASKS.items() if task == row), (row,))


def cells(
    lines: Sequence[Answers], rows: Mapping[str, Array], first: Mapping[str, Array] | None
) -> tuple[Cell, ...]:
    """A column's cells; ``first`` are the rows of the column that it is compared with."""
    asked = Counter(each.subtask for line in lines for each in line.answers)
    unreadable = Counter(each.subtask for line in lines for each in line.answers if each.read is None)
    found = []
    for row, shares in rows.items():
        difference = None if first is None else shares - first[row]
        found.append(
            Cell(
                row=row,
                accuracy=rate_of(shares, sum(asked[name] for name in rows_of(row))),
                unreadable=sum(unreadable[name] for name in rows_of(row)),
                difference=None if difference is None or np.isnan(difference[0]) else float(difference[0]),
                difference_interval=None if difference is None else interval_of(difference[1:]),
            )
        )
    return tuple(found)


def majority(lines: Sequence[Answers]) -> list[Answers]:
    """The same patients, each question answered with the commonest class of its subtask in this very cohort."""
    seen: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for line in lines:
        for each in line.answers:
            for name, value in each.truth.items():
                seen[each.subtask, name][value] += 1
    best = {key: counter.most_common(1)[0][0] for key, counter in seen.items()}

    def answered(each: Answered) -> Answered:
        read = {name: best[each.subtask, name] for name in each.truth}
        return each.model_copy(update={"read": read, "texts": (), "organs": (), "cut_off": False})

    return [line.model_copy(update={"answers": tuple(map(answered, line.answers))}) for line in lines]


def organ_reads(lines: Sequence[Answers]) -> list[str | None]:
    """What each patient's question of the subtask ``organ`` was answered with."""
    answers = [next(each for each in line.answers if each.subtask == "organ") for line in lines]
    return [each.read["organ"] if each.read else None for each in answers]


def tumor_rates(
    bootstrap: Bootstrap, facts: Sequence[PatientFacts], reads: Sequence[str | None]
) -> TumorRates:
    """From an organ, ``no tumor`` or nothing readable for each patient. Unreadable is neither ill nor well."""
    pairs = list(zip(facts, reads, strict=True))

    def sums(
        counted: Callable[[PatientFacts], bool], right: Callable[[PatientFacts, str | None], bool]
    ) -> Sums:
        questions = np.array([counted(fact) for fact, _ in pairs], float)
        points = np.array([counted(fact) and right(fact, read) for fact, read in pairs], float)
        return points, questions

    def ill(fact: PatientFacts) -> bool:
        return fact.organ is not None

    def large(fact: PatientFacts) -> bool:
        return ill(fact) and fact.size_mm >= LARGE_MM

    def sized(k: int) -> Callable[[PatientFacts], bool]:
        return lambda fact: stratum(fact) == k

    sick, well = sums(ill, _called_ill), sums(lambda fact: not ill(fact), _called_well)
    both = (bootstrap.shares(sick) + bootstrap.shares(well)) / 2
    return TumorRates(
        sensitivity=bootstrap.rate(sick),
        specificity=bootstrap.rate(well),
        balanced_accuracy=rate_of(both, len(pairs)),
        present_2cm=bootstrap.rate(sums(large, _called_ill)),
        organ_2cm=bootstrap.rate(sums(large, _right_organ)),
        strata=tuple(
            Stratum(
                name=name,
                present=bootstrap.rate(sums(sized(k), _called_ill)),
                organ=bootstrap.rate(sums(sized(k), _right_organ)),
            )
            for k, name in enumerate(STRATA)
        ),
        hard=tuple(
            HardCase(name=name, right=bootstrap.rate(sums(counted, _right_organ)))
            for name, counted in HARD.items()
        ),
    )


def stratum(fact: PatientFacts) -> int | None:
    """Index into ``STRATA``, ``None`` without a tumor."""
    return None if fact.organ is None else int(fact.size_mm >= LARGE_MM) + int(fact.size_mm > 2 * LARGE_MM)


def _called_ill(_: PatientFacts, read: str | None) -> bool:
    return read in ORGANS


def _called_well(_: PatientFacts, read: str | None) -> bool:
    return read == NONE


def _right_organ(fact: PatientFacts, read: str | None) -> bool:
    return read == (fact.organ or NONE)


def best_organ(facts: Sequence[PatientFacts]) -> list[str | None]:
    """The majority's answer where a tumor is presupposed: the commonest organ of tumors of 2 cm and more."""
    large = Counter(str(fact.organ) for fact in facts if fact.organ and fact.size_mm >= LARGE_MM)
    most = large.most_common(1)[0][0] if large else None
    return [most] * len(facts)


def pair_rates(lines: Sequence[Pairs]) -> tuple[PairRates, ...]:
    """Removed, moved, and all pairs."""
    bootstrap = Bootstrap(len(lines)) if lines else None
    if bootstrap is None:
        return ()
    names: dict[str, tuple[Variant, ...]] = {
        "tumor removed": ("without tumor",),
        "tumor moved": ("tumor moved",),
        "all pairs": ("without tumor", "tumor moved"),
    }
    found = []
    for name, variants in names.items():
        right, differ, count = np.zeros((3, len(lines)))
        for row, line in enumerate(lines):
            drawn = next(each for each in line.variants if each.variant == "as drawn")
            for other in (each for each in line.variants if each.variant in variants):
                count[row] += 1
                right[row] += drawn.read == drawn.truth and other.read == other.truth
                differ[row] += drawn.read != other.read
        found.append(
            PairRates(
                name=name,
                accordingly=bootstrap.rate((right, count)),
                changed=bootstrap.rate((differ, count)),
            )
        )
    return tuple(found)


def unfounded_rates(lines: Sequence[Unfounded]) -> UnfoundedRates | None:
    """A patient has one such question."""
    if not lines:
        return None
    bootstrap, asked = Bootstrap(len(lines)), np.ones(len(lines))
    read = [set((line.answer.read or {}).values()) for line in lines]
    denied = np.array([values == {NONE} for values in read], float)
    made_up = np.array([bool(values - {NONE}) for values in read], float)
    return UnfoundedRates(denied=bootstrap.rate((denied, asked)), made_up=bootstrap.rate((made_up, asked)))


def swap_rates(lines: Sequence[Swap]) -> SwapRates | None:
    """Over the cases in which one own verdict on the organ is yes and the other no; drawn are pairs of patients."""
    if not lines:
        return None
    pairs = sorted({_swapped_pair(line) for line in lines})
    bootstrap = Bootstrap(len(pairs))

    def rate(*verdicts: str) -> Rate:
        points, cases = np.zeros((2, len(pairs)))
        for line in lines:
            if {line.own, line.partners} == {"yes", "no"} and line.partners in verdicts:
                row = pairs.index(_swapped_pair(line))
                cases[row] += 1
                points[row] += line.swapped == line.partners
        return bootstrap.rate((points, cases))

    return SwapRates(
        followed=rate("yes", "no"), tumor_shown=rate("yes"), tumor_hidden=rate("no"), cases=len(lines)
    )


def _swapped_pair(line: Swap) -> tuple[int, int, str]:
    return (min(line.seed, line.partner), max(line.seed, line.partner), line.organ)
