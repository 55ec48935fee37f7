"""A share of the fuzzing that ``benchmarks/fuzz_mcp.py`` and ``fuzz_headers.py`` do at length."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT))
    __import__(name)
    return sys.modules[name]


@pytest.mark.slow
def test_broken_messages_neither_stop_nor_silence_the_server_nor_make_it_grow(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz = script("fuzz_mcp", monkeypatch)
    monkeypatch.setattr(fuzz, "ANSWER_S", 30.0)
    found = fuzz.fuzz(400, seed, tmp_path)
    assert found.failures == []
    assert found.sent == 400
    assert found.kinds["result"]
    assert found.kinds["tool error"]


@pytest.mark.slow
def test_broken_headers_are_read_or_refused_in_one_line_and_end_no_process(
    tmp_path: Path, seed: int, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz = script("fuzz_headers", monkeypatch)
    monkeypatch.setattr(fuzz, "READ_S", 30.0)
    scans = [real / "totalsegmentator" / name for name in ("example_ct.nii.gz", "example_ct_dicom")]
    found = fuzz.fuzz(400, seed, scans, tmp_path)
    assert found.failures == []
    assert found.tried >= 400
    assert found.kinds["refused"]
    assert found.kinds["read"]


def test_answers_that_are_no_typed_errors_are_told_from_those_that_are() -> None:
    with pytest.MonkeyPatch.context() as patch:
        fuzz = script("fuzz_mcp", patch)
        known = {
            b"nonsense": "not JSON",
            b'{"id": 1}': "not JSON-RPC",
            b'{"jsonrpc": "2.0", "id": 1, "error": {"code": -32602}}': "error -32602",
            b'{"jsonrpc": "2.0", "id": 1, "error": {"code": "x"}}': "not a typed error",
            b'{"jsonrpc": "2.0", "id": 1, "result": {}}': "result",
            b'{"jsonrpc": "2.0", "id": 1, "result": {"isError": true, "content": [{"text": "boom"}]}}': (
                "not a typed tool error"
            ),
        }
        assert {line: fuzz.kind_of(line) for line in known} == known


def test_an_exception_that_nobody_foresaw_is_found_in_a_log_that_breaks_words_and_a_refused_argument_is_none() -> (
    None
):
    with pytest.MonkeyPatch.context() as patch:
        fuzz = script("fuzz_mcp", patch)
        refused = "for open_scan\n  Unexpected keyword\n  argument [type=unexpected_keyword_\n argument]"
        crashed = "ERROR  Unexpected\n   ToolError: boom\n"
        assert fuzz.unforeseen(refused) == []
        assert len(fuzz.unforeseen(refused + crashed)) == 1
