"""The result as Markdown, in the layout of Table 1 turned on its side: subtasks are rows, ways of answering columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tumorchain_agent.training.suite.result import (
    Cell,
    ColumnResult,
    Interval,
    ModelResult,
    Rate,
    SuiteResult,
    TumorRates,
)
from tumorchain_agent.training.suite.scores import AVERAGE
from tumorchain_agent.training.tasks import TASKS, Task

TASK_TITLES: Final[dict[Task, str]] = {
    "position": "Position",
    "lesion": "Lesion attributes",
    "tnm": "TNM prediction",
    "report": "CoT-report",
}
ROW_TITLES: Final = {
    "organ": "Organ",
    "tumor_position": "Tumor position",
    "segment": "Segment",
    "shape": "Shape",
    "boundary": "Boundary",
    "density": "Density",
    "count": "Count",
    "others": "Others (size)",
    "tumor": "T",
    "node": "N",
    "metastasis": "M",
    "report": "Report",
    AVERAGE: "Average",
}
NOTES: Final = (
    "Accuracy in %, 95 % bootstrap intervals by patient; below it the difference to the first column in points, on the "
    "same patients.",
    "Modes are ways of asking the same weights, which are trained in all four and told by the question's words; a "
    "model that wasn't trained in a mode can't be read in it.",
    "An answer that can't be read is wrong. Text only: the same model with zeros in place of all tokens of the image. "
    "Majority class: the commonest answer of each subtask in this very cohort.",
    "A report is scored by the share of organ, size, T, N and M that is right.",
)


@dataclass(frozen=True)
class Table:
    """Texts by row and column; a line feed in one begins a second line."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    named: int = 1
    """How many first columns name a row."""
    bold: int | None = None
    """The row that stands out."""


def as_markdown(result: SuiteResult) -> str:
    """All tables, ready to be pasted."""
    notes = "\n".join(f"- {note}" for note in NOTES)
    first, *others = tables(result)
    intro = f"{summary(result)} {result.disclaimer}"
    return "\n\n".join([intro, _markdown(first), notes, *map(_markdown, others)])


def summary(result: SuiteResult) -> str:
    """Who was asked what, in a line."""
    return (
        f"{result.patients} phantoms from seed {result.first_seed} ({result.tumors} with a tumor), "
        f"{result.questions} questions a column, masks from {result.masks}."
    )


def tables(result: SuiteResult) -> list[Table]:
    """The main one first."""
    beside = [
        grounding_table(model) for model in result.models if model.pairs or model.swap or model.unfounded
    ]
    return [main_table(result), tumor_table(result), *beside]


def _markdown(table: Table) -> str:
    def line(words: Sequence[str], mark: str = "") -> str:
        shown = (f"{mark}{word}{mark}" if word else "" for word in words)
        return f"| {' | '.join(shown)} |".replace("\n", "<br>")

    rows = (line(row, "**" if k == table.bold else "") for k, row in enumerate(table.rows))
    return "\n".join([f"**{table.title}**\n", line(table.header), "|" + "---|" * len(table.header), *rows])


def main_table(result: SuiteResult) -> Table:
    """12 subtasks by task, and the average."""
    rows = []
    for task, names in TASKS.items():
        for name in names:
            found = [cell(column, name) for column in result.columns]
            title = TASK_TITLES[task] if name == names[0] else ""
            rows.append((title, ROW_TITLES[name], str(found[0].accuracy.count), *map(shown_cell, found)))
    averages = [cell(column, AVERAGE) for column in result.columns]
    count = str(averages[0].accuracy.count)
    rows.append((ROW_TITLES[AVERAGE], "", count, *map(shown_cell, averages)))
    rows.append(("Unreadable answers, %", "", "", *map(_unreadable, averages)))
    rows.append(("Rounds a question", "", "", *(_plain(column.mean_rounds) for column in result.columns)))
    header = ("Task", "Subtask", "n", *(column.title for column in result.columns))
    return Table("Accuracy by subtask", header, tuple(rows), named=2, bold=12)


def tumor_table(result: SuiteResult) -> Table:
    """Presence and organ by size, from the subtask ``organ``, with the probes beside the models."""
    named = [(column.title, column.tumors) for column in result.columns]
    several = len(result.models) > 1
    for model in result.models:
        of = f"{model.title} " if several else ""
        named += [(f"{of}probe: {probe.name}", probe.tumors) for probe in model.probes]
    picks: list[tuple[str, Callable[[TumorRates], Rate]]] = [
        ("called a tumor, ≥ 2 cm", lambda rates: rates.present_2cm),
        ("organ right, ≥ 2 cm", lambda rates: rates.organ_2cm),
        ("healthy called healthy", lambda rates: rates.specificity),
        ("presence, balanced accuracy, all sizes", lambda rates: rates.balanced_accuracy),
    ]
    for k, stratum in enumerate(named[0][1].strata):
        picks.append((f"called a tumor, {stratum.name}", _of_stratum(k, "present")))
        picks.append((f"organ right, {stratum.name}", _of_stratum(k, "organ")))
    for k, case in enumerate(named[0][1].hard):
        picks.append((f"organ or none right, {case.name}", _of_hard(k)))
    rows = []
    for title, pick in picks:
        rates = [pick(each) for _, each in named]
        rows.append((title, str(rates[0].count), *map(shown_rate, rates)))
    return Table(
        "Is there a tumor, and in which organ", ("", "n", *(title for title, _ in named)), tuple(rows)
    )


def _of_stratum(k: int, what: str) -> Callable[[TumorRates], Rate]:
    def pick(rates: TumorRates) -> Rate:
        rate: Rate = getattr(rates.strata[k], what)
        return rate

    return pick


def _of_hard(k: int) -> Callable[[TumorRates], Rate]:
    return lambda rates: rates.hard[k].right


def grounding_table(model: ModelResult) -> Table:
    """Does the answer rest on the image?"""
    named: list[tuple[str, Rate]] = []
    for pair in model.pairs:
        named.append((f"{pair.name}, ≥ 2 cm: both answers right", pair.accordingly))
        named.append((f"{pair.name}, ≥ 2 cm: answers differ", pair.changed))
    if model.swap:
        named += [
            ("ROI tokens swapped, own verdicts differ: verdict follows the tokens", model.swap.followed),
            ("of these, tokens of a tumor shown", model.swap.tumor_shown),
            ("of these, tokens of a healthy organ shown", model.swap.tumor_hidden),
        ]
    if model.unfounded:
        named += [
            ("asked of a tumor where there is none: says so", model.unfounded.denied),
            ("asked of a tumor where there is none: makes one up", model.unfounded.made_up),
        ]
    rows = tuple((title, str(rate.count), shown_rate(rate)) for title, rate in named)
    return Table(f"Does the answer rest on the image: {model.title}", ("", "n", "%"), rows)


def cell(column: ColumnResult, row: str) -> Cell:
    return next(each for each in column.cells if each.row == row)


def shown_cell(each: Cell) -> str:
    """``61.2 (55.0 to 67.1)``, and ``−3.4 (−6.0 to −0.9)`` below it."""
    text = shown_rate(each.accuracy)
    if each.difference is None:
        return text
    return f"{text}\n{signed(each.difference)} {_bracket(each.difference_interval, signed)}"


def shown_rate(rate: Rate) -> str:
    if rate.value is None:
        return "–"
    return f"{points(rate.value)} {_bracket(rate.interval, points)}"


def points(share: float) -> str:
    return f"{100 * share:.1f}"


def signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _bracket(interval: Interval | None, show: Callable[[float], str]) -> str:
    return f"({show(interval[0])} to {show(interval[1])})" if interval else ""


def _unreadable(average: Cell) -> str:
    return points(average.unreadable / average.accuracy.count) if average.accuracy.count else "–"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
