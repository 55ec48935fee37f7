"""What a training shows: a bar on a terminal, plain lines elsewhere, and TensorBoard's files."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)


class Reporter:
    """Of the main process. ``step`` is called after each step, and shows running means every few steps."""

    def __init__(self, out: Path, every: int, *, first_step: int = 0, active: bool = True) -> None:
        self.every, self.active = every, active
        self._bar: Progress | None = None
        self._task: Any = None
        self._board: Any = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._tokens = self._samples = 0
        self._since = time.monotonic()
        self._place = (out / "tensorboard", first_step)

    def __enter__(self) -> Self:
        if not self.active:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from torch.utils.tensorboard import SummaryWriter

        folder, first = self._place
        self._board = SummaryWriter(str(folder), purge_step=first + 1)
        console = Console(stderr=True)
        if console.is_terminal:
            facts = TextColumn("{task.fields[facts]}")
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), facts, console=console
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()

    def stage(self, name: str) -> None:
        self._since = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=1.0, facts="")
        elif self.active:
            log.info("stage %s begins", name)

    def step(
        self, step: int, progress: float, values: Mapping[str, float], *, tokens: int, samples: int
    ) -> None:
        """``step`` of all stages; ``progress`` 0..1 of this one; ``tokens`` and ``samples`` of this step."""
        if not self.active:
            return
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._tokens += tokens
        self._samples += samples
        if step % self.every == 0 or progress >= 1:
            self._show(step, progress)

    def _show(self, step: int, progress: float) -> None:
        seconds = max(time.monotonic() - self._since, 1e-9)
        means = {name: value / self._count for name, value in self._sums.items()}
        rates = {"tokens_s": self._tokens / seconds, "samples_s": self._samples / seconds}
        for name, value in (means | rates).items():
            self._board.add_scalar(f"train/{name}", value, step)
        parts = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        facts = f"step {step}  {parts}  {rates['tokens_s']:.0f} tokens/s  {rates['samples_s']:.1f} samples/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, facts=facts)
        else:
            log.info("%s, %.0f %% of the stage", facts, 100 * progress)
        self._sums, self._count, self._tokens, self._samples = {}, 0, 0, 0
        self._since = time.monotonic()

    def validation(self, step: int, losses: Mapping[str, float]) -> None:
        if not self.active:
            return
        for name, value in losses.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        log.info("step %d validation: %s", step, "  ".join(f"{k} {v:.4f}" for k, v in losses.items()))
        self._since = time.monotonic()
