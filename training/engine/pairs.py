"""Question–answer pairs: which a case gives (4 tasks, 12 subtasks), and whether the summarizer's are right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Annotated, Final

from pydantic import Field, StringConstraints

from tumorchain_agent.records import Record
from tumorchain_agent.tools.ajcc import AXES, Axis
from tumorchain_agent.tools.organs import FIVE, match_organs, mentioned_organs
from tumorchain_agent.training.engine.config import Form
from tumorchain_agent.training.engine.faults import Fault
from tumorchain_agent.training.engine.features import Extraction
from tumorchain_agent.training.engine.grounding import DENIED
from tumorchain_agent.training.engine.logic import Line, categories_in, check_text
from tumorchain_agent.training.engine.terms import read_sizes, read_terms
from tumorchain_agent.training.tasks import SUBTASKS, TASK_OF

Short = Annotated[str, StringConstraints(min_length=1, max_length=500)]
ATTRIBUTES: Final = {"shape": "shape", "boundary": "margin", "density": "density", "count": "count"}
"""Subtask of the paper → attribute of a lesion."""
AXIS: Final[dict[str, Axis]] = {"tumor": "T", "node": "N", "metastasis": "M"}
HEADINGS: Final = ("Findings:", "Impression:", "Pathology:")
_BINS: Final[tuple[tuple[re.Pattern[str], Callable[[float], bool]], ...]] = (
    (re.compile(r"\b(?:under|less than|below) (?:2 ?cm|20 ?mm)", re.I), lambda mm: mm < 20),
    (
        re.compile(r"\b(?:between )?2 (?:to|and|-) 4 ?cm|20 (?:to|and|-) 40 ?mm", re.I),
        lambda mm: 20 <= mm <= 40,
    ),
    (re.compile(r"\b(?:over|more than|above) (?:4 ?cm|40 ?mm)", re.I), lambda mm: mm > 40),
)
"""Size groups as phantoms' answers name them."""
_NO_TUMOR: Final = re.compile(
    r"\b(?:no|without|free of)\b.{0,20}\b(?:tumou?r|malignan\w*|mass|cancer)|^none\b", re.I
)


class Wanted(Record):
    """A question that the summarizer is to write."""

    subtask: str
    form: Form
    organ: str | None = None
    """That ``tumor_position`` asks about."""


class Pair(Record):
    """A question with its answer, as the summarizer gives it."""

    subtask: str
    form: Form
    question: Line
    options: tuple[Short, ...] | None = Field(default=None, max_length=8)
    """For ``choice``; the answer is one of them."""
    reasoning: Line
    answer: Short


class Truths:
    """What is true of a case, as its reports say."""

    def __init__(self, found: Extraction) -> None:
        self.found = found
        self.lesion = found.features.lesion
        self.ill = {self.lesion.organ} if self.lesion else set()
        self.ill |= {site for site in found.features.spread.sites if site in FIVE}
        pathology = found.pathology
        self.tnm: dict[str, str | None] = {
            axis: getattr(pathology, axis.lower()) if pathology else None for axis in AXES
        }

    def known(self, subtask: str) -> bool:
        """Whether the reports answer a subtask's question."""
        if subtask in ("organ", "tumor_position", "report"):
            return True
        if self.lesion is None:
            return False
        if subtask in AXIS:
            value = self.tnm[AXIS[subtask]]
            return value is not None and not value.endswith("X")
        if subtask == "segment":
            return self.lesion.location is not None
        return (
            self.lesion.size_mm if subtask == "others" else getattr(self.lesion, ATTRIBUTES[subtask])
        ) is not None

    def stated(self, subtask: str, text: str, asked: str | None) -> bool:
        """Does a text give the right answer, and no other?"""
        if subtask == "tumor_position":
            ill = asked in self.ill
            return (DENIED.search(text) is None) == ill and not (ill and re.match(r"no\b", text, re.I))
        if self.lesion is None:
            return _NO_TUMOR.search(text) is not None
        if subtask == "organ":
            return mentioned_organs(text) == [self.lesion.organ] and not _NO_TUMOR.search(text)
        if subtask == "segment":
            return {each.substructure for each in match_organs(text)} == {self.lesion.location}
        if subtask in ATTRIBUTES:
            said = {
                each.value
                for each in read_terms(text)
                if each.attribute == ATTRIBUTES[subtask] and not each.denied
            }
            return said == {getattr(self.lesion, ATTRIBUTES[subtask])}
        if subtask == "others":
            return self._size(text)
        categories = categories_in(text)
        if subtask in AXIS:
            axis = AXIS[subtask]
            return categories[axis] == {self.tnm[axis]}
        organs = {each for each in mentioned_organs(text) if each in FIVE}
        return self.lesion.organ in organs and all(
            categories[axis] == ({self.tnm[axis]} if self.tnm[axis] else set()) for axis in AXES
        )

    def _size(self, text: str) -> bool:
        size = float(self.lesion.size_mm or 0) if self.lesion else 0.0
        bins = [holds(size) for pattern, holds in _BINS if pattern.search(text)]
        sizes = read_sizes(text)
        fits = all(bins) and all(abs(each - size) <= 1.0 for each in sizes)
        return fits and bool(bins or sizes)


def wanted_of(
    found: Extraction, forms: Sequence[Form], key: str, present: Sequence[str] = FIVE
) -> tuple[Wanted, ...]:
    """The questions of a case, in the order of Table 1; a report is only written openly.

    ``tumor_position`` asks in turn about an organ with a tumor and about one without, of those in the scan
    (``present``); the case's key draws which comes first.
    """
    truths = Truths(found)
    draw = int.from_bytes(blake2b(key.encode(), digest_size=4).digest(), "little")
    sides = [sorted(truths.ill), [organ for organ in FIVE if organ not in truths.ill]]
    pools = [pool for side in sides if (pool := [organ for organ in side if organ in present])]
    wanted = []
    for subtask in filter(truths.known, SUBTASKS):
        for index, form in enumerate(("open",) if subtask == "report" else forms):
            organ = None
            if subtask == "tumor_position":
                if not pools:
                    continue
                pool = pools[(draw + index) % len(pools)]
                organ = pool[(draw // 2 + index) % len(pool)]
            wanted.append(Wanted(subtask=subtask, form=form, organ=organ))
    return tuple(wanted)


def check_pairs(pairs: Sequence[Pair], wanted: Sequence[Wanted], found: Extraction) -> list[Fault]:
    """All that is wrong with what the summarizer wrote."""
    faults = list(_coverage(pairs, wanted))
    truths = Truths(found)
    asked = {(each.subtask, each.form): each.organ for each in wanted}
    questions = [(each.subtask, " ".join(each.question.lower().split())) for each in pairs]
    if len(set(questions)) < len(questions):
        faults.append(_fault("repeated_question", "a question stands there twice; word each of its own"))
    for pair in pairs:
        if (pair.subtask, pair.form) not in asked:
            continue
        name = f"{pair.subtask} ({pair.form})"
        organ = asked[pair.subtask, pair.form]
        for fault in (
            *_question(pair, organ),
            *_answer(pair, truths, organ),
            *_reasoning(pair, truths, organ),
        ):
            faults.append(Fault(kind=fault.kind, message=f"{name}: {fault.message}"))
    return faults


def _fault(kind: str, message: str) -> Fault:
    return Fault(kind=kind, message=message)


def _coverage(pairs: Sequence[Pair], wanted: Sequence[Wanted]) -> Iterator[Fault]:
    given = [(each.subtask, each.form) for each in pairs]
    asked = [(each.subtask, each.form) for each in wanted]
    missing = [f"{s} ({f})" for s, f in asked if (s, f) not in given]
    if missing:
        yield _fault("missing_pairs", f"no pair for {', '.join(missing[:6])}")
    if len(given) != len(set(given)) or set(given) - set(asked):
        yield _fault("surplus_pairs", "write one pair for each that is wanted, and no other")


def _question(pair: Pair, organ: str | None) -> Iterator[Fault]:
    named = [each for each in mentioned_organs(pair.question) if each in FIVE]
    if pair.subtask == "tumor_position":
        if named != [organ]:
            yield _fault("wrong_question", f"it must ask about the {organ}, and about no other organ")
        return
    if pair.subtask == "organ" and len(named) == 1:
        yield _fault("question_tells", "the question names the organ that it asks for")
    if pair.subtask in ATTRIBUTES:
        attribute = ATTRIBUTES[pair.subtask]
        said = {each.value for each in read_terms(pair.question) if each.attribute == attribute}
        if len(said) == 1:
            yield _fault("question_tells", f"the question says {said.pop()}")
    if pair.subtask in (*AXIS, "report") and any(categories_in(pair.question).values()):
        yield _fault("question_tells", "the question states a category")


def _answer(pair: Pair, truths: Truths, organ: str | None) -> Iterator[Fault]:
    if not truths.stated(pair.subtask, pair.answer, organ):
        yield _fault("wrong_answer", f"the reports do not say {pair.answer[:80]!r}")
    if (pair.form == "choice") != (pair.options is not None):
        yield _fault("wrong_form", "a choice has options, an open question has none")
    if pair.options is None:
        return
    if pair.answer not in pair.options:
        yield _fault("answer_not_offered", "the answer is none of the options")
    texts = {" ".join(each.lower().split()) for each in pair.options}
    if len(texts) < max(2, len(pair.options)):
        yield _fault("same_options", "options say the same, or are fewer than two")
    right = [each for each in pair.options if truths.stated(pair.subtask, each, organ)]
    if len(right) > 1:
        yield _fault("two_right_options", f"{' and '.join(right)} are both right")


def _reasoning(pair: Pair, truths: Truths, organ: str | None) -> Iterator[Fault]:
    yield from check_text(pair.reasoning, truths.found.features)
    for axis, stated in categories_in(pair.reasoning).items():
        if stated - {truths.tnm[axis]}:
            yield _fault(
                "reasoning_contradicts_pathology",
                f"it states {', '.join(sorted(stated))}, pathology {truths.tnm[axis]}",
            )
        if stated and TASK_OF.get(pair.subtask) in ("position", "lesion"):
            yield _fault("out_of_task", f"{axis} does not belong to this question")
    if pair.subtask == "report" and any(each not in pair.reasoning for each in HEADINGS):
        yield _fault("report_without_headings", f"a report has {' '.join(HEADINGS)}")
    if pair.subtask in ATTRIBUTES and truths.lesion is not None:
        value = getattr(truths.lesion, ATTRIBUTES[pair.subtask])
        if value not in {each.value for each in read_terms(pair.reasoning)}:
            yield _fault("unsupported_answer", f"the reasoning does not come to {value}")
    elif (
        pair.subtask in AXIS
        and str(truths.tnm[AXIS[pair.subtask]]) not in categories_in(pair.reasoning)[AXIS[pair.subtask]]
    ):
        yield _fault("unsupported_answer", "the reasoning does not come to the category")
    elif pair.subtask == "segment" and truths.lesion is not None:
        parts = {each.substructure for each in match_organs(pair.reasoning)}
        if truths.lesion.location not in parts:
            yield _fault("unsupported_answer", f"the reasoning does not come to the {truths.lesion.location}")
