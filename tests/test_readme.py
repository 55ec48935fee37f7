"""What README.md says is compared with what there is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.run_make import run_make
from tumorchain_agent.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
SHELL = [
    shlex.split(line, comments=True) for kind, code in BLOCKS if kind == "sh" for line in code.splitlines()
]


def test_generated_parts_of_readme_and_the_trace_schema_are_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_first_two_commands_are_make_ask_and_make_test() -> None:
    assert [words[:2] for words in SHELL[:2]] == [["make", "ask"], ["make", "test"]]


@pytest.mark.parametrize("words", SHELL, ids=" ".join)
def test_every_command_parses(words: list[str]) -> None:
    if words[0] == "make":
        done = run_make("-n", "PYTHON=true", *words[1:], folder=ROOT)
        assert done.returncode == 0, done.stderr
    else:
        assert words[0].endswith("tumorchain-agent")
        build_parser(words[1]).parse_args(words[1:])


def test_mcp_configuration_starts_a_command_that_exists() -> None:
    (configuration,) = [json.loads(code) for kind, code in BLOCKS if kind == "json"]
    (server,) = configuration["mcpServers"].values()
    assert server["command"].endswith("/tumorchain-agent")
    assert server["args"][0] in COMMANDS
    build_parser(server["args"][0]).parse_args(server["args"])


def test_tools_of_the_server_are_those_that_readme_names(tmp_path: Path) -> None:
    import anyio

    from tumorchain_agent.mcp_server.server import serving
    from tumorchain_agent.mcp_server.workbench import Workbench
    from tumorchain_agent.settings import Settings

    async def tools() -> list[Any]:
        with Workbench(Settings(cache_dir=tmp_path)) as bench:
            async with serving(bench) as server:
                return list(await server.list_tools())

    listed = anyio.run(tools)
    paragraph = README.partition("\nTools: ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", paragraph)) == {tool.name for tool in listed}


def test_files_and_links_that_readme_names_exist() -> None:
    links = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    paths = re.findall(r"`((?:[a-z_]+/)+[a-z_.]+\.\w+)`", README)
    assert links
    assert [path for path in [*links, *paths] if not (ROOT / path).exists()] == []


def test_settings_and_exit_codes_are_those_of_the_source() -> None:
    from tumorchain_agent.errors import Cancelled, InputError, TumorChainError

    codes = (TumorChainError.exit_code, InputError.exit_code, Cancelled.exit_code)
    assert f"{codes[0]} failed, {codes[1]} wrong input, {codes[2]} interrupted" in " ".join(README.split())
