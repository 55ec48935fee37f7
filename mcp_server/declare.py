"""A method as an MCP tool: its schemas, title and annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import ConfigDict, TypeAdapter

from tumorchain_agent.mcp_server.results import JobStatus
from tumorchain_agent.records import Record


def declared(
    function: Callable[..., Any], title: str, slow: type[Record] | None = None, reads: bool = True
) -> Tool:
    """A tool that may be repeated, stays on this machine, and refuses unknown arguments.

    ``slow``: the result of a tool that may return a job's status in its place.
    """
    tool = Tool.from_function(
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
