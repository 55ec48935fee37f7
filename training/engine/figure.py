"""The statistics as a picture like the paper's Figure 2: tasks with their subtasks around, organs, forms, patients."""

from __future__ import annotations

from collections.abc import Sequence

from tumorchain_agent.tools.organs import display_name
from tumorchain_agent.training.engine import svg
from tumorchain_agent.training.engine.statistics import Statistics
from tumorchain_agent.training.tasks import TASKS

_NAMES = {"position": "position", "lesion": "lesion", "tnm": "TNM", "report": "report"}
_FORMS = {"choice": "multiple choice", "open": "open", "number": "open, a number"}


def draw_statistics(found: Statistics) -> str:
    """An SVG of 980 × 560."""
    samples, patients = found.summary.samples, found.summary.patients
    heading = f"{samples.both:,} samples, {patients.both:,} patients"
    parts = [svg.text(30, 38, f"TumorCoT: {heading}", size=20, bold=True), *_rings(found)]
    organs = [("no tumor" if o == "no tumor" else display_name(o), n) for o, n in found.organs.items()]
    forms = [(_FORMS[name], count) for name, count in found.forms.items()]
    sides = [("train, patients", patients.train), ("test, patients", patients.test)]
    parts += _bars(560, 90, "Organ of the tumor (samples)", organs, svg.COLORS[0])
    parts += _bars(560, 280, "Answers (samples)", forms, svg.COLORS[1])
    parts += _bars(560, 400, "Split by patient", sides, svg.COLORS[2])
    parts.append(
        svg.text(
            30, 540, f"{found.notice} {found.set_aside:,} of {found.cases:,} cases set aside.", color=svg.PALE
        )
    )
    return svg.page(980, 560, f"TumorCoT statistics: {heading}", parts)


def _rings(found: Statistics) -> list[str]:
    total = max(1, found.summary.samples.both)
    counts = {each.subtask: each.samples.both for each in found.summary.subtasks}
    x, y, parts, start = 270.0, 295.0, [], 0.0
    for number, (task, subtasks) in enumerate(TASKS.items()):
        share = sum(counts.get(each, 0) for each in subtasks) / total
        if not share:
            continue
        color = svg.COLORS[number]
        parts.append(svg.sector(x, y, 62, 118, start, start + share, color))
        at = svg.on_circle(x, y, 90, start + share / 2)
        parts.append(
            svg.text(
                at[0],
                at[1] + 4,
                _NAMES[task] if share > 0.08 else "",
                size=12,
                color=svg.PAPER,
                anchor="middle",
                bold=True,
            )
        )
        inner = start
        for subtask in subtasks:
            width = counts.get(subtask, 0) / total
            if width:
                parts += _subtask(x, y, inner, width, subtask, counts[subtask], color)
            inner += width
        start += share
    parts.append(svg.text(x, y - 2, f"{found.summary.samples.both:,}", size=20, anchor="middle", bold=True))
    return [*parts, svg.text(x, y + 18, "samples", color=svg.PALE, anchor="middle")]


def _subtask(x: float, y: float, start: float, width: float, name: str, count: int, color: str) -> list[str]:
    middle = start + width / 2
    at = svg.on_circle(x, y, 184, middle)
    anchor = "start" if middle < 0.5 else "end"
    words = f"{name.replace('_', ' ')} {count:,}"
    edge = svg.on_circle(x, y, 164, middle)
    return [
        svg.sector(x, y, 120, 160, start, start + width, color, opacity=0.55),
        svg.line(*edge, *svg.on_circle(x, y, 178, middle)),
        svg.text(at[0], at[1] + 4, words, size=11, anchor=anchor),
    ]


def _bars(x: float, y: float, title: str, rows: Sequence[tuple[str, int]], color: str) -> list[str]:
    most = max((count for _, count in rows), default=0) or 1
    parts = [svg.text(x, y, title, size=14, bold=True)]
    for number, (name, count) in enumerate(rows):
        top = y + 14 + number * 25
        parts.append(svg.text(x + 120, top + 13, name, anchor="end"))
        parts.append(svg.box(x + 128, top, max(1.0, 190 * count / most), 17, color))
        parts.append(svg.text(x + 136 + 190 * count / most, top + 13, f"{count:,}", color=svg.PALE))
    return parts
