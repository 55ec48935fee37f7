"""``trace.jsonl``: every line fits the published schema."""

from __future__ import annotations

import json

import anyio
import pytest
from pydantic import ValidationError

from tests.graph.fakes import FakeCT, ScriptedModel
from tests.sample_answer import MEASUREMENTS, sample_answer
from tumorchain_agent.graph.client import CTTools, connect
from tumorchain_agent.graph.run import ask
from tumorchain_agent.graph.trace import read_trace_record, trace_records, trace_schema


def test_the_trace_of_a_question_holds_every_part_once() -> None:
    async def scenario() -> list[dict[str, object]]:
        model = ScriptedModel(replies=["See the liver and the esophagus.", "Liver: T2 N0 M0."])
        async with connect(FakeCT().server()) as client:
            tools = CTTools(client)
            answer = await ask(tools, model, "ct", "TNM?", checkpoint_db=None)
            measured = await tools.measure_organs(answer.scan.scan_id)
            return trace_records(answer, measured.measurements)

    lines = anyio.run(scenario)
    kinds = [line["type"] for line in lines]
    assert kinds[:3] == ["header", "scan", "segmentation"]
    assert kinds.count("measurement") == 56
    assert (kinds.count("round"), kinds.count("usage"), kinds.count("evidence")) == (2, 2, 2)
    assert kinds[-2:] == ["tnm", "answer"]
    liver = next(line for line in lines if line["type"] == "measurement" and line["organ"] == "liver")
    assert (liver["volume_ml"], liver["mean_hu"]) == (27.0, 50.4)
    usage = [line for line in lines if line["type"] == "usage"]
    assert [line["prompt_tokens"] for line in usage] == [100, 200]
    assert [line["cached_tokens"] for line in usage] == [0, 100]
    assert [line["completion_tokens"] for line in usage] == [6, 4]


def test_every_line_reads_back_as_what_it_was() -> None:
    for line in trace_records(sample_answer(), MEASUREMENTS):
        assert read_trace_record(json.dumps(line)).model_dump(mode="json") == line


def test_a_line_with_an_unknown_field_is_refused() -> None:
    line = trace_records(sample_answer(), MEASUREMENTS)[0] | {"surprise": 1}
    with pytest.raises(ValidationError, match="surprise"):
        read_trace_record(json.dumps(line))


def test_the_schema_is_published_with_every_type_of_line() -> None:
    schema = trace_schema()
    kinds = set(schema["discriminator"]["mapping"])
    assert kinds >= {line["type"] for line in trace_records(sample_answer(), MEASUREMENTS)}
    assert json.loads(json.dumps(schema)) == schema
    measurement = schema["$defs"]["MeasurementRecord"]["properties"]
    assert {"organ", "volume_ml", "mean_hu", "type"} <= set(measurement)
