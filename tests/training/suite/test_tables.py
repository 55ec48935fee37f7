"""Tables and page say what the result says, and fetch nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.training.suite.made_up import CHECKPOINT, answers, features, truths
from tumorchain_agent.model.checkpoint import CheckpointInfo
from tumorchain_agent.training.modes import MODES
from tumorchain_agent.training.suite.finished import Finished, FinishedLines
from tumorchain_agent.training.suite.page import as_html, chart
from tumorchain_agent.training.suite.plan import Cohort, Plan
from tumorchain_agent.training.suite.result import SuiteResult
from tumorchain_agent.training.suite.scores import AVERAGE
from tumorchain_agent.training.suite.summary import summarise
from tumorchain_agent.training.suite.table import as_markdown, cell, main_table, points, tables

TITLE = "<script>alert(1)</script>"
INFO = CheckpointInfo.model_construct(checkpoint_id=CHECKPOINT, alpha=1.0)
OTHER = CheckpointInfo.model_construct(checkpoint_id="fedcba9876543210", alpha=0.5)


@pytest.fixture(scope="module")
def result() -> SuiteResult:
    """Two models in all modes: full is right in 8 of 10, the others in 5, text only in 3."""
    rng = np.random.default_rng(0)
    people = truths(30)
    lines = FinishedLines(None)
    plan = Plan((None, None), tuple(MODES.values()), Cohort(30, 0, probe_patients=0, grounding=False))
    for number, info in enumerate((INFO, OTHER)):
        for column in plan.columns(number):
            right = 0.3 if column.blank else 0.8 if column.name == "full" else 0.5
            made: list[Finished] = [answers(truth, right, rng, column.name) for truth in people]
            lines.add(*(line.model_copy(update={"checkpoint_id": info.checkpoint_id}) for line in made))
        lines.add(*(features(truth, rng) for truth in people))
    return summarise(plan, [(TITLE, INFO), ("half", OTHER)], lines)


def test_columns_are_the_models_modes_then_text_only_then_the_majority(result: SuiteResult) -> None:
    modes = ["full", "w/o IIR", "w/o CoT", "w/o CoT, IIR"]
    assert [column.title for column in result.columns] == [
        *(f"{TITLE} {mode}" for mode in modes),
        *(f"half {mode}" for mode in modes),
        f"{TITLE} full, text only",
        "majority class",
    ]
    assert [column.alpha for column in result.columns[:1]] == [1.0]
    first, *others = (cell(column, AVERAGE) for column in result.columns)
    assert first.difference is None
    assert first.accuracy.value == pytest.approx(0.8, abs=0.07)
    for each in others:
        value = each.accuracy.value or 0
        assert each.difference == pytest.approx(value - (first.accuracy.value or 0))
    assert result.questions == sum(12 if truth.organ else 3 for truth in truths(30))


def test_the_main_table_has_a_row_for_each_subtask_and_the_average(result: SuiteResult) -> None:
    table = main_table(result)
    assert len(table.rows) == 15
    assert table.rows[table.bold or 0][0] == "Average"
    for row in table.rows:
        assert len(row) == len(table.header) == 3 + len(result.columns)
    average = cell(result.columns[0], AVERAGE).accuracy.value
    assert average is not None
    assert table.rows[12][3].startswith(points(average))


def test_markdown_has_one_cell_for_each_column_in_every_line(result: SuiteResult) -> None:
    blocks = re.findall(r"(?:^\|.*\n?)+", as_markdown(result), re.MULTILINE)
    assert len(blocks) == len(tables(result)) == 2
    for block in blocks:
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1
    assert result.disclaimer in as_markdown(result)


def test_the_record_reads_back_as_it_was(result: SuiteResult) -> None:
    assert SuiteResult.model_validate_json(result.model_dump_json()) == result


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]


def test_the_page_fetches_nothing_and_escapes_titles(result: SuiteResult) -> None:
    page = _Page()
    html = as_html(result)
    page.feed(html)
    assert page.links == []
    assert "script" not in page.tags
    assert TITLE not in html
    assert "http" not in html.replace("http-equiv", "")
    assert page.tags.count("rect") == 13 * len(result.columns)


def test_bars_are_as_high_as_their_shares(result: SuiteResult) -> None:
    drawn = chart(result)
    assert len(drawn.legend) == len(result.columns)
    for group, row in zip(drawn.groups, [*range(12), 12], strict=True):
        for bar, column in zip(group.bars, result.columns, strict=True):
            name = AVERAGE if row == 12 else [c.row for c in column.cells][row]
            assert bar.height == pytest.approx(260 * (cell(column, name).accuracy.value or 0), abs=0.1)
            assert bar.y + bar.height == pytest.approx(drawn.floor, abs=0.2)
            assert bar.high <= bar.y + 0.1 <= bar.low + 0.2
    edges = [bar.x for group in drawn.groups for bar in group.bars]
    assert edges == sorted(edges)
    assert edges[-1] < drawn.width
