"""The module for DeepTumorVQA's own command, with the package stood in for by a base class of the same interface."""

from __future__ import annotations

import abc
import argparse
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.evaluation.dataset import numbered, patient, write, write_questions
from tests.training.evaluation.wording import questions_of
from tumorchain_agent.errors import InputError
from tumorchain_agent.training.deeptumorvqa import build_evaluator, image_id
from tumorchain_agent.training.evaluation.deeptumorvqa_metrics import aggregate

NUMERIC = ("organ volume measurement", "organ HU measurement", "organ HU ratio")
ARGS = argparse.Namespace(mode="vqa", input="3d_volume", format="mc")


class Base(abc.ABC):
    """Walks the questions, makes the prompts and saves the answers, as documented."""

    def __init__(self, model_id: str, device: str = "cuda", **kwargs: Any) -> None:
        self.model_id, self.device = model_id, device

    @abc.abstractmethod
    def generate(
        self, prompt: str, images: list[Any] | None = None, video_path: str | None = None
    ) -> str: ...

    def run(self, fmt: str, data_dir: Path) -> dict[str, Any]:
        table = json.loads((data_dir / "benchmark" / "test_qa.json").read_text("utf-8"))
        rows = []
        for q in table["questions"]:
            path = data_dir / "benchmark" / "ct" / q["image_id"] / "ct.nii.gz"
            said = self.generate(prompt(q, fmt), images=None, video_path=str(path))
            rows.append({**q, "pred_answer": said})
        return {"rows": rows, "metrics": aggregate(rows, "mc" if fmt == "mc" else "freeform")}


def prompt(q: dict[str, Any], fmt: str) -> str:
    """Modality, patient, spacing for numbers, the question, and the form of the answer last."""
    numeric = q["question_subtype"] in NUMERIC
    lines = [
        "You are given the full 3D abdominal CT volume (NIfTI, native voxel spacing).",
        f"Patient: sex={q['sex']}.",
    ]
    lines += [f"Voxel spacing (mm): {q['spacing']}.  Volume shape: {q['shape']}."] if numeric else []
    if fmt == "mc":
        return "\n".join([*lines, q["mc_question"], "Answer with ONLY the single letter (A, B, C, or D)."])
    form = "Answer with the most appropriate short phrase."
    if numeric:
        form = "Answer with a single number (no units, no extra words)."
    elif q["answer"] in ("Yes", "No"):
        form = "Answer with 'yes' or 'no'."
    return "\n".join([*lines, q["question"], form])


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("deeptumorvqa", "deeptumorvqa.eval", "deeptumorvqa.eval.vqa_evaluator")
    modules = {name: types.ModuleType(name) for name in names}
    modules[names[-1]].HFVLMEvaluator = Base  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def volumes(who: str, questions: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": who, "spacing": "[3.0 3.0 3.0]", "shape": "(122, 101, 112)", "sex": None, "age": None,
            "question": text, "answer": answer, "mc_question": f"{text} {options}",
            "correct_option": options[options.index(answer) - 3], "organ": "liver", "lesion": False,
            "question_type": "measurement", "question_subtype": subtype, "requires_tools": [],
        }
        for subtype, text, answer, options in questions
    ]  # fmt: skip


REAL = [
    ("organ volume measurement", "What is the volume of the liver in cm³?", "1125.68",
     "A: 900.12 B: 1125.68 C: 1450.30 D: 700.55"),
    ("organ volume measurement", "What is the volume of the pancreas in cm³?", "18.77",
     "A: 18.77 B: 35.20 C: 60.10 D: 90.44"),
    ("organ enlargement", "Is the liver enlarged?", "No", "A: Yes B: No"),
]  # fmt: skip
"""The real scan's volumes are not ours: ``facts/ct_oracles_dev.json``."""


@pytest.mark.slow
def test_phantoms_and_the_real_scan_are_evaluated_through_the_packages_interface(
    tmp_path: Path, real: Path, seed: int, monkeypatch: pytest.MonkeyPatch, package: None
) -> None:
    rng = np.random.default_rng(seed)
    who = patient(9_200_000 + seed % 100_000, rng)
    folder, masks = tmp_path / "data", tmp_path / "masks"
    write(folder, masks, [who], [])
    scan = folder / "benchmark" / "ct" / "BDMAP_REAL"
    scan.mkdir()
    shutil.copy(real / "totalsegmentator" / "example_ct.nii.gz", scan / "ct.nii.gz")
    shutil.copy(
        real / "totalsegmentator" / "example_seg_fast_force_split.nii.gz", masks / "BDMAP_REAL.nii.gz"
    )
    phantom = [
        each
        for each in questions_of(who, rng)
        if each["question_subtype"] in (*NUMERIC, "splenomegaly grading")
    ]
    write_questions(folder, numbered(iter([*phantom, *volumes("BDMAP_REAL", REAL)])))
    monkeypatch.setenv("TUMORCHAIN_MASKS_DIR", str(masks))
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    evaluator = build_evaluator(ARGS)
    for fmt in ("mc", "freeform"):
        done = evaluator.run(fmt=fmt, data_dir=folder)
        told = [
            (row["question"], row["pred_answer"], row["answer"], row["correct_option"])
            for row in done["rows"]
        ]
        metrics = done["metrics"]["by_subtype"]
        if fmt == "mc":
            assert done["metrics"]["overall"]["accuracy"] >= 0.99, told
        else:
            assert min(metrics[name]["mean_mra"] for name in NUMERIC) >= 0.99, told
            assert metrics["organ enlargement"]["accuracy"] == 1.0, told


def test_a_scan_that_can_not_be_read_gives_no_letter_no_number_and_no_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: None
) -> None:
    monkeypatch.setenv("TUMORCHAIN_CACHE_DIR", str(tmp_path / "cache"))
    bad = tmp_path / "BDMAP_1" / "ct.nii.gz"
    bad.parent.mkdir()
    bad.write_bytes(b"not a scan")
    rows = [{"image_id": "BDMAP_1", "answer": "No", "sex": None, "spacing": "", "shape": "",
             "question_subtype": "splenomegaly detection", "question_type": "recognition", "correct_option": "A",
             "question": "Is the spleen enlarged?", "mc_question": "Is the spleen enlarged? A: No B: Yes"}]  # fmt: skip
    evaluator = build_evaluator(ARGS)
    for fmt in ("mc", "freeform"):
        said = evaluator.generate(prompt(rows[0], fmt), video_path=str(bad))
        metrics = aggregate([{**rows[0], "pred_answer": said}], "mc" if fmt == "mc" else "freeform")
        assert metrics["overall"]["accuracy"] == 0


def test_without_the_package_the_error_names_our_own_runner() -> None:
    with pytest.raises(
        InputError, match=r"deeptumorvqa can't be imported .* evaluate --suite deeptumorvqa DIR"
    ):
        build_evaluator(ARGS)


def test_the_image_id_is_the_folders_name() -> None:
    assert image_id(Path("benchmark/ct/BDMAP_00000001/ct.nii.gz")) == "BDMAP_00000001"
    assert image_id(Path("x/BDMAP_00000002.nii.gz")) == "BDMAP_00000002"
