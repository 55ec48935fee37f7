"""From a case's chain and pairs to lines of a TumorCoT file: rounds, choices in drawn order, provenance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

from pydantic import ValidationError

from tumorchain_agent.records import Record
from tumorchain_agent.tools.organs import FIVE, display_name
from tumorchain_agent.training.data.explain import explain
from tumorchain_agent.training.data.record import SCHEMA_VERSION, CoTRound, CoTSample, is_number
from tumorchain_agent.training.data.split import side_of
from tumorchain_agent.training.engine.calls import Usage
from tumorchain_agent.training.engine.cases import Case
from tumorchain_agent.training.engine.config import EngineConfig, Stage
from tumorchain_agent.training.engine.faults import Caught, Fault, SetAsideError
from tumorchain_agent.training.engine.features import Extraction
from tumorchain_agent.training.engine.logic import Chain
from tumorchain_agent.training.engine.mics import Trend
from tumorchain_agent.training.engine.pairs import Pair, Wanted
from tumorchain_agent.training.engine.prompts import prompt_hash
from tumorchain_agent.training.phantom.text import closing
from tumorchain_agent.training.tasks import TASK_OF


class Outcome(Record):
    """What came of a case: samples, or why it is set aside."""

    number: int
    id: str
    patient: str
    samples: tuple[CoTSample, ...] = ()
    by: str | None = None
    """Who set it aside."""
    faults: tuple[Fault, ...] = ()
    caught: tuple[Caught, ...] = ()
    """All that was found wrong on its way, mended or not."""
    usage: dict[Stage, Usage]
    calibrations: int = 0
    returns: int = 0
    trend: Trend | None = None


@dataclass(frozen=True)
class Finished:
    """What samples are made of."""

    case: Case
    label_map: Path | None
    present: tuple[str, ...] | None
    """Organs of the scan; ``None`` without a label map."""
    extraction: Extraction
    chain: Chain
    wanted: tuple[Wanted, ...]
    pairs: tuple[Pair, ...]
    calibrations: int
    returns: int
    trend: Trend | None


def build_samples(done: Finished, config: EngineConfig, graph_id: str, out: Path) -> tuple[CoTSample, ...]:
    """A sample for each pair, in the order of ``wanted``. SetAsideError when one breaks the data format."""
    given = {(each.subtask, each.form): each for each in done.pairs}
    common = _common(done, config, graph_id, out)
    samples = []
    for number, wanted in enumerate(done.wanted, 1):
        try:
            samples.append(_sample(done, wanted, given[wanted.subtask, wanted.form], common, number))
        except ValidationError as error:
            raise SetAsideError("validator", [Fault(kind="bad_sample", message=explain(error))]) from error
    return tuple(samples)


def _common(done: Finished, config: EngineConfig, graph_id: str, out: Path) -> dict[str, Any]:
    case = done.case
    label_map = None if done.label_map is None else os.path.relpath(done.label_map, out)
    return {
        "format_version": SCHEMA_VERSION,
        "patient": case.patient,
        "scan": Path(os.path.relpath(case.scan, out)).as_posix(),
        "label_map": None if label_map is None else Path(label_map).as_posix(),
        "split": side_of(case.patient, test=config.test_share, seed=config.seed),
        "provenance": _provenance(done, config, graph_id),
    }


def _provenance(done: Finished, config: EngineConfig, graph_id: str) -> dict[str, Any]:
    stages: dict[Stage, list[str]] = {
        "extractor": [config.experts.extractor.model],
        "calibrator": [config.experts.calibrator.model],
        "summarizer": [config.experts.summarizer.model],
    }
    if config.mics is None:
        stages["reasoner"] = [config.experts.reasoner.model]
    else:
        stages["mentor"] = [each.model for each in config.mics.mentors]
        stages["intern"] = [each.model for each in config.mics.interns]
    lesion = done.extraction.features.lesion
    found: dict[str, Any] = {
        "source": "engine",
        "case": done.case.id,
        "models": stages,
        "prompts": {stage: prompt_hash(stage) for stage in stages},
        "graph": graph_id,
        "triples": sorted({triple for step in done.chain.steps for triple in step.triples}),
        "reviews": {"calibrator": done.calibrations, "summarizer": done.returns},
        "tumor_organ": lesion.organ if lesion else None,
    }
    if done.trend is not None:
        found["mics"] = done.trend.model_dump(mode="json")
    return found


def _sample(done: Finished, wanted: Wanted, pair: Pair, common: dict[str, Any], number: int) -> CoTSample:
    rng = Random(blake2b(f"{done.case.key}/{number}".encode(), digest_size=8).digest())
    answer = " ".join(pair.answer.split()).rstrip(".")
    choices, correct = _choices(pair, rng)
    organs = _to_examine(done, wanted, rng)
    named = _listing([display_name(organ) for organ in organs])
    conclusion = closing(answer)
    need = "needs" if len(organs) == 1 else "need"
    rounds = (
        CoTRound(organs=(), text=f"{named[:1].upper()}{named[1:]} {need} a closer look."),
        CoTRound(organs=tuple(organs), text=f"{' '.join(pair.reasoning.split())} {conclusion}"),
    )
    kind = "choice" if choices else "number" if is_number(answer) else "open"
    return CoTSample.model_validate(
        {
            **common,
            "id": f"{done.case.id}/{number}",
            "task": TASK_OF[wanted.subtask],
            "subtask": wanted.subtask,
            "question": pair.question,
            "choices": choices,
            "correct": correct,
            "rounds": rounds,
            "conclusion": conclusion,
            "answer": answer,
            "answer_type": kind,
            "provenance": {**common["provenance"], "asked_organ": wanted.organ},
        }
    )


def _choices(pair: Pair, rng: Random) -> tuple[dict[str, str] | None, str | None]:
    if pair.options is None:
        return None, None
    texts = [" ".join(each.split()).rstrip(".") for each in pair.options]
    rng.shuffle(texts)
    choices = dict(zip(ascii_uppercase, texts, strict=False))
    answer = " ".join(pair.answer.split()).rstrip(".")
    return choices, next((letter for letter, text in choices.items() if text == answer), None)


def _to_examine(done: Finished, wanted: Wanted, rng: Random) -> list[str]:
    """Organs of the closer look: those that the answer rests on among others, so that the list doesn't tell it."""
    present = [organ for organ in FIVE if done.present is None or organ in done.present]
    lesion = done.extraction.features.lesion
    needed = [wanted.organ] if wanted.organ else []
    if lesion and lesion.organ in FIVE and lesion.organ not in needed:
        needed.append(lesion.organ)
    if wanted.subtask in ("metastasis", "report") and "liver" in present and "liver" not in needed:
        needed.append("liver")
    others = [organ for organ in present if organ not in needed]
    rng.shuffle(others)
    chosen = needed + others[: max(1, 3 - len(needed))]
    rng.shuffle(chosen)
    return chosen


def _listing(names: Sequence[str]) -> str:
    words = [f"the {name}" for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
