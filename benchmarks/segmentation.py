"""Second and later scans through our ``segment_organs``, TotalSegmentator's own MCP server and its Python API.

The same scans (3 mm), the same weights (nano's, fast mode), the CPU; each in the environment that its users would have.
``TUMORCHAIN_PEER_VENV`` names the peers': ``python -m venv PEER && PEER/bin/pip install totalsegmentator[mcp]``.
Ours is opened and segmented over stdio, theirs called with ``statistics=False``, the API with ``ml=True`` in a process
that stays. Each takes its turn with every scan; the first scan is not counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import anyio
import nibabel as nib
import numpy as np
from bench import Pairs, Row, Table, main, skipped
from mcp import Client, StdioServerParameters

from tumorchain_agent.tools.segment_weights import NANO_WEIGHTS
from tumorchain_agent.training.phantom.export import write_cohort

VARIABLE = "TUMORCHAIN_PEER_VENV"
SCANS, SEED, SPACING_MM = 7, 7_700_000, (3.0, 3.0, 3.0)
TITLE = "Segmentation of a 3 mm scan, second and later"
API = """
import sys, time
from totalsegmentator.python_api import totalsegmentator
for line in sys.stdin:
    scan, out = line.rstrip("\\n").split("\\t")
    start = time.perf_counter()
    totalsegmentator(scan, out, ml=True, fast=True, device="cpu", quiet=True)
    print("seconds", time.perf_counter() - start, flush=True)
"""


def environment(folder: Path, peer: Path) -> dict[str, str]:
    """Of all three: the same weights, a home of their own, the peers' programs on their PATH."""
    return {
        **os.environ,
        "PATH": f"{peer / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TOTALSEG_WEIGHTS_PATH": str(NANO_WEIGHTS),
        "TOTALSEG_HOME_DIR": str(folder / "home"),
        "TUMORCHAIN_CACHE_DIR": str(folder / "cache"),
        "TUMORCHAIN_SEGMENTATION": "nano",
        "TUMORCHAIN_ROOTS": str(folder),
        "TUMORCHAIN_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
    }


def stdio(command: Path | str, arguments: Sequence[str], env: dict[str, str]) -> Client:
    return Client(StdioServerParameters(command=str(command), args=list(arguments), env=env))


async def called(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise SystemExit(f"{tool}: {getattr(result.content[0], 'text', '?')[:2000]}")
    return result.structured_content or {}


async def ours(client: Client, scan: Path) -> float:
    start = anyio.current_time()
    opened = await called(client, "open_scan", path=str(scan), wait_seconds=600)
    found = await called(client, "segment_organs", scan_id=opened["scan_id"], wait_seconds=600)
    seconds = anyio.current_time() - start
    if found.get("status") == "running" or not found["info"]["organs_present"]:
        raise SystemExit(f"{scan} was not segmented: {str(found)[:500]}")
    return seconds


async def theirs(client: Client, scan: Path, out: Path) -> float:
    start = anyio.current_time()
    await called(
        client,
        "run_segmentation",
        input_path=str(scan),
        output_path=str(out),
        task="total",
        device="cpu",
        speed="fast",
        statistics=False,
    )
    seconds = anyio.current_time() - start
    if not _volume(out / "liver.nii.gz"):
        raise SystemExit(f"the MCP server of TotalSegmentator found no liver in {scan}")
    return seconds


def by_api(process: subprocess.Popen[str], scan: Path, out: Path) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{scan}\t{out}\n")
    process.stdin.flush()
    seconds = _reported(process.stdout)
    if not _volume(out):
        raise SystemExit(f"TotalSegmentator's Python API found nothing in {scan}")
    return seconds


def _reported(lines: IO[str]) -> float:
    for line in lines:
        if line.startswith("seconds "):
            return float(line.split()[1])
    raise SystemExit("TotalSegmentator's Python API ended early; its error stands above")


def _volume(mask: Path) -> int:
    return int(np.count_nonzero(np.asanyarray(nib.load(mask).dataobj)))  # type: ignore[attr-defined]


async def measured(folder: Path, peer: Path, scans: Sequence[Path]) -> dict[str, list[float]]:
    """Way → seconds of each scan but the first."""
    env = environment(folder, peer)
    found: dict[str, list[float]] = {"ours": [], "mcp": [], "api": []}
    api = subprocess.Popen(
        [str(peer / "bin" / "python"), "-c", API],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        async with (
            stdio(sys.executable, ["-m", "tumorchain_agent.cli", "mcp"], env) as us,
            stdio(peer / "bin" / "totalseg_mcp", [], env) as them,
        ):
            for number, scan in enumerate(scans):
                name = scan.parent.name
                for way in ("ours", "mcp", "api") if number % 2 == 0 else ("api", "mcp", "ours"):
                    match way:
                        case "ours":
                            seconds = await ours(us, scan)
                        case "mcp":
                            seconds = await theirs(them, scan, folder / "mcp" / name)
                        case _:
                            out = folder / f"api-{name}.nii.gz"
                            seconds = await anyio.to_thread.run_sync(by_api, api, scan, out)
                    print(f"{name} {way} {seconds:.2f} s", file=sys.stderr, flush=True)
                    if number:
                        found[way].append(seconds)
    finally:
        assert api.stdin is not None
        api.stdin.close()
        api.wait(60)
    return found


def tables() -> Iterator[Table]:
    peer = Path(os.environ.get(VARIABLE, ""))
    if not os.environ.get(VARIABLE) or not (peer / "bin" / "totalseg_mcp").is_file():
        yield skipped(TITLE, f"{VARIABLE} names no environment with totalsegmentator[mcp]")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = folder / "cohort"
        list(write_cohort(cohort, SCANS, SEED, spacing=SPACING_MM, workers=1))
        scans = sorted(cohort.glob("*/ct.nii.gz"))
        found = anyio.run(measured, folder, peer.absolute(), scans)
    mcp, api = (Pairs(tuple(found["ours"]), tuple(found[way])) for way in ("mcp", "api"))
    rows: tuple[Row, ...] = (
        mcp.row("`segment_organs`", "TotalSegmentator's own MCP server, `run_segmentation`", 8.0),
        api.row("`segment_organs`", "TotalSegmentator's Python API, one process", 4.0),
    )
    yield Table(TITLE, rows)


if __name__ == "__main__":
    raise SystemExit(main(tables, __doc__))
