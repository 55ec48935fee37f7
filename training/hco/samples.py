"""Questions with their rounds → the turns of a conversation, laid out as the graph lays them out (eq. 4, 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from tumorchain_agent.model.wording import absent_text, attention_text, in_mode, tokenless_text, zoom_text
from tumorchain_agent.tools.organs import mentioned_organs
from tumorchain_agent.training.data.policy import BadSample, Reason
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.scans import BadVolumeError, check_against
from tumorchain_agent.training.hco.config import Form
from tumorchain_agent.training.hco.rows import Evidence, Turn
from tumorchain_agent.training.hco.scans import ScanData
from tumorchain_agent.training.modes import FULL, Mode
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.text import (
    answer_text,
    closing,
    compose,
    final_text,
    findings,
)
from tumorchain_agent.training.phantom.wording import look_closer
from tumorchain_agent.training.tasks import TASK_OF, subtask_odds

Retell = Callable[[Sequence[str]], str]

DESCRIBE: Final = (
    "Describe the findings.",
    "What do these organs show?",
    "Describe what is seen in this CT.",
    "Give the findings of this scan.",
)
"""Instructions of the alignment stage."""


@dataclass(frozen=True)
class Item:
    """A question with its rounds: ``organs[i]`` is what round ``i`` is shown (none for the first)."""

    name: str
    task: str
    question: str
    organs: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    answer: str
    """What is said where reasoning is off."""
    caption: str
    """Findings, for the alignment stage."""
    retell: Retell | None = None
    """The last text for other organs examined, where the truth is known well enough to tell it."""
    own: bool = False
    """The first text is the model's own; nothing is learned from it."""


def of_record(record: CoTSample, scan: ScanData, mode: Mode = FULL) -> Item | BadSample:
    """A record's item in a mode: without IIR only its last round, without CoT its conclusion in that round's place.

    A BadSample when it shows an organ that the label map lacks, or calls one absent that isn't. Without a label map
    no organ can be shown; to say that it is not in the scan would be wrong.
    """
    shown = [organ for each in record.rounds for organ in each.organs if organ not in each.absent]
    if shown and scan.present is None:
        message = f"a round is shown {', '.join(shown)}, but there is no label_map; add it or take them out"
        return BadSample(sample=record.id, reason=Reason.MISSING_LABEL_MAP, message=message)
    try:
        check_against(record.model_copy(update={"scan_id": None}), None, scan.present)
    except BadVolumeError as error:
        return BadSample(sample=record.id, reason=error.reason, message=str(error))
    organs = tuple(each.organs for each in record.rounds) or ((),)
    texts = record.texts if mode.cot else (*record.texts[:-1], record.conclusion)
    if not mode.iir:
        organs, texts = ((),), texts[-1:]
    caption = record.texts[-1].partition("Impression:")[0].strip() or record.texts[-1]
    task = TASK_OF.get(record.subtask, record.task)
    question = in_mode(record.prompt, iir=mode.iir, cot=mode.cot)
    return Item(record.id, task, question, organs, texts, record.conclusion, caption)


def of_phantom(
    scan: ScanData,
    seed: Sequence[int],
    suspicion: Mapping[str, float] | None,
    name: str,
    mode: Mode = FULL,
) -> Item:
    """A question about a phantom, drawn by ``seed``; ``suspicion`` as ``compose`` takes it, neutral by default."""
    rng = np.random.default_rng([17, *seed])
    truth = truth_of(scan.truth or {})
    odds = subtask_odds(healthy=truth.organ is None)
    subtask = str(rng.choice(list(odds), p=np.array(list(odds.values())) / sum(odds.values())))
    there = [organ for organ in ORGANS if organ in scan.coverage]
    beliefs = {organ: float(rng.beta(1.0, 2.0)) for organ in there}
    if suspicion is not None:
        beliefs = {organ: suspicion[organ] for organ in there}
    sample = compose(rng, truth, subtask, beliefs, iir=mode.iir, cot=mode.cot)
    asked = sample.asked_organ
    wording = int(rng.integers(2**31))

    def retell(shown: Sequence[str]) -> str:
        absent = tuple(organ for organ in shown if organ not in there)
        if not mode.cot:
            return closing(answer_text(truth, subtask, asked, absent))
        seen = [organ for organ in shown if organ in there]
        return final_text(truth, seen, subtask, asked, absent, np.random.default_rng(wording))

    shown = [organ for organs in sample.organs for organ in organs]
    if not mode.iir:
        shown = [organ for organ in ORGANS if organ in there or organ == asked]
    absent = tuple(organ for organ in shown if organ not in there)
    seen = [organ for organ in shown if organ in there]
    return Item(
        name=name,
        task=TASK_OF[subtask],
        question=sample.question,
        organs=sample.organs,
        texts=(*sample.texts[:-1], retell(shown)),
        answer=closing(answer_text(truth, subtask, asked, absent)),
        caption=findings(truth, seen, np.random.default_rng(wording)),
        retell=retell,
    )


def truth_of(fields: Mapping[str, Any]) -> Truth:
    """A Truth from the fields that the cache keeps as JSON."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Truth(**values)


def turns(
    item: Item, form: Form, there: Mapping[str, object], *, present: Collection[str] | None = None
) -> list[Turn]:
    """The conversation of an item; ``there`` holds the organs that have tokens, ``present`` all of the label map.

    ``instruct`` ends with the answer alone.
    """
    if form == "align":
        return _aligned(item, there)
    last = item.texts[-1] if form == "cot" else item.answer
    asked = Turn("user", (Evidence(), item.question))
    if len(item.texts) == 1:
        return [asked, Turn("assistant", (last,))]
    found = [asked, Turn("assistant", (item.texts[0],), learn=not item.own)]
    for organs, text in zip(item.organs[1:], [*item.texts[1:-1], last], strict=True):
        found.append(Turn("user", tuple(organ_parts(organs, there, present))))
        found.append(Turn("assistant", (text,)))
    return found


def _aligned(item: Item, there: Mapping[str, object]) -> list[Turn]:
    """[τ_g, instruction, τ_l of the organs] → findings."""
    number = sum(item.name.encode()) % len(DESCRIBE)
    shown = [organ for organs in item.organs for organ in organs if organ in there]
    evidence = tuple(organ_parts(shown, there))
    return [
        Turn("user", (Evidence(), DESCRIBE[number], *evidence)),
        Turn("assistant", (item.caption,)),
    ]


def organ_parts(
    organs: Sequence[str], there: Mapping[str, object], present: Collection[str] | None = None
) -> Iterator[str | Evidence]:
    """[T^i, τ_l^i] of each organ; that one isn't in the scan, or has no tokens, is told in words."""
    for organ in organs:
        if organ in there:
            yield attention_text(organ)
            yield Evidence(organ)
        elif organ in (present or ()):
            yield tokenless_text(organ)
        else:
            yield absent_text(organ)


def with_zoom(conversation: Sequence[Turn], sides_mm: Mapping[str, float]) -> list[Turn]:
    """A conversation with the tokens of organs' crops behind their own; ``sides_mm`` holds the crops' widths."""
    return [
        replace(turn, parts=tuple(each for part in turn.parts for each in _closer(part, sides_mm)))
        for turn in conversation
    ]


def _closer(part: str | Evidence, sides_mm: Mapping[str, float]) -> Iterator[str | Evidence]:
    yield part
    if isinstance(part, Evidence) and part.organ is not None and part.organ in sides_mm:
        yield zoom_text(part.organ, sides_mm[part.organ])
        yield Evidence(part.organ, zoomed=True)


def with_own_first_round(item: Item, said: str) -> Item:
    """The item with ``said``, the model's own first round, in the place of its first text.

    The organs that the question names, and those that it names, come next, as in the graph. Organs that the truth's
    rounds need and it missed get a round of their own, asked for in the truth's words: what is learned is to
    correct, not to copy. The item stays as it is when it needs no second round or no organ is named.
    """
    said = said.strip()
    named = tuple(dict.fromkeys([*mentioned_organs(item.question), *mentioned_organs(said)]))
    if len(item.texts) == 1 or not named:
        return item
    missed = tuple(o for organs in item.organs for o in organs if o not in named)
    organs: tuple[tuple[str, ...], ...] = ((), named, missed) if missed else ((), named)
    last = item.retell([*named, *missed]) if item.retell else item.texts[-1]
    texts = (said, look_closer(missed), last) if missed else (said, last)
    return replace(item, organs=organs, texts=texts, own=True)
