"""Many clients of one HTTP server, cached calls mixed.

    python benchmarks/load_mcp.py --clients 50 --minutes 10

First one client alone, then all at once, each with a short pause between calls as an agent makes. Reported: errors,
the 99th percentile of a cached measure_organs as a multiple of the single client's median, and the server's
resident memory over time. ``--minutes 0.5`` is the short mode.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import psutil
from fuzz_mcp import _write_scans
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

TOKEN = "load-test-of-this-machine-only"
PAUSE_S = 1.0
ALONE = 30
WANTED_RATIO = 20.0
PROCESSES = 5
CONNECTING_S = 20.0


@dataclass
class Seen:
    """What the clients saw."""

    measure_s: list[float] = field(default_factory=list)
    calls: int = 0
    errors: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


async def one_client(
    url: str, until: float, seen: Seen, scan: str, pause_s: float, most: int, since: float = 0.0
) -> None:
    """Calls one after another; those begun before ``since``, while others still connect, aren't timed."""
    rng = random.Random(id(seen) + most)
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=120) as web,
        Client(streamable_http_client(url, http_client=web)) as client,
    ):
        for _ in range(most):
            if time.monotonic() > until:
                return
            tool, arguments = rng.choice(calls(scan))
            started = time.monotonic()
            result = await client.call_tool(tool, arguments)
            seen.calls += 1
            if tool == "measure_organs" and started >= since:
                seen.measure_s.append(time.monotonic() - started)
            if result.is_error or (result.structured_content or {}).get("status") == "running":
                seen.errors.append(f"{tool}: {result.content[0]}"[:200])
            await anyio.sleep(rng.uniform(0.5, 1.5) * pause_s)


def calls(scan: str) -> list[tuple[str, dict[str, Any]]]:
    ids = {"scan_id": scan, "wait_seconds": 60}
    return [
        ("measure_organs", {**ids, "organs": ["liver"]}),
        ("measure_organs", {**ids, "organs": ["spleen", "aorta"]}),
        ("open_scan", {"path": "ct.nii.gz", "wait_seconds": 60}),
        ("segment_organs", {**ids, "masks": "masks.nii.gz"}),
        ("view_organ", {**ids, "organ": "liver"}),
        ("list_organs", {"scan_id": scan}),
    ]


async def alone_and_open(url: str) -> tuple[Seen, str]:
    """One client by itself, once everything that is asked for lies in the cache; the scan's id."""
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=120) as web,
        Client(streamable_http_client(url, http_client=web)) as client,
    ):
        opened = await client.call_tool("open_scan", {"path": "ct.nii.gz", "wait_seconds": 60})
        scan = str((opened.structured_content or {})["scan_id"])
        for tool, arguments in calls(scan):
            if tool != "list_organs":
                await client.call_tool(tool, arguments | ({"masks": "masks.nii.gz"} if "seg" in tool else {}))
    alone = Seen()
    await one_client(url, time.monotonic() + 120, alone, scan, 0.0, ALONE)
    return alone, scan


def some_clients(url: str, since: float, until: float, clients: int, scan: str) -> Seen:
    """What so many clients of this process saw between then and then."""
    seen = Seen()

    async def run() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(clients):
                group.start_soon(one_client, url, until, seen, scan, PAUSE_S, 1 << 30, since)

    anyio.run(run)
    return seen


def all_at_once(url: str, server: psutil.Process, clients: int, minutes: float, scan: str) -> Seen:
    """In several processes: a client checks each result against its schema, and the others' clocks would count that."""
    together = Seen()
    shares = [clients // PROCESSES + (k < clients % PROCESSES) for k in range(PROCESSES)]
    since = time.monotonic() + CONNECTING_S
    until = since + 60 * minutes
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(some_clients, url, since, until, share, scan) for share in shares if share]
        while time.monotonic() < until:
            together.memory.append(server.memory_info().rss)
            time.sleep(max(0.5, 0.6 * minutes))
        for each in running:
            seen = each.result()
            together.measure_s += seen.measure_s
            together.calls += seen.calls
            together.errors += seen.errors
    return together


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tumorchain-load-") as name:
        folder = Path(name)
        _write_scans(folder / "scans")
        environment = {
            **os.environ,
            "TUMORCHAIN_CACHE_DIR": str(folder / "cache"),
            "TUMORCHAIN_MCP_TOKEN": TOKEN,
            "OMP_NUM_THREADS": "1",
        }
        command = [
            "-m",
            "tumorchain_agent.cli",
            "mcp",
            "--http",
            "--port",
            "0",
            "--root",
            str(folder / "scans"),
        ]
        server = subprocess.Popen(
            [sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert server.stderr is not None
        try:
            url = server.stderr.readline().split()[1]
            process = psutil.Process(server.pid)
            alone, scan = anyio.run(alone_and_open, url)
            together = all_at_once(url, process, args.clients, args.minutes, scan)
        finally:
            server.terminate()
            server.wait(60)
    return told(args.clients, alone, together)


def told(clients: int, alone: Seen, together: Seen) -> int:
    median = statistics.median(alone.measure_s)
    p99 = statistics.quantiles(together.measure_s, n=100)[98]
    quarter = max(len(together.memory) // 4, 1)
    early = statistics.mean(together.memory[quarter : 2 * quarter] or together.memory)
    late = statistics.mean(together.memory[-quarter:])
    print(f"one client: {alone.calls} calls, median of a cached measure {1000 * median:.1f} ms")
    print(f"{clients} clients: {together.calls} calls, {len(together.errors)} errors")
    print(f"p99 of a cached measure {1000 * p99:.1f} ms = {p99 / median:.1f} × (wanted ≤ {WANTED_RATIO:g})")
    print(f"memory {early / 1e6:.0f} MB in the second quarter, {late / 1e6:.0f} MB in the last")
    for error in sorted({*alone.errors, *together.errors})[:10]:
        print(f"ERROR {error}")
    failed = bool(alone.errors or together.errors) or p99 > WANTED_RATIO * median or late > 1.1 * early
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
