"""The tools, called by a real client."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from jsonschema import validate  # type: ignore[import-untyped]
from mcp import Client
from pydantic import TypeAdapter

from tests.mcp_server.conftest import (
    HIDDEN,
    PRESENT,
    Files,
    ScriptedSegmenter,
    call,
    open_segmented,
    text_of,
    with_client,
)
from tumorchain_agent import errors
from tumorchain_agent.errors import Cancelled, TumorChainError
from tumorchain_agent.mcp_server.calls import ERROR_META
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import DISCLAIMER
from tumorchain_agent.settings import Settings

TOOLS = [
    "open_scan",
    "list_organs",
    "segment_organs",
    "measure_organs",
    "measure_lesions",
    "measure_contact",
    "compare_scans",
    "encode_scan",
    "extract_roi_tokens",
    "classify_abnormality",
    "view_organ",
    "ask",
    "explain",
]


def test_tools_are_listed_with_all_that_a_model_needs_to_call_them(workbench: Workbench) -> None:
    async def steps(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == TOOLS
        for tool in tools:
            assert tool.title
            assert tool.description
            assert "\n    " not in tool.description
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint
            assert tool.annotations.idempotent_hint
            assert tool.annotations.open_world_hint is False
            assert tool.output_schema is not None
            assert tool.output_schema["type"] == "object"
            assert tool.input_schema["additionalProperties"] is False
            for name, argument in tool.input_schema["properties"].items():
                assert argument.get("description"), f"{tool.name}({name}) is not described"
        assert client.instructions is not None
        assert DISCLAIMER in client.instructions

    with_client(workbench, steps)


def test_every_structured_output_fits_its_declared_schema(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        schemas = {tool.name: tool.output_schema for tool in (await client.list_tools()).tools}
        scan_id, segmentation_id = await open_segmented(client, files)
        scan: dict[str, Any] = {"scan_id": scan_id}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("open_scan", {"path": str(files.scan)}),
            ("list_organs", {}),
            ("list_organs", scan),
            ("segment_organs", scan | {"masks": str(files.masks), "organs": ["liver", "stomach"]}),
            ("measure_organs", scan),
            ("measure_organs", scan | {"organs": ["hepatic"], "segmentation_id": segmentation_id}),
            ("measure_lesions", scan | {"mask": str(files.masks)}),
            ("measure_contact", scan | {"a": "vertebrae_L3", "b": "aorta"}),
            ("measure_contact", scan | {"a": "lesion", "b": "aorta", "mask": str(files.masks)}),
            ("compare_scans", {"earlier_scan_id": scan_id, "later_scan_id": scan_id}),
            ("encode_scan", scan),
            ("extract_roi_tokens", scan | {"organ": "spleen"}),
            ("extract_roi_tokens", scan | {"organ": "stomach"}),
            ("classify_abnormality", scan | {"organs": ["liver", "stomach"]}),
            ("view_organ", scan | {"organ": "liver", "planes": ["coronal"]}),
            ("view_organ", scan | {"organ": "stomach"}),
        ]
        for tool, arguments in calls:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, text_of(result)
            validate(result.structured_content, schemas[tool] or {})
            assert DISCLAIMER in text_of(result)
            assert len(text_of(result)) < 4000

    with_client(workbench, steps)


def test_a_given_label_map_is_measured_on_the_scans_own_grid(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        scan_id, segmentation_id = await open_segmented(client, files)
        found = await call(client, "measure_organs", scan_id=scan_id)
        records = {record["organ"]: record for record in found["measurements"]}
        assert found["segmentation_id"] == segmentation_id
        assert len([r for r in records.values() if r["level"] == "organ"]) == 56
        assert {name for name, r in records.items() if r["present"] and r["level"] == "organ"} == set(PRESENT)
        voxels = int((files.labels == 5).sum())
        assert records["liver"]["voxels"] == voxels
        assert records["liver"]["volume_ml"] == pytest.approx(voxels * 8 * 8 * 12 / 1000)
        assert records["liver"]["centroid_mm"][0] > 0
        assert records["vertebrae_L3"]["level"] == "structure"

    with_client(workbench, steps)


def test_tokens_pictures_and_classes_of_an_organ_in_the_scan(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        scan_id, _ = await open_segmented(client, files)
        whole = await call(client, "encode_scan", scan_id=scan_id)
        assert (whole["count"], whole["hidden_size"], whole["organ"]) == (256, HIDDEN, None)
        liver = await call(client, "extract_roi_tokens", scan_id=scan_id, organ="hepatic")
        assert liver["organ"] == "liver"
        assert 0 < liver["count"] <= liver["cells"]
        assert liver["checkpoint_id"] == whole["checkpoint_id"]
        classes = await call(client, "classify_abnormality", scan_id=scan_id, organs=["liver", "spleen"])
        for record in classes["classifications"]:
            assert 0 <= record["p_abnormal"] <= 1
            assert record["label"] == ("abnormal" if record["p_abnormal"] >= 0.5 else "normal")
        seen = await call(client, "view_organ", scan_id=scan_id, organ="liver")
        assert [picture["plane"] for picture in seen["pictures"]] == ["axial", "coronal", "sagittal"]

    with_client(workbench, steps)


def test_an_organ_that_is_not_in_the_scan_is_told_and_never_looks_normal(
    workbench: Workbench, files: Files
) -> None:
    async def steps(client: Client) -> None:
        scan_id, _ = await open_segmented(client, files)
        tokens = await call(client, "extract_roi_tokens", scan_id=scan_id, organ="esophagus")
        assert tokens["count"] == 0
        classes = await call(client, "classify_abnormality", scan_id=scan_id, organs=["esophagus"])
        (record,) = classes["classifications"]
        assert (record["present"], record["label"], record["p_abnormal"]) == (False, "not assessed", None)
        seen = await call(client, "view_organ", scan_id=scan_id, organ="esophagus")
        assert (seen["present"], seen["pictures"]) == (False, [])
        measured = await call(client, "measure_organs", scan_id=scan_id, organs=["esophagus"])
        assert measured["measurements"][0]["present"] is False
        for found in (tokens, record, seen, measured):
            assert [(n["code"], n["organ"]) for n in found["notices"]][-1] == ("organ_absent", "esophagus")

    with_client(workbench, steps)


def test_what_limits_the_checkpoints_word_comes_with_its_word(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        scan_id, _ = await open_segmented(client, files)
        whole = await call(client, "encode_scan", scan_id=scan_id)
        liver = await call(client, "extract_roi_tokens", scan_id=scan_id, organ="liver")
        classes = await call(client, "classify_abnormality", scan_id=scan_id, organs=["liver"])
        for found in (whole, liver, classes, classes["classifications"][0]):
            codes = [notice["code"] for notice in found["notices"]]
            assert codes == ["demonstration_model", "out_of_distribution"]

    with_client(workbench, steps)


def test_list_organs_knows_what_is_in_the_scan_after_segmentation(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        scan = await call(client, "open_scan", path=str(files.scan))
        before = await call(client, "list_organs", scan_id=scan["scan_id"])
        assert {organ["present"] for organ in before["organs"]} == {None}
        _, segmentation_id = await open_segmented(client, files)
        after = await call(client, "list_organs", scan_id=scan["scan_id"])
        assert after["segmentation_id"] == segmentation_id
        assert tuple(organ["name"] for organ in after["organs"] if organ["present"]) == PRESENT
        assert [organ["organ_id"] for organ in after["organs"]] == list(range(1, 57))
        liver = next(organ for organ in after["organs"] if organ["name"] == "liver")
        assert "hepatic" in liver["synonyms"]
        assert [way["source"] for way in after["segmentation_choices"]] == ["official", "nano", "given"]
        assert all(way["detail"] for way in after["segmentation_choices"])

    with_client(workbench, steps)


def test_progress_rises_and_names_its_phases(workbench: Workbench, files: Files) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async def steps(client: Client) -> None:
        scan = await client.call_tool("open_scan", {"path": str(files.scan)}, progress_callback=listen)
        assert scan.structured_content is not None
        scan_id = scan.structured_content["scan_id"]
        assert heard
        heard.clear()
        await client.call_tool("encode_scan", {"scan_id": scan_id}, progress_callback=listen)

    with_client(workbench, steps)
    values = [progress for progress, _, _ in heard]
    assert values == sorted(set(values))
    assert {total for _, total, _ in heard} == {1.0}
    messages = [message for _, _, message in heard]
    assert "preprocessing the scan" in messages
    assert "encoding the scan" in messages


BAD_CALLS: list[tuple[str, dict[str, Any], str, str]] = [
    ("open_scan", {"path": "no-such-ct.nii.gz"}, "ScanError", "does not exist"),
    ("open_scan", {"path": "{scan}", "volume": 3}, "ScanError", "volume"),
    ("open_scan", {"path": "x" * 5000}, "ScanError", "check it"),
    ("open_scan", {"path": "~no-such-user/ct.nii.gz"}, "ScanError", "check it"),
    ("segment_organs", {"scan_id": "0123456789abcdef"}, "ScanError", "open_scan"),
    ("segment_organs", {"scan_id": "../../etc/passwd"}, "ScanError", "open_scan"),
    ("segment_organs", {"scan_id": "{id}", "masks": "none.nii.gz"}, "LabelMapError", "is missing"),
    ("segment_organs", {"scan_id": "{id}", "masks": "{scan}"}, "LabelMapError", "label"),
    ("measure_organs", {"scan_id": "{id}", "organs": ["livr"]}, "UnknownOrganError", "liver"),
    ("measure_organs", {"scan_id": "{id}", "segmentation_id": "nope"}, "LabelMapError", "segment_organs"),
    ("extract_roi_tokens", {"scan_id": "{id}", "organ": "kidneys"}, "UnknownOrganError", "kidney_left"),
    ("ask", {"path": "{scan}", "question": "  "}, "QuestionError", "empty"),
    ("ask", {"path": "no-such-ct.nii.gz", "question": "TNM?"}, "ScanError", "does not exist"),
]


def test_what_the_caller_can_mend_is_a_typed_tool_error(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        scan_id, _ = await open_segmented(client, files)
        for tool, given, code, remedy in BAD_CALLS:
            filled = {
                name: value.format(scan=files.scan, id=scan_id) if isinstance(value, str) else value
                for name, value in given.items()
            }
            result = await client.call_tool(tool, filled)
            text = text_of(result)
            assert result.is_error, (tool, given)
            assert result.structured_content is None
            assert text.startswith(f"{code}: "), text
            assert remedy in text
            assert "\n" not in text
            assert issubclass(getattr(errors, code), TumorChainError)
            assert (result.meta or {})[ERROR_META]["code"] == code

    with_client(workbench, steps)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("segment_organs", {"scan_id": "x", "organ": "liver"}, "'organ' is no argument; it takes scan_id, "),
    (
        "view_organ",
        {"scan_id": "x", "organ": "liver", "planes": ["oblique"]},
        "planes.0 'oblique': Input should be ",
    ),
    ("encode_scan", {}, "scan_id is missing: The scan_id that open_scan returned"),
    ("ask", {"path": "x", "question": "y", "max_rounds": 0}, "max_rounds '0': Input should be greater than"),
    (
        "measure_organs",
        {"scan_id": [1], "organs": 7, "x" * 500: 1},
        "scan_id '[1]': Input should be a valid string; ",
    ),
]


def test_arguments_that_do_not_fit_are_refused_in_one_line_that_names_them(workbench: Workbench) -> None:
    async def steps(client: Client) -> None:
        for tool, arguments, culprit in REFUSED:
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert text_of(result).startswith(f"InputError: {tool}: {culprit}")
            assert len(text_of(result)) < 600
            assert "\n" not in text_of(result)
            assert (result.meta or {})["tumorchain/error"]["code"] == "InputError"

    with_client(workbench, steps)


@pytest.mark.parametrize("kind", ["any", "pydantic"])
def test_a_crash_is_an_error_that_tells_the_client_nothing_but_its_tool(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        if kind == "pydantic":
            TypeAdapter(int).validate_python("patient Doe, /data/doe.nii.gz")
        raise RuntimeError("patient Doe, /data/doe.nii.gz")

    monkeypatch.setattr(workbench, "open_scan", crash)

    async def steps(client: Client) -> None:
        result = await client.call_tool("open_scan", {"path": "ct.nii.gz"})
        assert result.is_error
        assert text_of(result) == "Error executing tool open_scan"

    with_client(workbench, steps)


def test_a_client_that_gives_up_stops_the_segmentation_and_may_ask_again(
    settings: Settings, files: Files
) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def endless(job: Job) -> None:
        begun.set()
        while not stopped.is_set():
            try:
                job.check("segmentation")
            except Cancelled:
                stopped.set()
                raise

    async def steps(client: Client) -> None:
        scan = await call(client, "open_scan", path=str(files.scan))
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "segment_organs", {"scan_id": scan["scan_id"]})
            await anyio.to_thread.run_sync(begun.wait, 60)
            group.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(stopped.wait, 60)
        found = await call(client, "segment_organs", scan_id=scan["scan_id"])
        assert not found["info"]["from_cache"]
        assert [mask["organ"] for mask in found["masks"]] == list(PRESENT)

    with Workbench(settings, ScriptedSegmenter(settings, files.masks, endless)) as bench:
        with_client(bench, steps)


def test_results_hold_no_bulk_data_and_no_file_names_but_the_scans_own(
    workbench: Workbench, files: Files
) -> None:
    async def steps(client: Client) -> None:
        scan_id, _ = await open_segmented(client, files)
        found = [
            await call(client, "encode_scan", scan_id=scan_id),
            await call(client, "extract_roi_tokens", scan_id=scan_id, organ="liver"),
            await call(client, "view_organ", scan_id=scan_id, organ="liver"),
            await call(client, "segment_organs", scan_id=scan_id, masks=str(files.masks)),
        ]
        for content in found:
            text = json.dumps(content)
            assert len(text) < 8000
            assert str(Path(files.scan).parent) not in text

    with_client(workbench, steps)


def test_scans_that_were_segmented_otherwise_are_compared_with_a_warning_and_by_choice_alike(
    workbench: Workbench, files: Files
) -> None:
    async def steps(client: Client) -> None:
        scan_id, given = await open_segmented(client, files)
        own = (await call(client, "segment_organs", scan_id=scan_id))["segmentation_id"]
        pair = {"earlier_scan_id": scan_id, "later_scan_id": scan_id, "organs": ["liver"]}
        for earlier, later, alike in ((given, own, False), (given, given, True)):
            ids = {"earlier_segmentation_id": earlier, "later_segmentation_id": later}
            found = await call(client, "compare_scans", **pair, **ids)
            codes = [notice["code"] for notice in found["notices"]]
            assert ("segmentation_differs" in codes) is not alike
            assert found["changes"][0]["beyond_method_error"] is (False if alike else None)

    with_client(workbench, steps)
