"""What runs inside the server's process: vLLM's own entry point, which ends with the process that started it."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

MODULE = "vllm.entrypoints.openai.api_server"
GRACE_S = 5.0


def main() -> None:
    """``sys.argv`` is vLLM's; stdin is a pipe that the parent holds open for as long as it lives."""
    held = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    threading.Thread(target=_end_with_parent, args=(held,), daemon=True).start()
    sys.argv[0] = MODULE
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _end_with_parent(held: int) -> None:
    """The pipe closes however the parent ended, kill -9 included: then the whole process group ends."""
    while os.read(held, 1):
        continue
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(os.getpgrp(), signal.SIGKILL)
