"""Write what is derived from the source: ``python scripts/generate.py`` (``--check`` only compares).

The JSON schemas of ``trace.jsonl`` and of a line of training data, and in README.md and docs/ the blocks between
``<!-- name -->`` and ``<!-- /name -->``: the commands and their options, the source tree and the embedding
example. A test runs the comparison.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "schemas"
ROOMS = {
    "tumorchain_agent": "the front door: command line, settings, records, errors, report",
    "tools": "a CT and its organs: load, preprocess, segment, Γ, measure, render, cache",
    "model": "the network, its checkpoint format, chat models",
    "graph": "Iterative Interleaved Reasoning as a LangGraph state machine",
    "mcp_server": "tools/ and graph/ as MCP tools and resources",
    "training": "phantoms, curriculum, evaluation",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when something is not current")
    check = parser.parse_args().check
    stale = [path for path, text in wanted().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(
            f"{path.relative_to(ROOT)} is not current; run python scripts/generate.py"
            if check
            else f"wrote {path}"
        )
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted()[path], encoding="utf-8")
    return 1 if check and stale else 0


def wanted() -> dict[Path, str]:
    """Every generated file as it should be."""
    from tumorchain_agent.graph.trace import trace_schema
    from tumorchain_agent.training.data.record import sample_schema

    schemas = {"trace": trace_schema(), "tumorcot": sample_schema()}
    files = {SCHEMAS / f"{name}.schema.json": as_json(schema) for name, schema in schemas.items()}
    return {**files, **{ROOT / name: document(ROOT / name, blocks) for name, blocks in BLOCKS.items()}}


def as_json(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def document(path: Path, blocks: dict[str, Callable[[], str]]) -> str:
    """A Markdown file with its generated blocks filled in anew."""
    text = path.read_text(encoding="utf-8")
    for name, make in blocks.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = block.search(text)
        if found is None:
            raise SystemExit(f"{path.name} lacks the block <!-- {name} --> … <!-- /{name} -->")
        text = text[: found.end(1)] + make() + text[found.start(2) :]
    return text


def tree() -> str:
    """Rooms and files, each file with the first sentence of its docstring."""
    lines = []
    for room, purpose in ROOMS.items():
        lines.append(f"{room + '/':<28}{purpose}")
        lines += [f"  {name:<26}{text}" for name, text in files(ROOT / room)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def files(room: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(room.rglob("*.py"), key=lambda each: (each.parent != room, str(each))):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        inside = not any(parent.is_symlink() for parent in path.parents if ROOT in parent.parents)
        if docstring and inside and path.name != "__init__.py":
            yield str(path.relative_to(room)), first_sentence(docstring)


def first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.]{3}[.?!]) (?=[A-ZΓΛ`])", paragraph)[0]
    return re.sub(r":\w+:`~?([^`]+)`", lambda found: found[1].rsplit(".", 1)[-1], sentence).replace("``", "")


def commands() -> str:
    """What each subcommand is for."""
    from tumorchain_agent.cli import COMMANDS

    rows = [f"| `tumorchain-agent {name}` | {command.help} |" for name, command in COMMANDS.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows]) + "\n"


def options() -> str:
    """One table for each subcommand, and for each command below one."""
    from tumorchain_agent.cli import COMMANDS, build_parser

    tables = []
    for name, command in COMMANDS.items():
        parser = _below(build_parser(name))[name]
        tables += _tables(f"tumorchain-agent {name}", command.help, parser)
    return "\n\n".join(tables) + "\n"


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _tables(command: str, about: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    below = _below(parser)
    for name, sub in below.items():
        first = (sub.description or "").split(". ")[0]
        yield from _tables(f"{command} {name}", f"{first[:1].lower()}{first[1:]}", sub)
    if not below:
        rows = [
            f"| {_usage(action)} | {action.help} |" for action in parser._actions if action.dest != "help"
        ]
        yield "\n".join([f"`{command}`: {about}", "", "| | |", "| --- | --- |", *rows])


def _usage(action: argparse.Action) -> str:
    value = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    if action.choices is not None:
        value = "\\|".join(str(choice) for choice in action.choices)
    named = action.option_strings[-1:]
    if isinstance(action, argparse.BooleanOptionalAction):
        named = action.option_strings
    name = "\\|".join(named)
    shown = " ".join(part for part in (name, value if action.nargs != 0 else None) if part)
    return f"`{shown}`"


def example() -> str:
    return f"```python\n{(ROOT / 'examples' / 'embed_in_langgraph.py').read_text(encoding='utf-8')}```\n"


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"commands": commands, "example": example},
    "docs/command_line.md": {"options": options},
    "docs/source.md": {"tree": tree},
}

if __name__ == "__main__":
    sys.exit(main())
