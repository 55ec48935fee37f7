"""What clients are given: configurations, the registry's server.json, the skill, the table of features."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tumorchain_agent import __version__
from tumorchain_agent.cli import build_parser
from tumorchain_agent.records import DISCLAIMER

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = sorted((ROOT / "examples" / "clients").iterdir())
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
SKILL = (ROOT / "SKILL.md").read_text(encoding="utf-8")


def servers_in(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    (key,) = [key for key in found if key.lower().endswith("servers")]
    return list(found[key].values())


@pytest.mark.parametrize("path", CLIENTS, ids=lambda path: path.name)
def test_every_configuration_starts_a_command_that_parses_or_sends_its_token_as_a_header(path: Path) -> None:
    for server in servers_in(path):
        if "url" in server:
            assert server["url"].startswith("https://")
            assert re.fullmatch(r"Bearer \$\{[\w:-]+\}", server["headers"]["Authorization"])
        else:
            assert server["command"].endswith("/tumorchain-agent")
            args = build_parser(server["args"][0]).parse_args(server["args"])
            assert args.root == [Path("/path/to/scans")]
    assert f"examples/clients/{path.name}" in DOCS


def test_server_json_meets_the_registrys_rules_and_starts_the_server() -> None:
    found = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", found["name"])
    assert len(found["description"]) <= 100
    assert DISCLAIMER.split(",")[1].strip() in found["description"]
    (package,) = found["packages"]
    assert found["version"] == package["version"] == __version__
    assert package["transport"]["type"] == "stdio"
    words = []
    for argument in package["packageArguments"]:
        words += [argument["value"]] if argument["type"] == "positional" else [argument["name"], "/scans"]
    assert build_parser(words[0]).parse_args(words).root == [Path("/scans")]


def test_the_readme_bears_the_registrys_mark_of_ownership() -> None:
    name = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))["name"]
    assert f"<!-- mcp-name: {name} -->" in README


def test_the_skill_names_tools_that_exist_and_what_the_software_is_not() -> None:
    assert re.match(r"---\nname: [a-z-]+\ndescription: .{50,1024}\n---\n", SKILL)
    tools = set(re.findall(r"`([a-z_]+)`", README.partition("\nTools: ")[2].partition("\n\n")[0]))
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", SKILL)) - {"job_id"}
    assert named <= tools
    assert DISCLAIMER in SKILL


def test_every_tick_of_the_feature_table_is_a_test_that_exists() -> None:
    table = README.partition("| TotalSegmentator MCP")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) >= 15
    for _, theirs, medmcp, ours, test in rows:
        assert {theirs, medmcp} <= {"Y", "~", "–", "?"}
        assert ours == "Y"
        assert f"def {test.strip('`')}(" in sources, test
