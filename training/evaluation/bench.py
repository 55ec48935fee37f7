"""``evaluate --suite NAME PATH``: a benchmark's questions to the agent and to baselines, scored, into files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tumorchain_agent.errors import InputError
from tumorchain_agent.records import DISCLAIMER, EvidenceKind
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.atomic import whole_file
from tumorchain_agent.training.evaluation.chain_judge import (
    OFFLINE,
    ChainPair,
    ChainReport,
    as_jsonl,
    judge_pairs,
)
from tumorchain_agent.training.evaluation.chain_judge import as_markdown as chains_markdown
from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import aggregate
from tumorchain_agent.training.evaluation.direct import DirectSubject
from tumorchain_agent.training.evaluation.masks import KnownFacts
from tumorchain_agent.training.evaluation.readers import READERS
from tumorchain_agent.training.evaluation.report import as_csv, as_markdown, as_svg
from tumorchain_agent.training.evaluation.runner import Answers, Item, Line, as_json, ask_all, check_scans
from tumorchain_agent.training.evaluation.scoring import Scores, score
from tumorchain_agent.training.evaluation.semantic import Judge, judge_open
from tumorchain_agent.training.evaluation.subjects import Subject, open_agent

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

Who = Literal["agent", "direct", "both"]
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What is evaluated, and how."""

    suite: str
    path: Path
    who: Who = "agent"
    evidence: EvidenceKind = "tokens"
    scans: Path | None = None
    masks: Path | None = None
    open_ended: bool = False
    limit: int | None = None
    out: Path | None = None
    models: tuple[Path, ...] = ()
    """Checkpoints to compare, a column each; none: the one of the settings."""


@dataclass(frozen=True)
class Finished:
    """Scores; for DeepTumorVQA each subject's result file as the package writes it; chains where there are some."""

    scores: Scores
    results: dict[str, dict[str, Any]]
    chains: ChainReport | None = None

    @property
    def markdown(self) -> str:
        """All tables."""
        return as_markdown(self.scores) + ("\n" + chains_markdown(self.chains) if self.chains else "")


async def evaluate(
    settings: Settings,
    request: Request,
    advance: Advance,
    judge: Judge,
    chain_model: BaseChatModel | None = None,
) -> Finished:
    """Ask, judge, score, write. Raises TumorChainError before anything is asked where the files are wrong.

    ``chain_model`` scores reasoning chains, where the questions have some; without it they are compared by triples.
    """
    items = READERS[request.suite](request.path, request.scans, request.open_ended, request.limit)
    check_scans(items)
    _check_readable(items, request)
    answers = Answers(request.out)
    lines: dict[str, list[Line]] = {}
    given = {item.image: item.label_map for item in items if item.label_map is not None}
    async with _subjects(settings, request, given) as subjects:
        for subject in subjects:
            lines[subject.name] = await ask_all(items, subject, answers, partial(advance, subject.name))
    judged = await judge_open(items, lines, judge)
    scores = score(request.suite, items, lines, judged, judge.name)
    found = {name: _result_file(items, each, request) for name, each in lines.items()}
    pairs = _chains(items, lines)
    chains = (
        await judge_pairs(pairs, chain_model, OFFLINE if chain_model is None else judge.name)
        if pairs
        else None
    )
    finished = Finished(scores, found if request.suite == "deeptumorvqa" else {}, chains)
    if request.out is not None:
        write(finished, request.out)
    return finished


def _chains(items: list[Item], lines: dict[str, list[Line]]) -> list[ChainPair]:
    """Reasoning of the reference and of each subject, where the questions have rounds."""
    return [
        ChainPair(
            id=item.sample.id,
            reference=" ".join(item.sample.texts),
            prediction=line.said.chain,
            model=subject,
        )
        for subject, said in lines.items()
        for item, line in zip(items, said, strict=True)
        if item.sample.rounds
    ]


def _check_readable(items: list[Item], request: Request) -> None:
    names = [model.name for model in request.models]
    if len(set(names)) < len(names):
        raise InputError(
            f"two checkpoints are called {names[-1]}: name their folders differently, to tell them apart"
        )
    if request.who != "direct" and any(item.scan.name.endswith(".npy") for item in items):
        raise InputError(
            f"{items[0].scan.name} is a .npy model volume: it has no spacing and no HU, so organs can't be segmented "
            "or measured; evaluate a vision LLM on it with --who direct --llm-url"
        )


@asynccontextmanager
async def _subjects(
    settings: Settings, request: Request, given: Mapping[str, Path]
) -> AsyncIterator[list[Subject]]:
    from tumorchain_agent.mcp_server.workbench import Workbench
    from tumorchain_agent.model.chat import chat_model_from

    found: list[Subject] = []
    async with AsyncExitStack() as stack:
        if request.who != "direct":
            for model in request.models or (settings.model,):
                own = settings.model_copy(update={"model": model})
                bench = stack.enter_context(closing(Workbench(own)))
                facts = KnownFacts(bench, request.masks, given)
                found.append(await stack.enter_async_context(open_agent(own, request.evidence, facts)))
        if request.who != "agent":
            if settings.llm_url is None:
                raise InputError("a baseline is a vision LLM behind an address: pass --llm-url too")
            chat_model = chat_model_from(settings, evidence="images")
            found.append(DirectSubject(chat_model, f"{settings.llm_model or 'LLM'} (slices)"))
        yield found


def _result_file(items: list[Item], lines: list[Line], request: Request) -> dict[str, Any]:
    """The package's result format; questions are as the sample's provenance tells them."""
    rows = [_result(item, line) for item, line in zip(items, lines, strict=True)]
    form: Literal["mc", "freeform"] = "freeform" if request.open_ended else "mc"
    scored = [
        row for row in rows if row["question_subtype"] and (request.open_ended or row["correct_option"])
    ]
    return {
        "metrics": aggregate(scored, form),
        "n_processed": len(rows),
        "disclaimer": DISCLAIMER,
        "results": rows,
    }


def _result(item: Item, line: Line) -> dict[str, Any]:
    """``pred_answer``, which the package scores, is the model's own text; our reading is the ``final_answer``."""
    known, said = item.sample.provenance, line.said
    heard = said.text if said.how == "measured" else said.raw or said.text
    return {
        "qid": item.sample.id.removeprefix("deeptumorvqa/"),
        "image_id": item.image,
        "question_subtype": known.get("question_subtype"),
        "question_type": known.get("question_type"),
        "raw_output": heard,
        "pred_answer": heard,
        "correct_option": item.sample.correct,
        "answer": item.sample.answer,
        "trajectory": [
            *(
                {"step": k, "tool": "measure", "arguments": {}, "result": uri}
                for k, uri in enumerate(said.sources)
            ),
            {
                "step": len(said.sources),
                "final_answer": said.text,
                "how": said.how,
                "text": said.raw,
                "note": said.note,
            },
        ],
    }


def write(finished: Finished, folder: Path) -> None:
    """``scores.json table.md table.csv chart.svg``, a ``result-SUBJECT.json`` each, ``chains.jsonl``; each whole."""
    files = {
        "scores.json": finished.scores.model_dump_json(indent=1).encode() + b"\n",
        "table.md": finished.markdown.encode(),
        "table.csv": as_csv(finished.scores).encode(),
        "chart.svg": as_svg(finished.scores).encode(),
    }
    if finished.chains is not None:
        files["chains.jsonl"] = as_jsonl(finished.chains)
    for name, result in finished.results.items():
        plain = "".join(char if char.isalnum() else "-" for char in name).strip("-")
        files[f"result-{plain}.json"] = as_json(result)
    for name, content in files.items():
        with whole_file(folder / name) as file:
            file.write(content)
