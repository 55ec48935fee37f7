"""What the benchmarks of serving share: nano behind vLLM, phantoms as files, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import JSON_VARIABLE, machine

from tumorchain_agent.model.checkpoint import NANO_DIR, read_info
from tumorchain_agent.model.vllm_server import Served, VLLMServer, find_build, free_port
from tumorchain_agent.settings import Settings
from tumorchain_agent.training.phantom.export import save_nifti
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.phantom.volume import generate_nano

START_S = 600.0


@dataclass(frozen=True)
class Scan:
    """A phantom on nano's grid, as files."""

    scan: str
    masks: str


def scans(folder: Path, count: int, seed: int) -> list[Scan]:
    """``count`` phantoms with a tumor."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(seed, seed + count):
        case = generate_nano(number, tumor_share=1.0)
        scan, masks = folder / f"{number}.nii.gz", folder / f"{number}_masks.nii.gz"
        save_nifti(to_stored(case.hu), case.grid.affine, scan)
        save_nifti(case.labels, case.grid.affine, masks)
        found.append(Scan(str(scan), str(masks)))
    return found


@contextmanager
def vllm(folder: Path, url: str | None = None) -> Iterator[str]:
    """The address of nano behind vLLM: one that runs already, or one that ends with the block."""
    if url is not None:
        yield url
        return
    port = free_port("127.0.0.1", 0)
    served = Served(NANO_DIR, read_info(NANO_DIR), find_build(), folder / "vllm.log", port=port)
    with VLLMServer(served) as server:
        print("starting vLLM …", file=sys.stderr, flush=True)
        server.wait_ready(lambda phase: None, START_S)
        yield served.url


def client(url: str, cache: Path) -> Settings:
    """Settings of a client with a cache folder of its own."""
    return Settings(cache_dir=cache, llm_url=url)


def parser(about: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--llm-url", help="nano behind a vLLM that runs already (default: start one)")
    usual = os.environ.get(JSON_VARIABLE)
    made.add_argument(
        "--json", type=Path, default=usual, metavar="FILE", help="write the result as JSON, too"
    )
    made.add_argument("--seed", type=int, default=7_600_000, help="of the first phantom")
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def finish(result: dict[str, Any], text: str, reached: bool, wanted: str, file: Path | None) -> int:
    """Print the table with the machine and the target, write the JSON; the exit code."""
    print(f"{machine()}\n\n{text}\n\nwanted: {wanted}; {'reached' if reached else 'missed'}")
    if file is not None:
        file.write_text(json.dumps({"machine": machine(), "reached": reached, **result}, indent=1) + "\n")
    return 0 if reached else 1
