"""The server's tools for any LangChain or LangGraph agent, with waiting for jobs taken care of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from langchain_core.tools import BaseTool, StructuredTool, ToolException

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, Tool

LEFT_OUT: Final = frozenset({"get_job", "list_jobs", "cancel_job"})
"""An agent needn't know of jobs: its tools return when they are done."""


async def agent_tools(client: Client, only: frozenset[str] | None = None) -> list[BaseTool]:
    """Every tool of the server, or those named ``only``.

    A tool's content is the short text for the model; its artifact is the structured content, for programs. An
    error of a tool is told to the model as such, never as a finding.
    """
    listed = (await client.list_tools()).tools
    chosen = [tool for tool in listed if tool.name not in LEFT_OUT and (only is None or tool.name in only)]
    return [_as_tool(client, tool) for tool in chosen]


def _as_tool(client: Client, tool: Tool) -> BaseTool:
    async def call(**arguments: Any) -> tuple[str, dict[str, Any] | None]:
        result = await client.call_tool(tool.name, arguments)
        while (job_id := _job_of(result)) is not None:
            result = await client.call_tool("get_job", {"job_id": job_id})
        text = "\n".join(_told(block) for block in result.content)
        if result.is_error:
            raise ToolException(f"The tool failed; this is no finding. {text}")
        return text, result.structured_content

    schema = {**tool.input_schema, "properties": dict(tool.input_schema.get("properties", {}))}
    schema["properties"].pop("wait_seconds", None)
    return StructuredTool(
        name=tool.name,
        description=tool.description or "",
        args_schema=schema,
        coroutine=call,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


def _job_of(result: CallToolResult) -> str | None:
    content = result.structured_content or {}
    running = not result.is_error and content.get("status") == "running"
    return content.get("job_id") if running else None


def _told(block: Any) -> str:
    text = getattr(block, "text", None)
    return str(text) if text is not None else f"{getattr(block, 'name', 'file')}: {getattr(block, 'uri', '')}"
