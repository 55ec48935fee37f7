"""The command line: its parser, exit codes, live view and output folder."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sample_answer import MEASUREMENTS, NOTICES, SCAN, png, sample_answer, sample_pictures
from tumorchain_agent import __version__, cli
from tumorchain_agent.cli import COMMANDS, build_parser, main
from tumorchain_agent.cli_view import View
from tumorchain_agent.errors import Cancelled, OutputError, TumorChainError
from tumorchain_agent.graph import events
from tumorchain_agent.material import Material, write_files
from tumorchain_agent.output import OutputFolder
from tumorchain_agent.records import DISCLAIMER, Answer

HEAVY = (
    "torch",
    "transformers",
    "totalsegmentator",
    "langgraph",
    "mcp",
    "scipy",
    "SimpleITK",
    "nibabel",
    "rich",
)


def run_python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


def test_help_is_there_in_under_a_second() -> None:
    command = [sys.executable, "-m", "tumorchain_agent.cli", "--help"]
    times = []
    for _ in range(5):  # another process may hold the machine for a moment
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.monotonic() - started)
        if times[-1] < 1.0:
            break
    assert min(times) < 1.0
    assert all(name in done.stdout for name in COMMANDS)
    assert DISCLAIMER in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "argv", [["--help"], ["ask", "--help"], ["data", "--help"], ["data", "split", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"import sys; from tumorchain_agent.cli import main; main({argv!r});"
    code += f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    done = run_python(code)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module_arguments_and_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(COMMANDS[name].module)
    assert callable(module.run)
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert DISCLAIMER in text
    sub = next(a for a in build_parser(name)._actions if isinstance(a, argparse._SubParsersAction))
    assert all(action.help for action in sub.choices[name]._actions), "every argument says what it is"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "required"),
        (["aks"], "invalid choice: 'aks'"),
        (["ask", "ct.nii.gz"], "QUESTION"),
        (["ask", "ct.nii.gz", "Tumor?", "--js"], "--js"),
        (["ask", "ct.nii.gz", "Tumor?", "--evidence", "sound"], "sound"),
        (["ask", "ct.nii.gz", "Tumor?", "--volume", "-1"], "--volume: '-1' is not a whole number from 0"),
        (
            ["ask", "ct.nii.gz", "Tumor?", "--max-rounds", "0"],
            "--max-rounds: '0' is not a whole number from 1",
        ),
        (["evaluate", "--quick", "--patients", "0"], "--patients: '0' is not a whole number from 1"),
        (["phantom", "out", "--n", "1.5"], "--n: '1.5' is not a whole number from 0"),
        (["data"], "WHAT"),
        (["data", "check", "a.jsonl"], "invalid choice: 'check'"),
        (["data", "validate", "a.jsonl", "--firs", "3"], "--firs"),
        (
            ["data", "split", "a.jsonl", "b.jsonl", "--test", "1"],
            "--test: '1' is not a number between 0 and 1",
        ),
        (["data", "convert", "m3d", "a.csv", "b.jsonl"], "invalid choice: 'm3d'"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    argv: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert "--help" in line


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tumorchain-agent {__version__}\n"


def with_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Put a command in place that raises ``error``."""

    def run(_: argparse.Namespace) -> int:
        raise error

    module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "import_module", lambda name: module)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OutputError("disk is full;\n free\x1b[31m space"), 2, "error: disk is full; free [31m space"),
        (TumorChainError("worker died; run again"), 1, "error: worker died; run again"),
        (Cancelled("cancelled; run again"), 130, "error: cancelled; run again"),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command goes on where this one stopped"),
    ],
)
def test_our_errors_become_one_line_and_their_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_command(monkeypatch, error)
    assert main(["ask"]) == code
    assert capsys.readouterr().err == f"{line}\n"


def test_a_bug_is_not_dressed_up_as_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with_command(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["ask"])


def test_termination_unwinds_the_stack_and_leaves_the_handler_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleaned_up = []

    def run(_: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([signal.SIGUSR1], 10)
        finally:
            cleaned_up.append(True)
        return 0

    module = SimpleNamespace(add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "import_module", lambda name: module)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["ask"]) == 143
    assert cleaned_up == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_explicit_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from tumorchain_agent.cli_ask import load_settings

    monkeypatch.setenv("TUMORCHAIN_MAX_ROUNDS", "3")
    monkeypatch.setenv("TUMORCHAIN_DEVICE", "cuda")
    settings = load_settings(max_rounds=5, device=None)
    assert (settings.max_rounds, settings.device) == (5, "cuda")


def test_wrong_environment_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUMORCHAIN_MAX_ROUNDS", "many")
    assert main(["ask", "ct.nii.gz", "Tumor?", "--out", "report"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: TUMORCHAIN_MAX_ROUNDS='many'")


def show(answer: Answer, stream: io.StringIO, report: str | None = "out/report.html") -> str:
    """Everything that ``ask`` prints of an answer."""
    with View(stream) as view:
        view.scan(SCAN)
        view.on_event(events.Progress(phase="segment", fraction=0.2, message="predicting"))
        for record in answer.rounds:
            for evidence in record.evidence:
                view.on_event(events.OrganExamined(evidence=evidence))
            organs = tuple(evidence.organ for evidence in record.evidence)
            view.on_event(events.RoundStarted(index=record.index, organs=organs, prompt=record.prompt))
            for word in record.text.split(" "):
                view.on_event(events.Token(round=record.index, text=f"{word} "))
                view.on_event(events.Progress(phase="segment", fraction=0.5))
            view.on_event(events.RoundFinished(round=record))
        view.on_event(events.NoticeRaised(notice=NOTICES[0]))
        view.on_event(events.Answered(answer=answer))
        view.answer(answer)
        view.end(report)
    return stream.getvalue()


def test_view_shows_rounds_organs_answer_stage_notices_report_and_disclaimer() -> None:
    text = show(sample_answer(), io.StringIO())
    wanted = [
        "example_ct.nii.gz: 122 × 101 × 112 voxels of 3.00 × 3.00 × 3.00 mm",
        "segmenting …",
        "Round 1: first look at the whole scan",
        "→ liver, pancreas, esophagus",
        "liver: abnormal (p = 0.83), 1125.7 ml, 54 HU, 48 tokens",
        "esophagus: not in the scan, not assessed",
        "Round 2: liver, pancreas, esophagus",
        "Round 3: spleen",
        "Answer",
        "  Impression\n",
        "TNM (liver): T1b N0 MX, stage not determined",
        "M was left open in the text.",
        "! This scan is outside the nano model's training distribution",
        "Report: out/report.html",
        DISCLAIMER,
    ]
    positions = [text.find(part) for part in wanted]
    assert -1 not in positions, text
    assert positions == sorted(positions)
    assert text.count(NOTICES[0].message) == 1, "a notice is shown once"
    assert "\x1b" not in text, "no escape codes where there is no terminal"


def test_streamed_text_arrives_whole_whatever_the_pieces() -> None:
    stream = io.StringIO()
    text = "Findings: " + "a lesion " * 40 + "\n\n- one\n- two " + "x" * 300
    with View(stream) as view:
        for start in range(0, len(text), 7):
            view.on_event(events.Token(round=1, text=text[start : start + 7]))
    shown = stream.getvalue()
    assert "".join(shown.split()) == "".join(text.split())
    assert "\n  - one\n  - two" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_text_of_a_model_can_not_steer_the_terminal() -> None:
    record = sample_answer().rounds[0].model_copy(update={"text": "\x1b]0;owned\x07 \x1b[2J \r safe"})
    text = show(sample_answer(rounds=(record,), conclusion="\x1b[31mred \x9b2J"), io.StringIO())
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(text)
    assert "safe" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_view_on_a_terminal_shows_the_same_and_leaves_it_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    text = show(sample_answer(), Terminal())
    assert "segmenting" in text
    assert "\x1b[1mTNM (liver): T1b N0 MX, stage not determined\x1b[0m" in text
    assert text.rstrip("\r").endswith("\x1b[?25h"), "the cursor is back"


def test_replayed_round_is_shown_whole_and_marked() -> None:
    stream = io.StringIO()
    with View(stream) as view:
        view.on_event(events.RoundFinished(round=sample_answer().rounds[1], replayed=True))
    assert "Round 2: liver, pancreas, esophagus (from an earlier run)" in stream.getvalue()
    assert "A hypodense lesion" in stream.getvalue()


def test_answer_folder_holds_answer_trace_report_masks_and_pictures(tmp_path: Path) -> None:
    answer = sample_answer()
    material = Material(MEASUREMENTS, sample_pictures(), {"label_map": b"a", "liver": b"b"})
    with OutputFolder.check(tmp_path / "new" / "report").writing() as folder:
        write_files(folder, answer, material)
    out = tmp_path / "new" / "report"
    assert sorted(entry.name for entry in out.iterdir()) == [
        "answer.json",
        "masks",
        "pictures",
        "report.html",
        "trace.jsonl",
    ]
    assert Answer.model_validate_json((out / "answer.json").read_text()) == answer
    records = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    liver = next(r for r in records if r["type"] == "measurement" and r["organ"] == "liver")
    assert (liver["volume_ml"], liver["mean_hu"]) == (1125.684, 54.2)
    usage = [r for r in records if r["type"] == "usage"]
    assert usage[1] | {"prompt_tokens": 447, "cached_tokens": 316, "completion_tokens": 61} == usage[1]
    assert (out / "masks" / "label_map.nii.gz").read_bytes() == b"a"
    assert (out / "pictures" / "liver_coronal.png").read_bytes() == png()
    assert [entry.name for entry in out.parent.iterdir()] == ["report"], "no temporary folder is left"


def write_answer(folder: Path, text: str) -> None:
    (folder / "answer.json").write_text(text)
    (folder / "masks").mkdir()
    (folder / "masks" / f"{text}.nii.gz").write_text(text)


def test_earlier_answer_is_replaced_and_files_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "report"
    for text in ("first", "second"):
        with OutputFolder.check(out).writing() as folder:
            write_answer(folder, text)
        (out / "my notes.txt").write_text("keep me")
    assert (out / "answer.json").read_text() == "second"
    assert [entry.name for entry in (out / "masks").iterdir()] == ["second.nii.gz"]
    assert sorted(entry.name for entry in out.iterdir()) == ["answer.json", "masks", "my notes.txt"]


def write_half(out: Path, error: BaseException) -> None:
    with OutputFolder.check(out).writing() as folder:
        write_answer(folder, "half")
        raise error


def test_failed_write_leaves_the_earlier_answer_and_no_trace_of_the_new(tmp_path: Path) -> None:
    out = tmp_path / "report"
    with OutputFolder.check(out).writing() as folder:
        write_answer(folder, "first")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises((OutputError, KeyboardInterrupt)):
            write_half(out, error)
    assert (out / "answer.json").read_text() == "first"
    assert sorted(entry.name for entry in out.iterdir()) == ["answer.json", "masks"]


def test_folder_of_a_run_that_was_killed_while_writing_can_be_used_again(tmp_path: Path) -> None:
    out = tmp_path / "report"
    (out / ".tumorchain-partial-report-1" / "old").mkdir(parents=True)
    with OutputFolder.check(out).writing() as folder:
        write_answer(folder, "whole")
    assert sorted(entry.name for entry in out.iterdir()) == ["answer.json", "masks"]
