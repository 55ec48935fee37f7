"""A run over all cases: so many side by side, each finished once, the output written whole at the end.

Cases stream from their source and outcomes into the store, so that memory doesn't grow with their number. SIGTERM and
ctrl-C let calls in flight come home, then stop; the same run goes on from the store, and ends in the same bytes.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tumorchain_agent.errors import Cancelled, DataError
from tumorchain_agent.training.atomic import whole_file
from tumorchain_agent.training.data.files import Problem, write_samples
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.engine.calls import Caller, Paid, Stopped, open_caller
from tumorchain_agent.training.engine.cases import Case, count_cases, read_cases
from tumorchain_agent.training.engine.config import STAGES, EngineConfig
from tumorchain_agent.training.engine.faults import Fault
from tumorchain_agent.training.engine.figure import draw_statistics
from tumorchain_agent.training.engine.knowledge import KnowledgeGraph, load_knowledge
from tumorchain_agent.training.engine.label_maps import segmenting
from tumorchain_agent.training.engine.pipeline import Engine
from tumorchain_agent.training.engine.prompts import prompt_hash
from tumorchain_agent.training.engine.samples import Outcome
from tumorchain_agent.training.engine.statistics import Counts, Statistics
from tumorchain_agent.training.engine.store import Store, open_store

SAMPLES, SET_ASIDE, STATISTICS, TABLE, FIGURE = (
    "samples.jsonl", "set_aside.jsonl", "statistics.json", "statistics.md", "statistics.svg",
)  # fmt: skip
VERSION: Final = 1
"""Raised when the same case and replies give another outcome."""


class Watch(Protocol):
    """Is told how a run goes."""

    def __call__(self, done: int, total: int, paid: Paid) -> None: ...


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    statistics: Statistics
    paid: Paid
    """By this process; the rest was there already."""


async def run_engine(config: EngineConfig, out: Path, watch: Watch | None = None) -> Finished:
    """Run all cases and write ``samples.jsonl``, ``set_aside.jsonl`` and the statistics into ``out``.

    Raises Cancelled when it was stopped, ChatModelError when an endpoint fails for good, DataError when no case gives
    a sample; whatever was paid for and finished is kept.
    """
    out = out.absolute()
    graph = load_knowledge(config.knowledge)
    total = count_cases(config.cases)
    with open_store(out) as store, ExitStack() as stack:
        segmenter = stack.enter_context(segmenting(out)) if config.segment else None
        async with open_caller(store) as caller, _stoppable(caller):
            engine = Engine(config, graph, caller, out, segmenter)
            await _work(engine, store, total, watch)
        store.drop_from(total)
        statistics = write_output(store, graph, out)
        return Finished(statistics, caller.paid)


async def _work(engine: Engine, store: Store, total: int, watch: Watch | None) -> None:
    send, receive = anyio.create_memory_object_stream[Case | Problem](0)
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if watch:
            watch(done, total, engine.caller.paid)

    run_key = _run_key(engine)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_feed, engine, store, send, run_key, advance)
            for _ in range(engine.config.concurrency):
                tasks.start_soon(_worker, engine, store, receive.clone(), run_key, advance)
            receive.close()
    except BaseExceptionGroup as group:
        raise _first(group) from None
    if engine.caller.stopping.is_set():
        raise Cancelled("stopped; the same command goes on where this one stopped")


def _first(error: BaseException) -> BaseException:
    """What ended a run: of several, none that is but a consequence of stopping."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    found = [_first(each) for each in error.exceptions]
    return next((each for each in found if not isinstance(each, Stopped | anyio.EndOfStream)), found[0])


async def _feed(
    engine: Engine,
    store: Store,
    send: MemoryObjectSendStream[Case | Problem],
    run_key: str,
    advance: Callable[[], None],
) -> None:
    async with send:
        for item in read_cases(engine.config.cases):
            if engine.caller.stopping.is_set():
                return
            number = _number(item)
            if store.is_finished(number, _key(item, run_key, engine.out)):
                advance()
                continue
            try:
                await send.send(item)
            except anyio.BrokenResourceError:
                return


async def _worker(
    engine: Engine,
    store: Store,
    receive: MemoryObjectReceiveStream[Case | Problem],
    run_key: str,
    advance: Callable[[], None],
) -> None:
    async with receive:
        async for item in receive:
            if engine.caller.stopping.is_set():
                return
            try:
                outcome = _unreadable(item) if isinstance(item, Problem) else await engine.run(item)
            except Stopped:
                return
            store.put_outcome(_number(item), _key(item, run_key, engine.out), outcome.model_dump_json())
            advance()


def _number(item: Case | Problem) -> int:
    return item.line - 1 if isinstance(item, Problem) else item.number


def _unreadable(problem: Problem) -> Outcome:
    name = f"line {problem.line}"
    fault = Fault(kind="bad_case", message=problem.message)
    return Outcome(
        number=problem.line - 1,
        id=name,
        patient=problem.patient or name,
        by="validator",
        faults=(fault,),
        usage={},
    )


def _run_key(engine: Engine) -> str:
    """Hash of what decides outcomes beside the cases."""
    parts = [
        str(VERSION),
        engine.graph.id,
        engine.config.model_dump_json(exclude={"cases", "concurrency", "knowledge"}),
    ]
    return blake2b("\0".join([*parts, *map(prompt_hash, STAGES)]).encode(), digest_size=16).hexdigest()


def _key(item: Case | Problem, run_key: str, out: Path) -> str:
    parts = [run_key, str(out), repr(item)]
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@asynccontextmanager
async def _stoppable(caller: Caller) -> AsyncIterator[None]:
    """While it lasts, a first SIGINT or SIGTERM stops the run between calls, a second one at once."""
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, caller)
            yield
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _listen(caller: Caller) -> None:
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if caller.stopping.is_set():
                    raise Cancelled("stopped at once; the same command goes on where this one stopped")
                caller.stopping.set()
    except (ValueError, RuntimeError):  # not in the main thread, where signals are somebody else's
        return


def write_output(store: Store, graph: KnowledgeGraph, out: Path) -> Statistics:
    """Write what the store holds, in the order of the cases; each file whole or not at all."""
    counts = Counts()

    def outcomes() -> Iterator[Outcome]:
        for text in store.outcomes():
            yield Outcome.model_validate_json(text)

    def samples() -> Iterator[CoTSample]:
        for outcome in outcomes():
            counts.add(outcome)
            yield from outcome.samples
        if not counts.samples:
            reasons = ", ".join(f"{count} × {kind}" for kind, count in counts.reasons.most_common(5))
            raise DataError(
                f"no case gave a sample ({reasons or 'there are no cases'}); {out / SAMPLES} is not written"
            )

    write_samples(out / SAMPLES, samples())
    statistics = counts.statistics(graph.id)
    with whole_file(out / SET_ASIDE) as file:
        for outcome in outcomes():
            if outcome.by is not None:
                kept = outcome.model_dump_json(include={"number", "id", "patient", "by", "faults"})
                file.write(kept.encode() + b"\n")
    texts = {
        STATISTICS: statistics.model_dump_json(indent=1) + "\n",
        TABLE: statistics.markdown(),
        FIGURE: draw_statistics(statistics),
    }
    for name, text in texts.items():
        with whole_file(out / name) as file:
            file.write(text.encode())
    return statistics
