"""A method as an MCP tool: its schemas, title and annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server.calls import failure
from tumorchain_agent.mcp_server.results import JobStatus
from tumorchain_agent.records import Record


class _Declared(Tool):
    """A tool that answers arguments which don't fit its schema in one line, as it answers any other bad input."""

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().run(*args, **kwargs)
        except UnexpectedToolError:
            raise
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            return failure(InputError(f"{self.name}: {self._wrong(error.__cause__)}"))

    def _wrong(self, error: ValidationError) -> str:
        known: dict[str, dict[str, Any]] = self.parameters["properties"]
        found = []
        for each in error.errors(include_url=False, include_context=False):
            name = ".".join(map(str, each["loc"]))
            if each["type"] == "missing":
                told = known.get(name, {}).get("description", "")
                found.append(f"{name} is missing{': ' if told else ''}{told}".rstrip("."))
            elif each["type"] == "extra_forbidden":
                found.append(f"{name[:80]!r} is no argument; it takes {', '.join(known)}")
            else:
                found.append(f"{name} {str(each['input'])[:80]!r}: {each['msg']}")
        return "; ".join(found[:3])


def declared(
    function: Callable[..., Any], title: str, slow: type[Record] | None = None, reads: bool = True
) -> Tool:
    """A tool that may be repeated, stays on this machine, and refuses unknown arguments.

    ``slow``: the result of a tool that may return a job's status in its place.
    """
    tool = _Declared.from_function(
        function,
        title=title,
        description=inspect.getdoc(function),
        annotations=ToolAnnotations(
            title=title,
            read_only_hint=reads,
            destructive_hint=not reads,
            idempotent_hint=True,
            open_world_hint=False,
        ),
        structured_output=True,
    )
    known = tool.fn_metadata.arg_model
    namespace = {"model_config": ConfigDict(extra="forbid"), "__module__": __name__}
    strict: Any = type(known.__name__, (known,), namespace)
    tool.fn_metadata.arg_model = strict
    tool.parameters = strict.model_json_schema(by_alias=True)
    if slow is not None:
        either: Any = slow | JobStatus
        tool.fn_metadata.output_model = either
        tool.fn_metadata.output_schema = _object(TypeAdapter(either).json_schema())
    return tool


def _object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """MCP wants an object at the root."""
    return {"type": "object", **schema}
