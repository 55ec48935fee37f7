"""IIR as a graph for LangGraph's server and Studio: ``langgraph dev`` in the folder of langgraph.json.

The scan's path in the input is on this machine. Settings come from TUMORCHAIN_* variables.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tumorchain_agent.graph.build import IIRConfig, build_iir_graph, connect
from tumorchain_agent.mcp_server.server import build_server
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.settings import Settings


@asynccontextmanager
async def iir() -> AsyncIterator[Any]:
    """The compiled graph, connected to tools in this process while it is used."""
    settings = Settings()
    async with connect(build_server(settings)) as client:
        yield build_iir_graph(client, chat_model_from(settings), config=IIRConfig())
