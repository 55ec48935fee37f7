"""The way of a question through Iterative Interleaved Reasoning (paper 3.2).

::

    START → open ─┬─ first_look: encode → reason ─┬─ match ─┬─ conclude → END
                  └─ segment ─────────────────────┘    ↑    └─ examine (each new organ) → reason ─┐
                                                       └───────────────────────────────────────────┘

Round 1 needs τ_g only, so it runs while segmentation is still at work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from tumorchain_agent.graph.client import CTTools, connect
from tumorchain_agent.graph.nodes import Nodes
from tumorchain_agent.graph.state import (
    ExamineInput,
    FirstLookInput,
    FirstLookOutput,
    IIRConfig,
    IIRInput,
    IIROutput,
    IIRState,
)

if TYPE_CHECKING:
    from mcp import Client

__all__ = ["IIRConfig", "IIRGraph", "IIRInput", "IIROutput", "build_iir_graph", "connect"]

Node = TypeVar("Node", bound=Callable[..., Awaitable[IIRState]])

IIRGraph = CompiledStateGraph[IIRState, None, IIRInput, IIROutput]


def build_iir_graph(
    client: Client | CTTools,
    chat_model: BaseChatModel,
    *,
    config: IIRConfig,
    checkpointer: BaseCheckpointSaver[str] | None = None,
) -> IIRGraph:
    """IIR over the tools of an MCP server and a LangChain chat model, as a compiled LangGraph graph.

    Invoke it with ``scan_path`` and ``question`` (``masks``, ``volume``); ``answer`` is an
    :class:`~tumorchain_agent.records.Answer` as JSON values. Embed it as a node of another graph, which then
    shares its checkpointer. Progress, tokens and rounds are on the stream of ``stream_mode="custom"`` with
    ``subgraphs=True`` (:mod:`~tumorchain_agent.graph.events`).
    """
    tools = client if isinstance(client, CTTools) else CTTools(client)
    nodes = Nodes(tools, chat_model, config)
    graph = StateGraph(IIRState, input_schema=IIRInput, output_schema=IIROutput)
    graph.add_node("open", _plain(nodes.open))
    graph.add_node("first_look", _first_look(nodes))
    graph.add_node("segment", _plain(nodes.segment))
    graph.add_node("match", _plain(nodes.match))
    graph.add_node("examine", _plain(nodes.examine), input_schema=ExamineInput)
    graph.add_node("reason", _plain(nodes.reason))
    graph.add_node("conclude", _plain(nodes.conclude))
    graph.add_edge(START, "open")
    graph.add_edge("open", "first_look")
    graph.add_edge("open", "segment")
    graph.add_edge(["first_look", "segment"], "match")
    graph.add_conditional_edges("match", nodes.next_step, ["examine", "conclude"])
    graph.add_edge("examine", "reason")
    graph.add_edge("reason", "match")
    graph.add_edge("conclude", END)
    return graph.compile(checkpointer=checkpointer, name="tumorchain")


def _first_look(nodes: Nodes) -> CompiledStateGraph[IIRState, None, FirstLookInput, FirstLookOutput]:
    """Encoding and round 1 in a branch of their own: LangGraph's steps would wait for segmentation."""
    graph = StateGraph(IIRState, input_schema=FirstLookInput, output_schema=FirstLookOutput)
    graph.add_node("encode", _plain(nodes.encode))
    graph.add_node("reason", _plain(nodes.reason))
    graph.add_edge(START, "encode")
    graph.add_edge("encode", "reason")
    graph.add_edge("reason", END)
    return graph.compile(name="first_look")


def _plain(node: Node) -> Node:
    """The same node; a method LangGraph disassembles in search of a graph inside, for milliseconds a question."""
    return cast(Node, partial(node))
