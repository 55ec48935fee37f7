"""The graph inside other LangGraph workflows."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from tests.graph.fakes import FakeCT, ScriptedModel
from tumorchain_agent.graph.build import IIRConfig, IIRInput, IIROutput, build_iir_graph, connect
from tumorchain_agent.records import Answer

EXAMPLE = Path(__file__).parents[2] / "examples" / "embed_in_langgraph.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("embed_in_langgraph", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs_the_graph_as_a_node_of_another_workflow() -> None:
    model = ScriptedModel(replies=["See the liver.", "Liver: T2."])
    letter = anyio.run(load_example().letter, FakeCT().server(), model, "ct.nii.gz", "TNM stage?")
    assert letter == "TNM stage? Liver: T2. (Research software, not a medical device.)"
    assert len(model.calls) == 2


def test_the_example_has_20_lines_of_code_at_most() -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    docstring = ast.parse(source).body[0].end_lineno
    assert sum(bool(line.strip()) for line in source.splitlines()[docstring:]) <= 20


def test_a_thread_that_is_asked_again_starts_over() -> None:
    async def scenario() -> list[Answer]:
        model = ScriptedModel(replies=["See the liver.", "Liver: fine.", "See the spleen.", "Spleen: fine."])
        async with connect(FakeCT().server()) as client:
            graph = build_iir_graph(client, model, config=IIRConfig(), checkpointer=InMemorySaver())
            answers = []
            for question in ("First?", "Second?"):
                state: Any = await graph.ainvoke(
                    IIRInput(scan_path="ct", question=question), {"configurable": {"thread_id": "one"}}
                )
                answers.append(Answer.model_validate(state["answer"]))
            return answers

    first, second = anyio.run(scenario)
    assert first.organs_examined == ("liver",)
    assert second.organs_examined == ("spleen",)
    assert (second.question, len(second.rounds), second.thread_id) == ("Second?", 2, "one")


def test_two_graphs_side_by_side_in_one_workflow_keep_apart() -> None:
    class Both(IIRInput, total=False):
        left: dict[str, Any]
        right: dict[str, Any]

    async def scenario() -> Any:
        async with connect(FakeCT().server()) as client:
            graphs = {
                "left": build_iir_graph(client, ScriptedModel(replies=["Liver.", "L."]), config=IIRConfig()),
                "right": build_iir_graph(client, ScriptedModel(replies=["Nothing."]), config=IIRConfig()),
            }

            def run(name: str) -> Any:
                async def node(state: Both) -> Any:
                    return {name: (await graphs[name].ainvoke(state)).get("answer")}

                return node

            workflow = StateGraph(Both)
            for name in graphs:
                workflow.add_node(f"ask_{name}", run(name)).add_edge(START, f"ask_{name}")
            return await workflow.compile().ainvoke({"scan_path": "ct", "question": "What?"})

    state = anyio.run(scenario)
    assert state["left"]["organs_examined"] == ["liver"]
    assert state["right"]["organs_examined"] == []
    assert IIROutput(answer=state["right"])["answer"]["conclusion"] == "Nothing."
