"""The official inspector's command line, an implementation of MCP that isn't Python's, goes the whole way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validate  # type: ignore[import-untyped]

from tumorchain_agent.records import DISCLAIMER, Answer

pytestmark = pytest.mark.slow

INSPECTOR = "@modelcontextprotocol/inspector@0.15.0"
"""The last that runs with Node.js 20, and one that speaks a 1.x protocol."""
SCAN, MASKS = "example_ct.nii.gz", "example_seg_fast_force_split.nii.gz"
LIVER_ML = 1125.68
"""Of the label map, measured by others."""


class Inspector:
    """``mcp-inspector --cli`` over stdio: a server of its own for every call, so all that it knows is on disk."""

    def __init__(self, command: Path, folder: Path, roots: Path) -> None:
        self._command = [str(command), "--cli", sys.executable, "-m", "tumorchain_agent.cli", "mcp"]
        self._environment = {
            **os.environ,
            "TUMORCHAIN_CACHE_DIR": str(folder / "cache"),
            "TUMORCHAIN_ROOTS": str(roots),
            "TUMORCHAIN_DEVICE": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, method: str, *more: str) -> dict[str, Any]:
        command = [*self._command, "--method", method, *more]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    def tool(self, name: str, schema: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        words = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in arguments.items()
        ]
        result = self(
            "tools/call", "--tool-name", name, *(part for each in words for part in ("--tool-arg", each))
        )
        assert not result.get("isError"), result
        assert DISCLAIMER in result["content"][0]["text"]
        content = result["structuredContent"]
        validate(content, schema)
        assert isinstance(content, dict)
        return content


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory, real: Path) -> Inspector:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm, which installs the inspector, is not here")
    folder = tmp_path_factory.mktemp("inspector")
    command = [
        npm,
        "install",
        "--prefix",
        str(folder),
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--fetch-retries=0",
        INSPECTOR,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not fetch the inspector within four minutes")
    if done.returncode:
        pytest.skip(f"npm could not install the inspector: {(done.stderr or '?').strip().splitlines()[-1]}")
    return Inspector(folder / "node_modules" / ".bin" / "mcp-inspector", folder, real / "totalsegmentator")


def test_the_inspector_lists_the_tools_and_goes_the_whole_way_and_every_output_fits_its_schema(
    inspector: Inspector,
) -> None:
    listed = inspector("tools/list")["tools"]
    schemas = {tool["name"]: tool["outputSchema"] for tool in listed}
    assert {"open_scan", "segment_organs", "measure_organs", "view_organ", "ask", "get_job"} <= set(schemas)
    assert all(tool["annotations"] and tool["title"] for tool in listed)

    def step(name: str, **arguments: Any) -> dict[str, Any]:
        return inspector.tool(name, schemas[name], wait_seconds=120, **arguments)

    scan = step("open_scan", path=SCAN)
    ids = {"scan_id": scan["scan_id"]}
    step("segment_organs", **ids, masks=MASKS)
    measured = step("measure_organs", **ids, organs=["liver"])
    assert measured["measurements"][0]["volume_ml"] == pytest.approx(LIVER_ML, abs=0.01)
    viewed = step("view_organ", **ids, organ="liver")
    read = inspector("resources/read", "--uri", viewed["pictures"][0]["uri"])
    assert read["contents"][0]["mimeType"] == "image/png"
    answer = step("ask", path=SCAN, question="Is there a tumor in the liver?", masks=MASKS)
    assert Answer.model_validate(answer).claims
