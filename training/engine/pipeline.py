"""The way of a case through the six experts, as a LangGraph graph (paper 2.2, Figure 3).

segment → extract → compare → reason → calibrate → summarize. The calibrator sends a chain back by widening the organ
region or by naming a suspected cause; the summarizer sends it back when pathology says otherwise; both a bounded number
of times. What can't be mended is raised as SetAsideError.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypedDict

import anyio
from langgraph.graph import END, START, StateGraph

from tumorchain_agent.errors import DataError, LabelMapError, ScanError, SegmentationError
from tumorchain_agent.tools.organs import FIVE, display_name
from tumorchain_agent.training.engine.agreement import check_agreement, check_differences, check_reports
from tumorchain_agent.training.engine.calls import Caller
from tumorchain_agent.training.engine.cases import Case, organs_in
from tumorchain_agent.training.engine.config import EngineConfig
from tumorchain_agent.training.engine.experts import Desk, Summary, Tally, Verdict
from tumorchain_agent.training.engine.faults import Fault, SetAsideError
from tumorchain_agent.training.engine.features import Extraction
from tumorchain_agent.training.engine.grounding import check_extraction
from tumorchain_agent.training.engine.knowledge import KnowledgeGraph, Triple
from tumorchain_agent.training.engine.logic import Chain, check_chain
from tumorchain_agent.training.engine.mics import Trend, answer_of, search
from tumorchain_agent.training.engine.pairs import Pair, Wanted, check_pairs, wanted_of
from tumorchain_agent.training.engine.prompts import EXPAND, SUSPECT, prompt
from tumorchain_agent.training.engine.retrieve import retrieve
from tumorchain_agent.training.engine.samples import Finished, Outcome, build_samples

Segment = Callable[[Case], Path]
"""Makes a label map of a case's scan; the path of the file."""


class State(TypedDict, total=False):
    """What is known of a case on its way."""

    case: Case
    desk: Desk
    label_map: Path | None
    present: tuple[str, ...] | None
    extraction: Extraction
    triples: tuple[Triple, ...]
    chain: Chain
    trend: Trend | None
    notes: tuple[str, ...]
    """What reviews said, oldest first."""
    calibrations: int
    returns: int
    sent_back: bool
    wanted: tuple[Wanted, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Engine:
    """The experts of a run."""

    config: EngineConfig
    graph: KnowledgeGraph
    caller: Caller
    out: Path
    segmenter: Segment | None = None

    async def run(self, case: Case) -> Outcome:
        """What comes of a case. ChatModelError and Stopped end the run; all else is an outcome."""
        tally = Tally()
        start = State(
            case=case, desk=Desk(self.caller, tally), notes=(), calibrations=0, returns=0, trend=None
        )
        known: dict[str, Any] = {"number": case.number, "id": case.id, "patient": case.patient}
        try:
            end = await self.compiled.ainvoke(start)
            samples = build_samples(_finished(end), self.config, self.graph.id, self.out)
        except SetAsideError as error:
            return Outcome(
                **known, by=error.by, faults=error.faults, caught=tuple(tally.caught), usage=tally.usage
            )
        return Outcome(
            **known,
            samples=samples,
            caught=tuple(tally.caught),
            usage=tally.usage,
            calibrations=end["calibrations"],
            returns=end["returns"],
            trend=end["trend"],
        )

    @cached_property
    def compiled(self) -> Any:
        """The graph, ready to run."""
        graph = StateGraph(State)
        steps = (self.segment, self.extract, self.compare, self.reason, self.calibrate, self.summarize)
        for step in steps:
            graph.add_node(step.__name__, step)
        graph.add_edge(START, "segment")
        graph.add_edge("segment", "extract")
        graph.add_edge("extract", "compare")
        graph.add_edge("compare", "reason")
        graph.add_edge("reason", "calibrate")
        graph.add_conditional_edges("calibrate", _after("summarize"), ["reason", "summarize"])
        graph.add_conditional_edges("summarize", _after(END), ["reason", END])
        return graph.compile()

    async def segment(self, state: State) -> State:
        """Which organs the scan holds, from its label map, ours or a given one."""
        case, label_map = state["case"], state["case"].label_map
        try:
            if label_map is None and self.segmenter is not None:
                label_map = await anyio.to_thread.run_sync(self.segmenter, case)
            present = None if label_map is None else await anyio.to_thread.run_sync(organs_in, label_map)
        except (DataError, ScanError, LabelMapError, SegmentationError) as error:
            raise self._aside(
                state, "segmenter", [Fault(kind="bad_scan", message=str(error)[:300])]
            ) from error
        return State(label_map=label_map, present=present)

    async def extract(self, state: State) -> State:
        """Typed features of both reports, each checked against the reports' own words."""
        case = state["case"]
        turns = prompt("extractor", case.key, {"radiology": case.radiology, "pathology": case.pathology})
        found = await state["desk"].ask(
            "extractor",
            self.config.experts.extractor,
            turns,
            Extraction,
            lambda each: check_extraction(each, case),
        )
        return State(extraction=found, triples=retrieve(self.graph, found.features, self.config.triples))

    async def compare(self, state: State) -> State:
        """Set aside what no reasoning mends: reports that contradict each other, organs that the scan lacks."""
        found, present = state["extraction"], state["present"]
        faults = check_reports(found, self.graph)
        if faults:
            raise self._aside(state, "summarizer", faults)
        lesion = found.features.lesion
        if lesion and lesion.organ not in FIVE:
            text = f"the tumor is of the {display_name(lesion.organ)}, which is none of the five organs"
            raise self._aside(state, "validator", [Fault(kind="other_organ", message=text)])
        if lesion and present is not None and lesion.organ not in present:
            text = f"the label map lacks the {lesion.organ}, in which the report sees a tumor"
            raise self._aside(state, "segmenter", [Fault(kind="organ_not_in_scan", message=text)])
        state["desk"].tally.note("summarizer", check_differences(found, self.graph))
        wanted = wanted_of(found, self.config.forms, state["case"].key, FIVE if present is None else present)
        return State(wanted=wanted)

    async def reason(self, state: State) -> State:
        """Findings → impression, from the features and the case's part of the knowledge graph."""
        given = self._given(state)
        key, notes, config = state["case"].key, state["notes"], self.config
        if config.mics is not None:
            answer = answer_of(state["extraction"])
            chain, trend = await search(state["desk"], config.mics, key, given, answer, notes)
            return State(chain=chain, trend=trend, sent_back=False)
        turns = prompt("reasoner", key, given, notes)
        chain = await state["desk"].ask("reasoner", config.experts.reasoner, turns, Chain)
        return State(chain=chain, sent_back=False)

    def _given(self, state: State) -> dict[str, Any]:
        features = state["extraction"].features.model_dump(mode="json", exclude_none=True)
        return {"features": features, "triples": [each.text() for each in state["triples"]]}

    async def calibrate(self, state: State) -> State:
        """Check the chain mechanically, then by the expert; send it back in one of two ways, drawn by the case."""
        chain, features = state["chain"], state["extraction"].features
        specimen = state["extraction"].pathology if state["returns"] else None
        faults = check_chain(chain, features, self.graph, state["triples"], specimen)
        cause = faults[0].message if faults else None
        if not faults:
            given = {**self._given(state), "chain": chain.model_dump(mode="json")}
            turns = prompt("calibrator", state["case"].key, given, state["notes"])
            verdict = await state["desk"].ask("calibrator", self.config.experts.calibrator, turns, Verdict)
            if not verdict.consistent:
                issues = verdict.issues or ("the calibrator gives no reason",)
                faults = [Fault(kind="calibrator_objects", message=issue[:300]) for issue in issues]
                cause = verdict.suspected_cause or faults[0].message
        if not faults:
            return State(sent_back=False)
        state["desk"].tally.note("calibrator", faults)
        if state["calibrations"] >= self.config.reviews:
            raise SetAsideError("calibrator", faults)
        note = self._note(state, faults, str(cause))
        return State(sent_back=True, calibrations=state["calibrations"] + 1, notes=(*state["notes"], note))

    def _note(self, state: State, faults: Sequence[Fault], cause: str) -> str:
        """One of the paper's two strategies: a wider region, or a suspected cause."""
        problems = "\n".join(f"- {each.message}" for each in faults[:8])
        seed = f"{self.config.seed}/{state['case'].key}/{len(state['notes'])}"
        draw = random.Random(blake2b(seed.encode(), digest_size=8).digest())
        lesion, present = state["extraction"].features.lesion, state["present"]
        near = self.graph.neighbors(lesion.organ) if lesion and lesion.organ in FIVE else FIVE
        wider = [organ for organ in near if present is None or organ in present]
        if wider and draw.random() < 0.5:
            return EXPAND.format(organs=", ".join(wider), problems=problems)
        return SUSPECT.format(cause=cause, problems=problems)

    async def summarize(self, state: State) -> State:
        """Compare with pathology; where all agree, write the pairs."""
        found, chain, wanted = state["extraction"], state["chain"], state["wanted"]
        faults = check_agreement(chain, found.pathology)
        summary: Summary | None = None
        if not faults:
            given = {
                **self._given(state),
                "pathology": None if found.pathology is None else found.pathology.model_dump(mode="json"),
                "chain": chain.model_dump(mode="json"),
                "wanted": [each.model_dump(exclude_none=True) for each in wanted],
            }
            turns = prompt("summarizer", state["case"].key, given, state["notes"])

            def check(each: Summary) -> list[Fault]:
                return check_pairs(each.pairs, wanted, found) if each.consistent else []

            summary = await state["desk"].ask(
                "summarizer", self.config.experts.summarizer, turns, Summary, check, by="summarizer"
            )
            if not summary.consistent:
                issues = summary.issues or ("the summarizer gives no reason",)
                faults = [Fault(kind="summarizer_objects", message=issue[:300]) for issue in issues]
        if summary is not None and not faults:
            return State(sent_back=False, pairs=summary.pairs)
        state["desk"].tally.note("summarizer", faults)
        if state["returns"] >= self.config.reviews:
            raise SetAsideError("summarizer", faults)
        note = self._note(state, faults, faults[0].message)
        return State(sent_back=True, returns=state["returns"] + 1, notes=(*state["notes"], note))

    @staticmethod
    def _aside(state: State, by: str, faults: Sequence[Fault]) -> SetAsideError:
        state["desk"].tally.note(by, faults)
        return SetAsideError(by, faults)


def _after(onward: str) -> Callable[[State], str]:
    def choose(state: State) -> Literal["reason"] | str:
        return "reason" if state["sent_back"] else onward

    return choose


def _finished(end: State) -> Finished:
    return Finished(
        case=end["case"],
        label_map=end["label_map"],
        present=end["present"],
        extraction=end["extraction"],
        chain=end["chain"],
        wanted=end["wanted"],
        pairs=end["pairs"],
        calibrations=end["calibrations"],
        returns=end["returns"],
        trend=end["trend"],
    )
