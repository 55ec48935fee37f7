"""One real server for all tests here: nano behind vLLM, started by ``tumorchain-agent serve`` as a user does."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from tumorchain_agent.cli import TERMINATED
from tumorchain_agent.errors import InputError
from tumorchain_agent.graph.events import Event
from tumorchain_agent.graph.run import ask
from tumorchain_agent.mcp_server.asking import THREADS
from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.model.vllm_server import find_build, free_port
from tumorchain_agent.records import Answer, EvidenceKind
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.phantom.export import save_nifti
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.phantom.volume import generate_nano

ROOT = Path(__file__).resolve().parents[2]
START_S = 420.0
PR_SET_PDEATHSIG = 1
TUMOR_SEED = 7_400_001


def _end_with_the_tests() -> None:
    """The kernel sends SIGTERM when pytest's main thread ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class RunningServer:
    """``tumorchain-agent serve --port N`` in a process of its own; it can be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.log = folder / "vllm.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def printed(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def told(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        alive = self._process is not None and self._process.poll() is None
        return alive and "tumorchain-agent ask" in self.printed

    def start(self) -> None:
        """Without waiting."""
        words = ["serve", "--port", str(self.port), "--log", str(self.log)]
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tumorchain_agent.cli", *words],
                cwd=ROOT,
                stdout=out,
                stderr=err,
                preexec_fn=_end_with_the_tests,
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self.is_ready:
            assert self._process is not None
            assert self._process.poll() is None, self.told
            assert time.monotonic() < deadline, f"not ready in {START_S:g} s: {self.told}"
            time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        """``serve`` and all that it has started."""
        leader = psutil.Process(self.pid)
        return [leader, *leader.children(recursive=True)]

    def end(self, number: signal.Signals) -> int:
        """Send a signal to ``serve`` alone; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(timeout=60)

    def settings(self, cache: Path, timeout_s: float = 60.0) -> Settings:
        """Those of a client with a cache folder of its own."""
        return Settings(cache_dir=cache, llm_url=self.url, llm_timeout_s=timeout_s)


def all_gone(family: list[psutil.Process], timeout_s: float = 30.0) -> list[psutil.Process]:
    """Those that are still there after a while; the rest have ended."""
    return [
        each
        for each in psutil.wait_procs(family, timeout=timeout_s)[1]
        if each.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    try:
        find_build()
    except InputError as error:
        pytest.skip(f"needs vLLM: {error}")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    running = RunningServer(tmp_path_factory.mktemp("vllm"), free_port("127.0.0.1", 0))
    running.start()
    try:
        yield running
    finally:
        family = running.family()
        assert running.end(signal.SIGTERM) == TERMINATED
        assert all_gone(family) == [], "serve left processes behind"


@pytest.fixture
def server(_server: RunningServer) -> RunningServer:
    """The server, ready."""
    if not _server.is_ready:
        _server.wait_ready()
    return _server


@dataclass(frozen=True)
class Files:
    """A phantom on nano's grid as a user would have it: scan, true label map, and a cache that all tests share."""

    scan: Path
    masks: Path
    cache: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("phantom")
    case = generate_nano(TUMOR_SEED, organ="pancreas")
    save_nifti(to_stored(case.hu), case.grid.affine, folder / "ct.nii.gz")
    save_nifti(case.labels, case.grid.affine, folder / "masks.nii.gz")
    return Files(folder / "ct.nii.gz", folder / "masks.nii.gz", folder / "cache")


def ask_once(
    settings: Settings,
    files: Files,
    question: str,
    *,
    masks: bool = True,
    llm: Settings | None = None,
    evidence: EvidenceKind = "tokens",
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> Answer:
    """A question through the real MCP server and graph, by the LLM that the settings, or those of ``llm``, name."""

    async def steps() -> Answer:
        with closing(Workbench(settings)) as bench:
            async with connect_in_memory(build_server(bench)) as client:
                chat_model = await anyio.to_thread.run_sync(
                    partial(chat_model_from, llm or settings, evidence=evidence)
                )
                return await ask(
                    client,
                    chat_model,
                    str(files.scan),
                    question,
                    masks=str(files.masks) if masks else None,
                    evidence=evidence,
                    checkpoint_db=settings.cache_dir / THREADS,
                    on_event=on_event,
                    **options,
                )

    return anyio.run(steps)
