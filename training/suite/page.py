"""The result as one HTML page: a bar chart with intervals and the tables; nothing is fetched from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tumorchain_agent
from tumorchain_agent.training.suite.result import ColumnResult, SuiteResult
from tumorchain_agent.training.suite.scores import AVERAGE
from tumorchain_agent.training.suite.table import (
    NOTES,
    ROW_TITLES,
    TASK_TITLES,
    cell,
    points,
    shown_rate,
    summary,
    tables,
)
from tumorchain_agent.training.tasks import TASKS

COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a5195")
"""Told apart by colour-blind eyes (Okabe and Ito), then again from the first."""
GREYS: Final = {"text only": "#9aa5b1", "majority": "#5f6b78"}
_LEFT, _TOP, _HEIGHT, _BAR, _GAP, _FOOT = 44, 14, 260, 11, 16, 46


@dataclass(frozen=True)
class Bar:
    """One share in the chart; lengths in pixels."""

    x: float
    y: float
    height: float
    low: float
    high: float
    """y of the interval's ends."""
    colour: str
    words: str


@dataclass(frozen=True)
class Group:
    """The bars of a subtask."""

    title: str
    middle: float
    bars: tuple[Bar, ...]
    bold: bool


@dataclass(frozen=True)
class Span:
    """A task above its groups."""

    title: str
    start: float
    stop: float


@dataclass(frozen=True)
class Chart:
    """All that the drawing needs."""

    width: float
    height: float
    floor: float
    """y of 0 %."""
    lines: tuple[tuple[float, str], ...]
    """y and words of the lines of the grid."""
    groups: tuple[Group, ...]
    spans: tuple[Span, ...]
    legend: tuple[tuple[str, str], ...]
    """Colour and title."""


def chart(result: SuiteResult) -> Chart:
    """Accuracy by subtask, every column a bar with its interval."""
    colours = _colours(result.columns)
    step = len(colours) * _BAR + _GAP
    groups, spans, x = [], [], float(_LEFT + _GAP)
    for task, names in TASKS.items():
        start = x
        for name in names:
            groups.append(_group(result, name, x, colours))
            x += step
        spans.append(Span(TASK_TITLES[task], start, x - _GAP))
        x += _GAP
    groups.append(_group(result, AVERAGE, x, colours))
    return Chart(
        width=x + step,
        height=_TOP + _HEIGHT + _FOOT + 22,
        floor=_y(0.0),
        lines=tuple((_y(share), f"{100 * share:.0f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
        groups=tuple(groups),
        spans=tuple(spans),
        legend=tuple((colour, column.title) for colour, column in zip(colours, result.columns, strict=True)),
    )


def _colours(columns: tuple[ColumnResult, ...]) -> list[str]:
    seeing = [column for column in columns if column.kind == "model"]
    return [
        GREYS[column.kind] if column.kind != "model" else COLOURS[seeing.index(column) % len(COLOURS)]
        for column in columns
    ]


def _y(share: float) -> float:
    return round(_TOP + _HEIGHT * (1 - share), 1)


def _group(result: SuiteResult, row: str, x: float, colours: list[str]) -> Group:
    bars = []
    for k, (column, colour) in enumerate(zip(result.columns, colours, strict=True)):
        rate = cell(column, row).accuracy
        if rate.value is None:
            continue
        low, high = rate.interval or (rate.value, rate.value)
        bars.append(
            Bar(
                x=x + k * _BAR,
                y=_y(rate.value),
                height=round(_HEIGHT * rate.value, 1),
                low=_y(low),
                high=_y(high),
                colour=colour,
                words=f"{ROW_TITLES[row]}, {column.title}: {shown_rate(rate)} %",
            )
        )
    return Group(ROW_TITLES[row], x + len(colours) * _BAR / 2, tuple(bars), row == AVERAGE)


def as_html(result: SuiteResult) -> str:
    """The page as text; every text in it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    assets = Path(tumorchain_agent.__file__).parent / "assets"
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    average = cell(result.columns[0], AVERAGE).accuracy
    return environment.get_template("page.html.j2").render(
        css=Markup((assets / "report.css").read_text(encoding="utf-8")),
        result=result,
        summary=summary(result),
        headline="–" if average.value is None else f"{points(average.value)} %",
        chart=chart(result),
        bar=_BAR - 2,
        left=_LEFT,
        tables=tables(result),
        notes=NOTES,
        version=tumorchain_agent.__version__,
    )
