"""Broken JSON-RPC messages for a real server over stdio.

    python benchmarks/fuzz_mcp.py --messages 20000

Real messages of a session are mutated: types, keys, sizes, paths, encodings, truncation, noise. Between them a
good message must be answered within 5 s, after a first good call has loaded what is loaded once. Counted as a
failure: the server ends, doesn't answer in time, grows over 2 GB, says something that is no JSON-RPC, or meets an
exception that nobody foresaw (it stands in the log). The seed is printed; the same seed gives the same messages.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import queue
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import torso, torso_grid

ANSWER_S = 5.0
MAX_BYTES = 2 << 30
UNFORESEEN = re.compile(
    r"failedunexpectedly|Unexpected(?:Tool|Resource)Error|Traceback\(mostrecentcalllast\)"
)
BATCH = 40
INFO = {"name": "fuzz", "version": "0"}
INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": INFO}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": INFO,
    "io.modelcontextprotocol/clientCapabilities": {},
}
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1e308, 1e-308, 0.1, "", " ", "\0", "..", "../../etc/passwd",
    "/dev/zero", "/proc/self/mem", "file:///etc/passwd", "\\\\host\\share", "ct.nii.gz", "liver", "💥" * 50, "\ud800",
    "a" * 10_000, "%s%n", "{scan_id}", "' or 1=1 --", [], {}, [[]], {"": ""}, [None],
    ["liver"] * 2000, {"a": {"b": []}},
)  # fmt: skip
FORESEEN = ("Error executing tool", "Unknown tool", "Input validation error")


@dataclass
class Outcome:
    """What a run has seen."""

    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    largest_bytes: int = 0


def seeds(scan: str) -> list[dict[str, Any]]:
    """Messages of real sessions, old and new; the scan's id is what the server gave."""
    ids = {"scan_id": scan, "wait_seconds": 0}
    paths = {"path": "ct.nii.gz", "wait_seconds": 0}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("open_scan", paths),
        ("list_organs", {"scan_id": scan}),
        ("segment_organs", {**ids, "masks": "masks.nii.gz", "organs": ["liver"]}),
        ("measure_organs", {**ids, "organs": ["liver", "spleen"]}),
        ("measure_lesions", {**ids, "mask": "masks.nii.gz"}),
        ("measure_contact", {**ids, "a": "lesion", "b": "aorta", "mask": "masks.nii.gz"}),
        (
            "compare_scans",
            {"earlier_scan_id": scan, "later_scan_id": scan, "organs": ["liver"], "wait_seconds": 0},
        ),
        ("encode_scan", ids),
        ("extract_roi_tokens", {**ids, "organ": "liver", "zoom": False}),
        ("classify_abnormality", {**ids, "organs": ["liver"]}),
        ("view_organ", {**ids, "organ": "liver", "planes": ["axial"]}),
        ("ask", {**paths, "question": "TNM?", "evidence": "text", "max_rounds": 1}),
        ("explain", {"answer_id": "0" * 32, "claim": 1}),
        ("get_job", {"job_id": "0" * 32, "wait_seconds": 0}),
        ("list_jobs", {}),
        ("cancel_job", {"job_id": "0" * 32}),
    ]
    found = [_message("tools/call", {"name": name, "arguments": given}) for name, given in calls]
    found += [
        _message("initialize", INITIALIZE),
        _message("tools/list", {}),
        _message("resources/templates/list", {}),
        _message("resources/read", {"uri": f"scan://{scan}"}),
        _message("resources/read", {"uri": f"measurement://{scan}/x/liver"}),
        _message("prompts/list", {}),
        _message("prompts/get", {"name": "tnm_staging", "arguments": {"path": "x", "organ": "liver"}}),
        _message("completion/complete", {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {}}),
        _message("logging/setLevel", {"level": "debug"}),
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7, "reason": "x"}},
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 1, "progress": 1}},
        {"jsonrpc": "2.0", "id": 3, "result": {}},
        {"jsonrpc": "2.0", "id": 3, "error": {"code": -1, "message": "x"}},
    ]
    modern = [json.loads(json.dumps(message)) for message in found if "id" in message and "params" in message]
    for message in modern:
        message["params"]["_meta"] = dict(MODERN)
    return found + modern


def _message(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def mutated(message: dict[str, Any], rng: random.Random) -> bytes:
    """One to four changes of the value, then perhaps of its bytes."""
    value: Any = json.loads(json.dumps(message))
    for _ in range(rng.randint(1, 4)):
        if isinstance(value, dict) and "params" in value and rng.random() < 0.8:
            value["params"] = _changed(value["params"], rng)
        else:
            value = _changed(value, rng)
    if rng.random() < 0.03:
        value = [value, message]
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        text = _damaged(text, rng)
    return text.replace(b"\n", b" ")


def _changed(value: Any, rng: random.Random) -> Any:
    """Somewhere in the value, something else."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.random():
            case chance if chance < 0.1:
                del value[key]
            case chance if chance < 0.2:
                value[rng.choice([key + "x", "", "_meta", "name", "uri", "\0"])] = copy.deepcopy(
                    rng.choice(STRANGE)
                )
            case _:
                value[key] = _changed(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        value[place] = _changed(value[place], rng)
        return value
    if isinstance(value, str) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(["", "/", "..", "\0", "é", "{", "%00", value]) + value[place:]
    if rng.random() < 0.03:
        nested: Any = value
        for _ in range(rng.choice([50, 500, 3000])):
            nested = [nested]
        return _shallow(nested)
    return copy.deepcopy(rng.choice(STRANGE))


def _shallow(nested: Any) -> Any:
    """As deep as this process can write it."""
    try:
        json.dumps(nested)
    except RecursionError:
        return []
    return nested


def _damaged(text: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(text))
    match rng.randrange(5):
        case 0:
            return text[:place]
        case 1:
            return text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]
        case 2:
            return rng.randbytes(rng.randrange(1, 400)).replace(b"\n", b"")
        case 3:
            return text.replace(b'"id": ', b'"id": 1' + b"0" * rng.randrange(5000))
        case _:
            return text + text


class Server:
    """The command as clients run it."""

    def __init__(self, folder: Path) -> None:
        environment = {
            **os.environ,
            "TUMORCHAIN_CACHE_DIR": str(folder / "cache"),
            "TUMORCHAIN_SEGMENTATION": "nano",
            "OMP_NUM_THREADS": "1",
        }
        self.log = (folder / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tumorchain_agent.cli", "mcp", "--root", str(folder / "scans")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def send(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def ask(self, number: str, method: str, params: dict[str, Any], wait_s: float) -> tuple[Any, list[bytes]]:
        """The answer to a good message, ``None`` when it doesn't come; and what else was said meanwhile."""
        self.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode())
        end = time.monotonic() + wait_s
        others: list[bytes] = []
        while (left := end - time.monotonic()) > 0:
            try:
                line = self.lines.get(timeout=left)
            except queue.Empty:
                break
            if number.encode() in line:
                return json.loads(line), others
            others.append(line)
        return None, others

    def memory(self) -> int:
        process = psutil.Process(self.process.pid)
        return int(process.memory_info().rss)

    def said(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text(encoding="utf-8", errors="replace")


def fuzz(messages: int, seed: int, folder: Path) -> Outcome:
    """Send so many broken messages; the end of the server, or many failures, ends the run."""
    rng, outcome = random.Random(seed), Outcome()
    _write_scans(folder / "scans")
    server = Server(folder)
    try:
        server.ask("first", "initialize", INITIALIZE, 60)
        server.send(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}')
        call = {"name": "open_scan", "arguments": {"path": "ct.nii.gz", "wait_seconds": 60}}
        opened, _ = server.ask("open", "tools/call", call, 90)
        scan = opened["result"]["structuredContent"]["scan_id"]
        warm = {"name": "classify_abnormality", "arguments": {"scan_id": scan, "wait_seconds": 300}}
        server.ask("warm", "tools/call", warm, 300)
        pool = seeds(scan)
        while outcome.sent < messages and not _broken(server, outcome):
            for _ in range(min(BATCH, messages - outcome.sent)):
                message = rng.choice(pool)
                server.send(mutated({**message, "id": outcome.sent} if "id" in message else message, rng))
                outcome.sent += 1
            _check(server, outcome)
    except BrokenPipeError:
        outcome.failures.append(f"the server ended after {outcome.sent} messages: {server.said()[-2000:]}")
    finally:
        server.process.terminate()
        server.process.wait(60)
    outcome.failures += unforeseen(server.said())
    return outcome


def unforeseen(log: str) -> list[str]:
    """Where a log tells of an exception that nobody foresaw; its lines are broken anywhere, also within words."""
    text = "".join(log.split())
    return [text[max(found.start() - 200, 0) : found.end() + 300] for found in UNFORESEEN.finditer(text)]


def _broken(server: Server, outcome: Outcome) -> bool:
    if server.process.poll() is not None:
        outcome.failures.append(f"the server ended after {outcome.sent} messages: {server.said()[-2000:]}")
    return server.process.poll() is not None or len(outcome.failures) > 20


def _check(server: Server, outcome: Outcome) -> None:
    started = time.monotonic()
    answer, others = server.ask(f"good-{outcome.sent}", "ping", {}, ANSWER_S)
    outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - started)
    if answer is None and server.process.poll() is None:
        outcome.failures.append(f"no answer within {ANSWER_S:g} s after {outcome.sent} messages")
    outcome.largest_bytes = max(outcome.largest_bytes, server.memory())
    if outcome.largest_bytes > MAX_BYTES:
        outcome.failures.append(f"{outcome.largest_bytes / 1e9:.1f} GB after {outcome.sent} messages")
    for line in others:
        kind = kind_of(line)
        outcome.kinds[kind] += 1
        if kind.startswith("not "):
            outcome.failures.append(f"{kind}: {line[:200]!r}")


def kind_of(line: bytes) -> str:
    """What the server answered; ``not …`` for what it must not."""
    try:
        answer = json.loads(line)
    except ValueError:
        return "not JSON"
    if answer.get("jsonrpc") != "2.0":
        return "not JSON-RPC"
    if "method" in answer:
        return "notification"
    if "error" in answer:
        code = answer["error"].get("code")
        return f"error {code}" if isinstance(code, int) else "not a typed error"
    result = answer.get("result")
    if not isinstance(result, dict):
        return "not a result"
    if not result.get("isError"):
        return "result"
    text = result["content"][0]["text"] if result.get("content") else ""
    typed = "tumorchain/error" in (result.get("_meta") or {})
    return "tool error" if typed or text.startswith(FORESEEN) else "not a typed tool error"


def _write_scans(folder: Path) -> None:
    folder.mkdir(parents=True)
    affine, shape = torso_grid(8.0, 8.0, 12.0)
    hu, labels = torso(affine, shape)
    for name, values, kind in (("ct.nii.gz", hu, np.int16), ("masks.nii.gz", labels, np.uint8)):
        make: Any = nibabel.Nifti1Image
        image = make(values.astype(kind), affine, dtype=kind)
        (folder / name).write_bytes(gzip.compress(image.to_bytes(), 1))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tumorchain-fuzz-") as folder:
        started = time.monotonic()
        found = fuzz(args.messages, args.seed, Path(folder))
    print(f"seed {args.seed}: {found.sent} messages in {time.monotonic() - started:.0f} s")
    print(f"slowest good answer {found.slowest_s:.2f} s, largest {found.largest_bytes / 1e6:.0f} MB")
    for kind, count in found.kinds.most_common():
        print(f"{count:8} {kind}")
    for failure in found.failures[:20]:
        print(f"FAILURE {failure}")
    return 1 if found.failures or found.sent < args.messages else 0


if __name__ == "__main__":
    sys.exit(main())
