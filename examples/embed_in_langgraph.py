"""TumorChain as one node of a LangGraph workflow of your own.

python examples/embed_in_langgraph.py ct.nii.gz "TNM stage?"
"""

import asyncio
import sys
from typing import Any

from langgraph.graph import START, StateGraph
from mcp import StdioServerParameters

from tumorchain_agent.graph.build import IIRConfig, IIRInput, IIROutput, build_iir_graph, connect
from tumorchain_agent.model.chat import chat_model_from
from tumorchain_agent.settings import Settings


class Case(IIRInput, IIROutput, total=False):
    letter: str


def write_letter(case: Case) -> Case:
    return {"letter": f"{case['question']} {case['answer']['conclusion']} ({case['answer']['disclaimer']})"}


async def letter(server: Any, chat_model: Any, scan_path: str, question: str) -> str:
    async with connect(server) as client:
        steps: Any = [("tumorchain", build_iir_graph(client, chat_model, config=IIRConfig())), write_letter]
        workflow = StateGraph(Case).add_sequence(steps).add_edge(START, "tumorchain").compile()
        return str((await workflow.ainvoke(Case(scan_path=scan_path, question=question)))["letter"])


if __name__ == "__main__":
    server = StdioServerParameters(command="tumorchain-agent", args=["mcp"])
    print(asyncio.run(letter(server, chat_model_from(Settings()), *sys.argv[1:3])))
