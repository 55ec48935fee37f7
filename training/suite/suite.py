"""``evaluate --suite phantom``: every model's passes over the cohort, then all that they show."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tumorchain_agent.errors import InputError, OutputError
from tumorchain_agent.model.checkpoint import NANO_DIR, CheckpointInfo, read_info
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.suite.finished import FinishedLines
from tumorchain_agent.training.suite.page import as_html
from tumorchain_agent.training.suite.passes import Advance, ModelPasses
from tumorchain_agent.training.suite.plan import Plan
from tumorchain_agent.training.suite.result import SuiteResult
from tumorchain_agent.training.suite.summary import summarise
from tumorchain_agent.training.suite.table import as_markdown
from tumorchain_agent.training.suite.talks import Asker
from tumorchain_agent.training.workers import cores

Tell = Callable[[str], Advance]
"""A model's title → how to report on it."""


class Suite:
    """A plan whose models and folder have been checked."""

    def __init__(self, settings: Settings, plan: Plan, out: Path | None) -> None:
        """Raises InputError for a model that is named twice, CheckpointError, OutputError."""
        self.settings, self.plan, self.out = settings, plan, out
        infos = [read_info(folder or NANO_DIR) for folder in plan.models]
        self.models = list(zip(_titles(plan.models, infos), infos, strict=True))
        self.lines = FinishedLines(out)

    def run(self, tell: Tell, workers: int | None = None) -> SuiteResult:
        """Ask whatever isn't answered yet, and put the result together; with ``out`` write it there.

        ``workers`` processes make patients while this one asks: up to four, half of the cores, by default. This one
        has as many threads as cores are left. Raises CheckpointError, OutputError, SegmentationError.
        """
        makers = min(4, max(1, cores() // 2)) if workers is None else workers
        for number, (folder, (title, _)) in enumerate(zip(self.plan.models, self.models, strict=True)):
            asker = Asker(self.settings.model_copy(update={"model": folder}))
            columns = self.plan.columns(number)
            passes = ModelPasses(asker, self.settings, self.plan.cohort, columns, self.lines)
            with _threads(max(1, cores() - max(1, makers))):
                passes.all(tell(title), makers)
        result = summarise(self.plan, self.models, self.lines)
        if self.out is not None:
            write_result(result, self.out)
        return result


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's threads; more than there are free cores wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_result(result: SuiteResult, out: Path) -> None:
    """``result.json``, ``table.md`` and ``table.html``, each whole or not at all. Raises OutputError."""
    texts = {
        "result.json": result.model_dump_json(indent=2) + "\n",
        "table.md": as_markdown(result) + "\n",
        "table.html": as_html(result),
    }
    for name, text in texts.items():
        partial = out / f".{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, out / name)
        except OSError as error:
            raise OutputError(
                f"{out / name} can't be written ({error.strerror}); free space, run again"
            ) from error


def _titles(models: Sequence[Path | None], infos: Sequence[CheckpointInfo]) -> list[str]:
    """A name for each model, by its folder; InputError when two folders hold the same weights."""
    ids = [info.checkpoint_id for info in infos]
    for checkpoint_id, count in Counter(ids).items():
        if count > 1:
            raise InputError(f"--model names checkpoint {checkpoint_id} {count} times: name each model once")
    names = ["nano" if folder is None else folder.resolve().name for folder in models]
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} {k[:6]}" for n, k in zip(names, ids, strict=True)]
