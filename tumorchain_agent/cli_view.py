"""What ``ask`` shows while it works: rounds as they are written, organs as they are reached, then the answer.

On a terminal a progress bar and the line being written stand below the finished lines; elsewhere there are
only finished lines. Text of a language model is stripped of control characters, so that it can't steer a
terminal.
"""

from __future__ import annotations

import sys
import textwrap
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final

from tumorchain_agent.graph import events
from tumorchain_agent.records import DISCLAIMER, Answer, Notice, OrganEvidence, ScanInfo
from tumorchain_agent.report_text import format_number, split_sections
from tumorchain_agent.tools.organs import display_name

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import Progress, TaskID

PHASES: Final = {
    "open": "opening",
    "encode": "encoding",
    "segment": "segmenting",
    "evidence": "examining",
    "report": "writing the report",
}
INDENT: Final = "  "


def clean(text: str) -> str:
    """The text without control characters but line breaks; tabs become spaces."""
    return "".join(c for c in text.replace("\t", " ") if c.isprintable() or c == "\n")


class View:
    """Prints the events of a question; a context manager, so that the terminal is left in order."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._terminal = self._console.is_terminal
        self._width = min(self._console.width, 100) - len(INDENT)
        self._unfinished = ""
        self._said: set[str] = set()
        self._announced: set[str] = set()
        self._tasks: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._live: Live | None = None

    def __enter__(self) -> View:
        if self._terminal:
            self._start_live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_line()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def on_event(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.Progress():
                self._advance(event.phase, event.fraction, event.message)
            case events.RoundStarted():
                self._retire(*(["open", "encode"] if event.index == 1 else PHASES))
                self._heading(event.index, event.organs)
            case events.Token():
                self._stream(event.text)
            case events.OrganExamined():
                self._retire("segment")
                self._organ(event.evidence)
            case events.RoundFinished():
                self._round_finished(event)
            case events.NoticeRaised():
                self.notice(event.notice)
            case events.Answered():
                self._retire(*PHASES)
                self._finish_line()

    def scan(self, info: ScanInfo) -> None:
        """The scan that was opened, in one line."""
        self._retire("open")
        voxels = " × ".join(str(size) for size in info.shape)
        spacing = " × ".join(format_number(mm, 2) for mm in info.spacing_mm)
        self._print(f"{clean(info.file_name)}: {voxels} voxels of {spacing} mm")

    def notice(self, notice: Notice) -> None:
        """A notice, once."""
        if notice.message not in self._said:
            self._said.add(notice.message)
            mark, style = ("!", "yellow") if notice.severity == "warning" else ("i", "dim")
            self._print(f"{mark} {clean(notice.message)}", style)

    def writing(self) -> None:
        """The report is being written."""
        self._advance("report", None, "")

    def answer(self, answer: Answer) -> None:
        """The conclusion, TNM and notices."""
        self._retire(*PHASES)
        self._print("")
        self._print("Answer", "bold")
        for section in split_sections(clean(answer.conclusion)):
            if section.title:
                self._print(f"{INDENT}{section.title}", "bold cyan")
            for block in section.blocks:
                for item in block.items:
                    text = "".join(piece.text for piece in item)
                    self._paragraph(f"- {text}" if block.is_list else text)
        self._tnm(answer)
        for notice in answer.notices:
            self.notice(notice)

    def end(self, report: str | None) -> None:
        """Where the report lies, and what this software is not."""
        self._print("")
        if report is not None:
            self._print(f"Report: {report}", "bold")
        self._print(DISCLAIMER, "dim")

    def _tnm(self, answer: Answer) -> None:
        tnm = answer.tnm
        organ = f" ({display_name(tnm.primary_organ)})" if tnm.primary_organ else ""
        stage = f"stage {tnm.stage}" if tnm.stage else "stage not determined"
        self._print("")
        self._print(f"TNM{organ}: {tnm.t} {tnm.n} {tnm.m}, {stage}", "bold")
        for reason in tnm.reasons:
            self._paragraph(clean(reason))
        for flag in tnm.flags:
            self._paragraph(f"! {clean(flag)}", "red")

    def _heading(self, index: int, organs: tuple[str, ...], suffix: str = "") -> None:
        self._finish_line()
        names = ", ".join(display_name(organ) for organ in organs)
        first = "first look at the whole scan" if index == 1 else "no new organ"
        self._print("")
        self._print(f"Round {index}: {names or first}{suffix}", "bold cyan")

    def _round_finished(self, event: events.RoundFinished) -> None:
        record = event.round
        if event.replayed:
            organs = tuple(evidence.organ for evidence in record.evidence)
            self._heading(record.index, organs, " (from an earlier run)")
            self._stream(record.text)
        self._finish_line()
        if record.new_organs:
            names = ", ".join(display_name(organ) for organ in record.new_organs)
            self._print(f"{INDENT}→ {names}", "cyan")

    def _organ(self, evidence: OrganEvidence) -> None:
        name = display_name(evidence.organ)
        if not evidence.present:
            self._print(f"{INDENT}{name}: not in the scan, not assessed", "yellow")
            return
        facts: list[str] = []
        if evidence.classification is not None and evidence.classification.p_abnormal is not None:
            verdict = evidence.classification
            facts.append(f"{verdict.label} (p = {verdict.p_abnormal:.2f})")
        if evidence.measurement is not None:
            facts.append(f"{format_number(evidence.measurement.volume_ml)} ml")
            facts.append(f"{format_number(evidence.measurement.mean_hu, 0)} HU")
        if evidence.tokens is not None:
            zoom = evidence.tokens.zoom
            facts.append(f"{evidence.tokens.count} tokens" + (f" + {zoom.count} zoomed" if zoom else ""))
        facts += [f"{len(evidence.pictures)} slices"] if evidence.pictures else []
        self._print(f"{INDENT}{name}: {', '.join(facts)}")

    def _stream(self, text: str) -> None:
        """Print whole lines, keep the line being written."""
        self._unfinished += clean(text)
        while (cut := self._line_end()) is not None:
            line, self._unfinished = self._unfinished[:cut], self._unfinished[cut:].lstrip(" ")
            self._unfinished = self._unfinished.removeprefix("\n")
            self._print(f"{INDENT}{line.rstrip()}")

    def _line_end(self) -> int | None:
        newline = self._unfinished.find("\n")
        if 0 <= newline <= self._width:
            return newline
        if len(self._unfinished) <= self._width:
            return None
        space = self._unfinished.rfind(" ", 1, self._width + 1)
        return space if space > 0 else self._width

    def _finish_line(self) -> None:
        rest, self._unfinished = self._unfinished.strip(), ""
        if rest and self._live is not None:
            self._live.refresh()
        if rest:
            self._print(f"{INDENT}{rest}")

    def _paragraph(self, text: str, style: str = "") -> None:
        for line in textwrap.wrap(text, self._width - len(INDENT)) or [""]:
            self._print(f"{INDENT * 2}{line}", style)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, soft_wrap=True)

    def _start_live(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console)
        self._live = Live(
            get_renderable=self._below,
            console=self._console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()

    def _below(self) -> Group:
        """The line being written and the bars of the work that goes on."""
        from rich.console import Group
        from rich.text import Text

        line = [Text(f"{INDENT}{self._unfinished}", no_wrap=True)] if self._unfinished else []
        busy = [self._progress] if self._progress is not None and self._tasks else []
        return Group(*line, *busy)

    def _advance(self, phase: str, fraction: float | None, message: str) -> None:
        title = PHASES.get(phase, phase)
        if self._progress is None:
            if phase not in self._announced and phase in ("encode", "segment"):
                self._print(f"{title} …", "dim")
            self._announced.add(phase)
            return
        if fraction is not None and fraction >= 1:
            self._retire(phase)
            return
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(title, total=None)
        detail = f"{title}: {clean(message)[:48]}" if message else title
        total = None if fraction is None else 1.0
        self._progress.update(self._tasks[phase], description=detail, total=total, completed=fraction)

    def _retire(self, *phases: str) -> None:
        """Take away the bars of phases that are over."""
        for phase in phases:
            if self._progress is not None and phase in self._tasks:
                self._progress.remove_task(self._tasks.pop(phase))
