"""Scores as Markdown, CSV and an SVG bar chart; nothing is fetched from anywhere."""

from __future__ import annotations

import csv
import io
from html import escape
from typing import Final

from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.training.evaluation.scoring import Cell, Scores

_COLOURS: Final = ("#3b6ea5", "#d9822b", "#5a9e6f", "#a05195", "#8c564b", "#7f7f7f")
_ROW, _LEFT, _WIDE, _TOP = 22, 250, 420, 60
TITLES: Final = {"all": "All", "task": "By task", "subtask": "By subtask", "organ": "By organ"}


def percent(cell: Cell) -> str:
    """``85.0 (80.1–89.2)``; a dash where nothing was scored."""
    rate = cell.rate
    if rate.value is None:
        return "–"
    low, high = rate.interval or (rate.value, rate.value)
    return f"{100 * rate.value:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def as_markdown(scores: Scores) -> str:
    """Rows by group, a column for each subject."""
    subjects = list(dict.fromkeys(cell.subject for cell in scores.cells))
    lines = [
        f"# {scores.benchmark}",
        "",
        f"{scores.questions} questions about {scores.patients} patients. {DISCLAIMER}",
    ]
    lines += [
        "",
        "Accuracy in % (of numbers: mean relative accuracy), 95 % bootstrap intervals by patient.",
        "",
    ]
    lines += [f"Open answers are compared by: {scores.judge}."]
    for group, title in TITLES.items():
        chosen = [cell for cell in scores.cells if cell.group == group]
        if not chosen:
            continue
        lines += [
            "",
            f"## {title}",
            "",
            "| | n | " + " | ".join(subjects) + " |",
            "|---" * (2 + len(subjects)) + "|",
        ]
        for row in dict.fromkeys(cell.row for cell in chosen):
            found = {cell.subject: cell for cell in chosen if cell.row == row}
            count = max(cell.rate.count + cell.unscored for cell in found.values())
            lines.append(f"| {row} | {count} | " + " | ".join(percent(found[s]) for s in subjects) + " |")
    lines += [
        "",
        "## Answers that are none",
        "",
        "| | measured | unanswered (wrong) | unscored (left out) |",
        "|---|---|---|---|",
    ]
    for cell in scores.cells:
        if cell.group == "all":
            lines.append(f"| {cell.subject} | {cell.measured} | {cell.unanswered} | {cell.unscored} |")
    return "\n".join(lines) + "\n"


def as_csv(scores: Scores) -> str:
    """A line a cell."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["group", "row", "subject", "value", "low", "high", "scored", "unanswered", "unscored", "measured"]
    )
    for cell in scores.cells:
        low, high = cell.rate.interval or ("", "")
        value = "" if cell.rate.value is None else cell.rate.value
        counts = (cell.rate.count, cell.unanswered, cell.unscored, cell.measured)
        table.writerow([cell.group, cell.row, cell.subject, value, low, high, *counts])
    return text.getvalue()


def as_svg(scores: Scores) -> str:
    """A bar with its interval for each subject in each row of tasks, subtasks and organs."""
    subjects = list(dict.fromkeys(cell.subject for cell in scores.cells))
    bars = [cell for cell in scores.cells if cell.rate.value is not None]
    height = _TOP + _ROW * len(bars) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDE + 120}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="15">{escape(scores.benchmark)}: accuracy in %, 95 % intervals</text>',
        f'<text x="10" y="38" fill="#666">{escape(DISCLAIMER)}</text>',
    ]
    for place, cell in enumerate(bars):
        parts += _bar(cell, _TOP + _ROW * place, _COLOURS[subjects.index(cell.subject) % len(_COLOURS)])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(cell: Cell, y: int, colour: str) -> list[str]:
    value = cell.rate.value or 0.0
    low, high = cell.rate.interval or (value, value)
    name = escape(f"{cell.row}: {cell.subject}"[:42])
    ends = [_LEFT + _WIDE * each for each in (low, high)]
    return [
        f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{name}</text>',
        f'<rect x="{_LEFT}" y="{y + 3}" width="{_WIDE * value:.1f}" height="{_ROW - 7}" fill="{colour}"/>',
        f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="black"/>',
        f'<text x="{_LEFT + _WIDE + 10}" y="{y + 14}">{100 * value:.1f}</text>',
    ]
