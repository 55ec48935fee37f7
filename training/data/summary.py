"""How many patients and samples a file holds, by subtask and by side of the split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tumorchain_agent.records import Record
from tumorchain_agent.training.data.record import EXTERNAL, CoTSample, Split
from tumorchain_agent.training.tasks import TASKS


class Sides(Record):
    """A count on each side of the split."""

    train: int = 0
    test: int = 0

    @property
    def both(self) -> int:
        return self.train + self.test

    @property
    def test_share(self) -> float:
        return self.test / self.both if self.both else 0.0


class SubtaskCount(Record):
    """Samples of one subtask."""

    task: str
    subtask: str
    samples: Sides


class Summary(Record):
    """What a file holds."""

    patients: Sides
    samples: Sides
    subtasks: tuple[SubtaskCount, ...]
    """In the order of Table 1, then the external ones by name."""

    def table(self) -> str:
        """Markdown, one row a subtask."""
        rows = [(f"{each.task} / {each.subtask}", each.samples) for each in self.subtasks]
        rows += [("**samples**", self.samples), ("**patients**", self.patients)]
        lines = [
            f"| {name} | {sides.train:,} | {sides.test:,} | {100 * sides.test_share:.1f} % |"
            for name, sides in rows
        ]
        return "\n".join(["| | train | test | test share |", "| --- | --- | --- | --- |", *lines])


@dataclass
class Tally:
    """Counts samples as they pass. Of patients it keeps the id, of samples nothing."""

    _samples: Counter[tuple[str, str, Split]] = field(default_factory=Counter)
    _patients: dict[Split, set[str]] = field(default_factory=lambda: {"train": set(), "test": set()})

    def add(self, sample: CoTSample) -> None:
        self._samples[sample.task, sample.subtask, sample.split] += 1
        self._patients[sample.split].add(sample.patient)

    def passing(self, samples: Iterable[CoTSample]) -> Iterator[CoTSample]:
        """The samples, counted as they pass."""
        for sample in samples:
            self.add(sample)
            yield sample

    def summary(self) -> Summary:
        names: list[tuple[str, str]] = [(task, name) for task, found in TASKS.items() for name in found]
        names += sorted({(task, subtask) for task, subtask, _ in self._samples if task == EXTERNAL})
        counts = tuple(
            SubtaskCount(task=task, subtask=subtask, samples=sides)
            for task, subtask in names
            if (sides := self._sides(task, subtask)).both
        )
        return Summary(
            patients=Sides(train=len(self._patients["train"]), test=len(self._patients["test"])),
            samples=Sides(
                train=sum(each.samples.train for each in counts),
                test=sum(each.samples.test for each in counts),
            ),
            subtasks=counts,
        )

    def _sides(self, task: str, subtask: str) -> Sides:
        return Sides(train=self._samples[task, subtask, "train"], test=self._samples[task, subtask, "test"])
