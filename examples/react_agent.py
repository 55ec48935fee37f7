"""TumorChain's tools in the hands of a LangGraph ReAct agent with a chat model of your own.

python examples/react_agent.py /data/scans patient7/ct.nii.gz "How large is the liver?" http://localhost:8000/v1 MODEL
"""

import asyncio
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from mcp import StdioServerParameters

from tumorchain_agent.graph.agent_tools import agent_tools
from tumorchain_agent.graph.build import connect

RULES = (
    "You read CT scans with tools and never by guessing. Take every number from a tool's result. An organ that is "
    "absent or not assessed is not normal. A tool error is no finding. Say that you are research software, not a "
    "medical device."
)


async def react_agent(client: Any, chat_model: Any) -> Any:
    """Reason, act, observe, until the model calls no tool any more."""
    tools = await agent_tools(client)
    thinking = chat_model.bind_tools(tools)

    async def think(state: MessagesState) -> Any:
        return {"messages": [await thinking.ainvoke([SystemMessage(RULES), *state["messages"]])]}

    graph = StateGraph(MessagesState).add_node("think", think).add_node("tools", ToolNode(tools))
    graph.add_edge(START, "think").add_conditional_edges("think", tools_condition).add_edge("tools", "think")
    return graph.compile()


async def answer(server: Any, chat_model: Any, scan: str, question: str) -> list[Any]:
    """The whole conversation; its last message is the answer."""
    async with connect(server) as client:
        agent = await react_agent(client, chat_model)
        asked = HumanMessage(f"CT: {scan}. {question}")
        return list((await agent.ainvoke({"messages": [asked]}))["messages"])


if __name__ == "__main__":
    from langchain_openai import ChatOpenAI

    root, scan, question, url, model = sys.argv[1:6]
    server = StdioServerParameters(command="tumorchain-agent", args=["mcp", "--root", root])
    chat_model = ChatOpenAI(base_url=url, model=model, api_key="none")
    print(asyncio.run(answer(server, chat_model, scan, question))[-1].content)
