"""Bad input: exit code 2, one line with the remedy, no traceback, nothing half-written. One table."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import WriteNifti, torso, torso_grid
from tumorchain_agent.cli import main
from tumorchain_agent.model.checkpoint import NANO_DIR
from tumorchain_agent.tools.scan import open_ct

AFFINE, SHAPE = torso_grid(12.0)
HU, LABELS = torso(AFFINE, SHAPE)
WEIGHTS = ("model.safetensors", "vision/model.safetensors")


@dataclass
class Desk:
    """Where a case puts its files; the defaults are all good."""

    folder: Path
    nifti: WriteNifti
    scan: str = ""
    question: str = "Is there a tumor?"
    options: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scan = str(self.nifti(HU, AFFINE, "good.nii.gz"))

    def store(self, values: Any, affine: Any = AFFINE, dtype: Any = np.int16) -> Path:
        path = self.nifti(values, affine, "bad.nii.gz", dtype)
        self.scan = str(path)
        return path

    def masks(self, values: Any, affine: Any = AFFINE) -> None:
        self.options += ["--masks", str(self.nifti(values, affine, "labels.nii.gz", np.uint8))]

    def patch_header(self, *patches: tuple[int, str, tuple[float, ...]]) -> None:
        """An uncompressed NIfTI whose header is changed at byte offsets."""
        content = bytearray(self.nifti(HU, AFFINE, "bad.nii").read_bytes())
        for offset, layout, values in patches:
            struct.pack_into(layout, content, offset, *values)
        (self.folder / "bad.nii").write_bytes(content)
        self.scan = str(self.folder / "bad.nii")


def missing_file(desk: Desk) -> None:
    desk.scan = str(desk.folder / "god.nii.gz")


def not_nifti(desk: Desk) -> None:
    (desk.folder / "bad.nii.gz").write_bytes(gzip.compress(b"a letter to a colleague" * 40))
    desk.scan = str(desk.folder / "bad.nii.gz")


def not_a_ct_file(desk: Desk) -> None:
    (desk.folder / "notes.txt").write_text("a letter to a colleague")
    desk.scan = str(desk.folder / "notes.txt")


def truncated_gzip(desk: Desk) -> None:
    path = desk.store(HU)
    path.write_bytes(path.read_bytes()[:-2000])


def empty_file(desk: Desk) -> None:
    desk.store(HU).write_bytes(b"")


def two_dimensional(desk: Desk) -> None:
    desk.store(HU[:, :, 5])


def four_dimensional(desk: Desk) -> None:
    desk.store(np.stack([HU] * 3, axis=-1))


def volume_out_of_range(desk: Desk) -> None:
    four_dimensional(desk)
    desk.options += ["--volume", "3"]


def not_a_number(desk: Desk) -> None:
    values = HU.copy()
    values[3, 3, 3] = np.nan
    desk.store(values, dtype=np.float32)


def infinite(desk: Desk) -> None:
    values = HU.copy()
    values[3, 3, 3] = np.inf
    desk.store(values, dtype=np.float32)


def zero_spacing(desk: Desk) -> None:
    desk.patch_header((80, "<3f", (12.0, 12.0, 0.0)), (312, "<4f", (0.0, 0.0, 0.0, 0.0)))


def singular_affine(desk: Desk) -> None:
    desk.patch_header((280, "<4f", (12.0, 12.0, 0.0, 0.0)), (296, "<4f", (0.0, 0.0, 0.0, 0.0)))


def header_of_30000_cubed(desk: Desk) -> None:
    desk.patch_header((40, "<4h", (3, 30000, 30000, 30000)))


def all_air(desk: Desk) -> None:
    desk.store(np.random.default_rng(0).normal(-1000, 5, SHAPE))


def masks_missing(desk: Desk) -> None:
    desk.options += ["--masks", str(desk.folder / "labels.nii.gz")]


def masks_of_another_shape(desk: Desk) -> None:
    desk.masks(LABELS[:-1])


def masks_elsewhere(desk: Desk) -> None:
    desk.masks(LABELS, AFFINE + np.outer([0, 0, 1, 0], [0, 0, 0, 60.0]))


def masks_with_unknown_ids(desk: Desk) -> None:
    desk.masks(np.where(LABELS == 5, 200, LABELS))


def empty_question(desk: Desk) -> None:
    desk.question = " \n"


def question_of_100_kb(desk: Desk) -> None:
    desk.question = "Is there a tumor? " * 6000


def out_below_a_file(desk: Desk) -> None:
    (desk.folder / "file").write_text("x")
    desk.options += ["--out", str(desk.folder / "file" / "report")]


def out_is_a_file(desk: Desk) -> None:
    (desk.folder / "file").write_text("x")
    desk.options += ["--out", str(desk.folder / "file")]


def out_holds_something_else(desk: Desk) -> None:
    (desk.folder / "photos").mkdir()
    (desk.folder / "photos" / "cat.png").write_text("meow")
    desk.options += ["--out", str(desk.folder / "photos")]


def checkpoint_missing(desk: Desk) -> None:
    desk.options += ["--model", str(desk.folder / "no-such-model")]


def write_checkpoint(folder: Path, **changes: Any) -> None:
    """The files of a checkpoint that is looked at but never loaded."""
    from tumorchain_agent.model.checkpoint import CheckpointInfo, WeightsFile, _checkpoint_id
    from tumorchain_agent.tools.organs import organ_table_hash

    weights = {name: WeightsFile(sha256="0" * 64, bytes=3) for name in WEIGHTS}
    values = {"organ_table_hash": organ_table_hash(), "weights": weights, "size": "nano", "hidden_size": 8}
    values |= {"checkpoint_id": _checkpoint_id(weights), "preprocessing": {}, "alpha": 1.0, "provenance": {}}
    (folder / "vision").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vision/config.json"):
        (folder / name).write_text("{}")
    for name in WEIGHTS:
        (folder / name).write_bytes(b"abc")
    info = CheckpointInfo.model_validate(values | changes)
    (folder / "tumorchain.json").write_text(info.model_dump_json())


def checkpoint_of_another_organ_table(desk: Desk) -> None:
    write_checkpoint(desk.folder / "model", organ_table_hash="1" * 64)
    desk.options += ["--model", str(desk.folder / "model")]


def checkpoint_cut_short(desk: Desk) -> None:
    write_checkpoint(desk.folder / "model")
    (desk.folder / "model" / WEIGHTS[1]).write_bytes(b"a")
    desk.options += ["--model", str(desk.folder / "model")]


def checkpoint_of_a_later_version(desk: Desk) -> None:
    write_checkpoint(desk.folder / "model", format_version=99)
    desk.options += ["--model", str(desk.folder / "model")]


def llm_name_without_address(desk: Desk) -> None:
    desk.options += ["--llm-model", "qwen"]


def llm_of_nobody(desk: Desk) -> None:
    desk.options += ["--llm-url", "http://127.0.0.1:9", "--evidence", "text"]


def llm_at_no_address(desk: Desk) -> None:
    desk.options += ["--llm-url", "http://[::1/v1", "--evidence", "text"]


def unknown_flag(desk: Desk) -> None:
    desk.options += ["--mask", "labels.nii.gz"]


def zero_rounds(desk: Desk) -> None:
    desk.options += ["--max-rounds", "0"]


def images_for_a_checkpoint(desk: Desk) -> None:
    desk.options += ["--evidence", "images"]


def zoom_of_a_checkpoint_without(desk: Desk) -> None:
    folder = Path(shutil.copytree(NANO_DIR, desk.folder / "plain"))
    info = json.loads((folder / "tumorchain.json").read_text())
    (folder / "tumorchain.json").write_text(json.dumps(info | {"zoom": None}))
    desk.options += ["--zoom", "--model", str(folder)]


def zoom_without_tokens(desk: Desk) -> None:
    desk.options += ["--zoom", "--evidence", "text"]


CASES: dict[Callable[[Desk], None], str] = {
    missing_file: "did you mean",
    not_nifti: "bad.nii.gz",
    not_a_ct_file: "pass .nii",
    truncated_gzip: "again",
    empty_file: "again",
    two_dimensional: "3-D",
    four_dimensional: "--volume",
    volume_out_of_range: "--volume",
    not_a_number: "NaN",
    infinite: "inf",
    zero_spacing: "spacing",
    singular_affine: "affine",
    header_of_30000_cubed: "voxels",
    all_air: "air",
    masks_missing: "labels.nii.gz",
    masks_of_another_shape: "grid",
    masks_elsewhere: "60",
    masks_with_unknown_ids: "200",
    empty_question: "the question is empty",
    question_of_100_kb: "shorten it",
    out_below_a_file: "name another folder",
    out_is_a_file: "name another folder",
    out_holds_something_else: "name a new or empty folder",
    checkpoint_missing: "no-such-model",
    checkpoint_of_another_organ_table: "another organ table",
    checkpoint_cut_short: "copy the folder again",
    checkpoint_of_a_later_version: "version",
    llm_name_without_address: "--llm-url",
    llm_of_nobody: "check that the server runs, and has started, and --llm-url is right",
    llm_at_no_address: "use e.g. http://localhost:8000/v1",
    unknown_flag: "--mask",
    zero_rounds: "--max-rounds",
    images_for_a_checkpoint: "--llm-url",
    zoom_of_a_checkpoint_without: "was not trained with ROI zoom",
    zoom_without_tokens: "leave it out, or take --evidence tokens",
}
"""What a case does, and a part of the line that it must give."""


@pytest.fixture
def desk(tmp_path: Path, write_nifti: WriteNifti, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, write_nifti)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_refused_in_one_line(
    case: Callable[[Desk], None], desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    case(desk)
    if "--out" not in desk.options:
        desk.options += ["--out", "report"]
    before = snapshot(desk.folder)
    code = main(["ask", desk.scan, desk.question, *desk.options])
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert CASES[case] in lines[0]
    assert len(lines[0]) < 500
    assert "Traceback" not in captured.err + captured.out
    assert snapshot(desk.folder) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the cache's, with its content."""
    found = (p for p in folder.rglob("*") if p.is_file() and "cache" not in p.relative_to(folder).parts)
    return {str(path): path.read_bytes() for path in found}


def test_header_of_30000_cubed_is_refused_before_anything_is_allocated(desk: Desk) -> None:
    import resource

    header_of_30000_cubed(desk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(["ask", desk.scan, desk.question, "--out", "report"]) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def test_intensities_like_mr_are_a_warning_and_no_error(desk: Desk) -> None:
    path = desk.store(np.clip((HU + 1000) / 3, 0, 800))
    assert [notice.code for notice in open_ct(path).info.notices] == ["looks_like_mr"]
