"""The end of the reasoning: one :class:`~tumorchain_agent.records.Answer` from all that the state holds."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import metadata

from langchain_core.language_models import BaseChatModel
from langgraph.config import get_config

import tumorchain_agent
from tumorchain_agent.graph.claims import (
    absent_described,
    classifier_disagrees,
    contradicts_itself,
    make_claims,
)
from tumorchain_agent.graph.examine import absent_notice
from tumorchain_agent.graph.llm import llm_name
from tumorchain_agent.graph.measured import contradictions, measured_claim
from tumorchain_agent.graph.state import (
    IIRConfig,
    IIRState,
    Span,
    evidence_of,
    global_tokens_of,
    notices_of,
    rounds_of,
    scan_of,
    segmentation_of,
)
from tumorchain_agent.records import (
    TNM,
    Answer,
    Notice,
    OrganEvidence,
    Round,
    SegmentationInfo,
    TokenSet,
    Usage,
    Versions,
)
from tumorchain_agent.tools.organs import FIVE, mentioned_organs
from tumorchain_agent.tools.tnm import parse_tnm, primary_organ


def build_answer(state: IIRState, config: IIRConfig, chat_model: BaseChatModel) -> Answer:
    """Conclusion (the last round's text as it stands, after what the question wants measured), TNM, claims, notices,
    usage, timings, versions."""
    rounds, evidence, segmentation = rounds_of(state), evidence_of(state), segmentation_of(state)
    global_tokens = global_tokens_of(state)
    text = rounds[-1].text.strip()
    absent = absent_organs(text, evidence, segmentation)
    tnm = read_tnm(state["question"], text)
    measured, told = measured_claim(state["question"], evidence)
    notices = [*notices_of(state), *_late_notices(text, absent, tnm, evidence, segmentation), *told]
    notices += contradictions(state["question"], text, evidence)
    spans = state.get("spans", [])
    return Answer(
        question=state["question"],
        scan=scan_of(state),
        segmentation=segmentation,
        evidence_kind=config.evidence,
        conclusion=f"{measured.sentence}\n{text}" if measured else text,
        tnm=tnm,
        claims=(
            *((measured,) if measured else ()),
            *make_claims(text, evidence, global_tokens.uri if global_tokens else None),
        ),
        rounds=tuple(rounds),
        organs_examined=tuple(organ for organ, found in evidence.items() if found.present),
        organs_absent=absent,
        stopped_because=state.get("stopped_because") or "no new organ",
        notices=tuple(dict.fromkeys(notices)),
        usage=total_usage(rounds),
        seconds=phase_seconds(spans),
        timings_s=_timings(spans),
        versions=_versions(config, chat_model, segmentation, global_tokens, evidence.values()),
        thread_id=str(get_config().get("configurable", {}).get("thread_id", "")),
    )


def read_tnm(question: str, conclusion: str) -> TNM:
    """TNM from the answer's text; TX/NX/MX with a reason where it says nothing.

    It is checked for the organ that the text names as the seat of a cancer, else for the only one of the five
    digestive organs that the question, or else the answer, speaks of.
    """
    return parse_tnm(conclusion, primary_organ(conclusion) or _only(question) or _only(conclusion))


def _only(text: str) -> str | None:
    found = [organ for organ in mentioned_organs(text) if organ in FIVE]
    return found[0] if len(found) == 1 else None


def absent_organs(
    conclusion: str, evidence: dict[str, OrganEvidence], segmentation: SegmentationInfo
) -> tuple[str, ...]:
    """Organs that aren't in the scan: reached, spoken of in the answer, or of the five digestive organs.

    One that no network has looked for is none of them.
    """
    open_or_there = {*segmentation.organs_present, *segmentation.organs_deferred}
    reached = [organ for organ, found in evidence.items() if not found.present]
    spoken = [o for o in mentioned_organs(conclusion) if o not in evidence and o not in open_or_there]
    five = [organ for organ in FIVE if organ not in open_or_there]
    return tuple(dict.fromkeys([*reached, *spoken, *five]))


def total_usage(rounds: Sequence[Round]) -> Usage:
    """The sum over all rounds."""
    return Usage(
        prompt_tokens=sum(record.usage.prompt_tokens for record in rounds),
        cached_tokens=sum(record.usage.cached_tokens for record in rounds),
        completion_tokens=sum(record.usage.completion_tokens for record in rounds),
    )


def _late_notices(
    conclusion: str,
    absent: Sequence[str],
    tnm: TNM,
    evidence: dict[str, OrganEvidence],
    segmentation: SegmentationInfo,
) -> list[Notice]:
    found = [absent_notice(organ, segmentation) for organ in absent if organ not in evidence]
    found += absent_described(conclusion, absent)
    found += classifier_disagrees(conclusion, evidence)
    found += contradicts_itself(conclusion)
    found += [Notice(code="tnm_flag", message=flag, organ=tnm.primary_organ) for flag in tnm.flags]
    return found


def _timings(spans: Sequence[Span]) -> dict[str, float]:
    phases = dict.fromkeys(span["phase"] for span in spans)
    return {phase: phase_seconds(span for span in spans if span["phase"] == phase) for phase in phases}


def phase_seconds(spans: Iterable[Span]) -> float:
    """Seconds that any of the spans covers: what runs side by side counts once, a crash's pause not."""
    total, until = 0.0, 0.0
    for span in sorted(spans, key=lambda item: item["start"]):
        total += max(0.0, span["end"] - max(span["start"], until))
        until = max(until, span["end"])
    return round(total, 3)


def _versions(
    config: IIRConfig,
    chat_model: BaseChatModel,
    segmentation: SegmentationInfo,
    global_tokens: TokenSet | None,
    evidence: Iterable[OrganEvidence],
) -> Versions:
    ids = [global_tokens.checkpoint_id] if global_tokens else []
    ids += [found.classification.checkpoint_id for found in evidence if found.classification is not None]
    return Versions(
        tumorchain_agent=tumorchain_agent.__version__,
        checkpoint_id=ids[0] if ids else None,
        llm=config.llm or llm_name(chat_model),
        segmentation=f"{segmentation.source} {segmentation.task} {segmentation.weights_id}",
        python=platform.python_version(),
        torch=_version("torch"),
        totalsegmentator=_version("TotalSegmentator"),
    )


@cache
def _version(package: str) -> str:
    """Looked up once: the search through all that is installed takes milliseconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
