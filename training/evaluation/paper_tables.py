"""The paper's Tables 1, 2, 6, 7 and 8 recomputed from their own columns: averages, and CoT_e by eq. 9.

Figures are printed with two decimals, so a mean of n of them is known to ±0.005, and so is what it is compared with.
``python -m tumorchain_agent.training.evaluation.paper_tables`` prints docs/paper_tables.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from tumorchain_agent.training.evaluation.chains import cot_e

ROUNDING: Final = 0.01
"""Half a unit of the last printed digit, of the columns and of the average together."""


@dataclass(frozen=True)
class Row:
    table: str
    name: str
    printed: float
    computed: float

    @property
    def agrees(self) -> bool:
        return abs(self.printed - self.computed) <= ROUNDING + 1e-9


def tables() -> dict[str, Any]:
    """Table number → title, columns, name of the average, rows of name, columns and average."""
    text = resources.files(__package__).joinpath("data/paper_tables.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["tables"])


def recompute() -> list[Row]:
    """Every row: Table 2 by eq. 9, the others by the plain mean of their columns."""
    found = []
    for number, table in tables().items():
        for name, *values, printed in table["rows"]:
            computed = cot_e(*values) if number == "2" else sum(values) / len(values)
            found.append(Row(number, name, printed, computed))
    return found


def as_markdown() -> str:
    """Every row that does not agree, after a count for each table."""
    rows, known = recompute(), tables()
    lines = ["# The paper's averages, recomputed", ""]
    lines.append(
        "From the columns as printed (arXiv 2603.05867). A row agrees when its average is within rounding (0.01) of "
        "the plain mean of its columns; in Table 2, of CoT_e by eq. 9 with 0.3, 0.3, 0.4."
    )
    lines += ["", "| Table | rows | agree | don't |", "|---|---|---|---|"]
    for number, table in known.items():
        own = [row for row in rows if row.table == number]
        good = sum(row.agrees for row in own)
        lines.append(f"| {number}: {table['title']} | {len(own)} | {good} | {len(own) - good} |")
    lines += [
        "",
        "Rows that don't agree:",
        "",
        "| Table | row | printed | recomputed | difference |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if not row.agrees:
            difference = row.printed - row.computed
            lines.append(
                f"| {row.table} | {row.name} | {row.printed:.2f} | {row.computed:.3f} | {difference:+.3f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
