"""Every benchmark of this folder, one after the other: ``python benchmarks [--out FILE.json] [NAME …]``.

A benchmark is a module that ends in ``raise SystemExit(main(…))``. Each runs in a process of its own: none finds
memory or threads as another left them. What those print that know :mod:`bench` is also written as one JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import JSON_VARIABLE, SKIPPED, machine

HERE = Path(__file__).parent
RUNS = "raise SystemExit(main("


def names() -> list[str]:
    """The benchmarks, by their files' names."""
    files = sorted(HERE.glob("*.py"))
    return [
        file.stem for file in files if file.stem != "__main__" and RUNS in file.read_text(encoding="utf-8")
    ]


def run(name: str, folder: Path) -> dict[str, Any]:
    """One benchmark: its exit code, seconds and, if it gave any, tables."""
    print(f"\n## {name}\n", flush=True)
    result = folder / f"{name}.json"
    started = time.monotonic()
    environment = {**os.environ, JSON_VARIABLE: str(result)}
    code = subprocess.call([sys.executable, str(HERE / f"{name}.py")], env=environment, cwd=HERE.parent)
    found = json.loads(result.read_text()) if result.exists() else {}
    return {"exit_code": code, "seconds": round(time.monotonic() - started, 1), **found}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(names())}")
    if not args.out.resolve().parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.resolve().parent}")
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    print(f"# Benchmarks, {written}\n\n{machine()}", flush=True)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names or names():
            results[name] = run(name, Path(folder))
            report = {"written": written, "machine": machine(), "benchmarks": results}
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{args.out} written; {verdict(results)}")
    return 1 if any(result["exit_code"] for result in results.values()) else 0


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """What was missed, and what could not be measured here, which is not the same as met."""
    missed = [name for name, result in results.items() if result["exit_code"]]
    rows = [row for result in results.values() for table in result.get("tables", ()) for row in table["rows"]]
    skipped = [f"{row['what']} ({row['figure']})" for row in rows if row["figure"].startswith(SKIPPED)]
    found = [f"missed a target or failed: {', '.join(missed)}"] if missed else []
    found += [f"not measured here: {'; '.join(skipped)}"] if skipped else []
    return "; ".join(found) or "all targets met"


if __name__ == "__main__":
    raise SystemExit(main())
