"""The segmentation worker: TotalSegmentator's code, warm, killable, private, never in the protocol's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.segmentation_toys import LIVER, STOMACH, toy_ct, untrained_official_weights, untrained_weights
from tumorchain_agent.errors import Cancelled, SegmentationError
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.segment import Segmenter, to_grid, to_spacing
from tumorchain_agent.tools.segment_weights import NANO_WEIGHTS, find_weights, installed, model_folder

NANO = Settings(segmentation="nano", device="cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home and a working folder whose files are named like modules that the worker imports."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("json", "random", "queue", "numpy", "torch", "totalsegmentator"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("TOTALSEG_WEIGHTS_PATH", raising=False)
        patch.delenv("TOTALSEG_HOME_DIR", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def segmenter(weights: Path, home: Path) -> Iterator[Segmenter]:
    with Segmenter(NANO, nano_folder=weights) as segmenter:
        yield segmenter


def worker_of(segmenter: Segmenter) -> psutil.Process:
    pid = segmenter.worker_pid
    assert pid is not None
    return psutil.Process(pid)


def wait_until(true: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


@pytest.mark.slow
def test_a_scan_is_segmented_on_its_own_grid(
    segmenter: Segmenter, home: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ct = toy_ct(0, 48, (1.7, 2.1, 5.0))
    seen: list[tuple[str, float]] = []
    result = segmenter.segment(ct, progress=lambda phase, fraction: seen.append((phase, fraction)))
    assert result.labels.shape == ct.shape
    assert result.labels.dtype == np.uint8
    assert set(np.unique(result.labels)) <= {0, LIVER, STOMACH, 29}
    assert (result.info.source, result.info.task, result.info.scan_id) == ("nano", "total_fast", ct.scan_id)
    assert result.info.weights_id == segmenter.weights_id()
    assert result.info.seconds > 0
    assert "nano_segmentation" in {notice.code for notice in result.info.notices}
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert "predicting" in {phase for phase, _ in seen}
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_worker_stays_warm_and_gives_the_same_labels_again(segmenter: Segmenter) -> None:
    first = segmenter.segment(toy_ct(1))
    pid = segmenter.worker_pid
    second = segmenter.segment(toy_ct(1))
    assert segmenter.worker_pid == pid
    np.testing.assert_array_equal(first.labels, second.labels)


@pytest.mark.slow
def test_usage_statistics_are_off_and_the_home_stays_untouched(segmenter: Segmenter, home: Path) -> None:
    segmenter.segment(toy_ct(2))
    worker = worker_of(segmenter)
    config = json.loads((Path(worker.cwd()) / "totalsegmentator" / "config.json").read_text())
    assert config["send_usage_stats"] is False
    assert config["prediction_counter"] >= 1, "TotalSegmentator used another configuration"
    assert not (home / ".totalsegmentator").exists()
    assert "TOTALSEG_WEIGHTS_PATH" not in os.environ


@pytest.mark.slow
def test_the_worker_has_its_own_process_group_and_no_terminal(segmenter: Segmenter) -> None:
    segmenter.warm_up()
    worker = worker_of(segmenter)
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    assert os.readlink(f"/proc/{worker.pid}/fd/0") == "/dev/null"
    assert {os.readlink(f"/proc/{worker.pid}/fd/{n}") for n in (1, 2)} == {
        str(Path(worker.cwd()) / "worker.log")
    }


@pytest.mark.slow
def test_a_crash_is_an_error_that_names_the_cause_and_the_next_scan_works(segmenter: Segmenter) -> None:
    segmenter.segment(toy_ct(3))
    crashed = worker_of(segmenter)

    def kill(phase: str, fraction: float) -> None:
        if phase == "predicting":
            crashed.kill()

    with pytest.raises(SegmentationError, match="killed by SIGKILL") as raised:
        segmenter.segment(toy_ct(3), progress=kill)
    assert "\n" not in str(raised.value)
    again = segmenter.segment(toy_ct(3))
    assert segmenter.worker_pid != crashed.pid
    assert again.labels.shape == toy_ct(3).shape


@pytest.mark.slow
def test_cancelling_a_scan_kills_the_worker_within_two_seconds(segmenter: Segmenter) -> None:
    ct = toy_ct(4, 160)
    segmenter.segment(toy_ct(4))
    worker = worker_of(segmenter)
    folder = Path(worker.cwd())
    cancel = threading.Event()
    asked: list[float] = []

    def progress(phase: str, fraction: float) -> None:
        if phase == "predicting" and not cancel.is_set():
            asked.append(time.monotonic())
            cancel.set()

    with pytest.raises(Cancelled):
        segmenter.segment(ct, progress, cancel.is_set)
    assert time.monotonic() - asked[0] < 2
    assert not worker.is_running()
    assert not folder.exists()


def test_closing_cancels_a_scan_in_another_thread(weights: Path) -> None:
    outcome: list[BaseException] = []
    loading = threading.Event()

    def run() -> None:
        try:
            owner.segment(toy_ct(), lambda phase, fraction: loading.set() if fraction > 0 else None)
        except Cancelled as error:
            outcome.append(error)

    owner = Segmenter(NANO, nano_folder=weights)
    thread = threading.Thread(target=run)
    thread.start()
    assert loading.wait(20)
    owner.close()
    thread.join(20)
    assert len(outcome) == 1
    assert owner.worker_pid is None


def test_cancelling_while_the_worker_starts_ends_it_at_once(weights: Path) -> None:
    started = time.monotonic()
    with Segmenter(NANO, nano_folder=weights) as segmenter:
        segmenter.warm_up()
        worker = worker_of(segmenter)
        with pytest.raises(Cancelled):
            segmenter.segment(toy_ct(), cancelled=lambda: True)
        assert not worker.is_running()
    assert time.monotonic() - started < 4


def test_a_worker_that_does_not_start_in_time_is_an_error(weights: Path) -> None:
    with (
        Segmenter(NANO, nano_folder=weights, start_timeout_s=0.05) as segmenter,
        pytest.raises(SegmentationError, match=r"did not start within 0.05 s.*TUMORCHAIN_SEGMENTATION"),
    ):
        segmenter.segment(toy_ct())


def test_a_progress_callback_that_raises_leaves_no_worker_behind(weights: Path) -> None:
    def interrupt(phase: str, fraction: float) -> None:
        if phase == "loading TotalSegmentator":
            raise KeyboardInterrupt

    with Segmenter(NANO, nano_folder=weights) as segmenter:
        segmenter.warm_up()
        worker = worker_of(segmenter)
        with pytest.raises(KeyboardInterrupt):
            segmenter.segment(toy_ct(), interrupt)
        assert not worker.is_running()


def test_a_second_scan_waits_for_its_turn_and_can_be_cancelled_there(weights: Path) -> None:
    with Segmenter(NANO, nano_folder=weights) as segmenter, segmenter._turn:
        with pytest.raises(Cancelled, match="before it began"):
            segmenter.segment(toy_ct(), cancelled=lambda: True)
        assert segmenter.worker_pid is None


PARENT = """
import sys
from pathlib import Path
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.segment import Segmenter
segmenter = Segmenter(Settings(segmentation="nano", device="cpu"), nano_folder=Path(sys.argv[1]))
segmenter.warm_up()
print(segmenter.worker_pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_the_worker_and_its_folder_vanish_when_the_parent_is_killed(weights: Path) -> None:
    command = [sys.executable, "-P", "-c", PARENT, str(weights)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        folder = Path(worker.cwd())
        parent.kill()
    worker.wait(20)
    wait_until(lambda: not folder.exists())


@pytest.mark.slow
def test_a_failure_inside_totalsegmentator_is_reported_with_its_last_words(
    weights: Path, tmp_path: Path
) -> None:
    broken = untrained_weights(tmp_path)
    (checkpoint,) = broken.rglob("checkpoint_final.pth")
    checkpoint.write_bytes(b"not a checkpoint")
    with (
        Segmenter(NANO, nano_folder=broken) as segmenter,
        pytest.raises(SegmentationError, match=r"exit code 1: UnpicklingError: .*next scan"),
    ):
        segmenter.segment(toy_ct())


@pytest.mark.slow
def test_trimmed_and_fitted_nano_prediction_gives_the_labels_of_the_whole_network(weights: Path) -> None:
    import torch

    from tumorchain_agent.tools.warm_predictor import WarmPredictor, load_model

    nano = installed(weights, "fast", "nano")
    assert nano is not None
    whole = load_model(nano.models[0], (0,), nano=False)
    trimmed = load_model(nano.models[0], (0,), nano=True)
    predictor = WarmPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.nano = True
    predictor.models = {}
    predictor.initialize_from_trained_model_folder(str(nano.models[0]), (0,))
    image = torch.randn(1, 40, 33, 48)
    logits = predictor.predict_logits_from_preprocessed_data(image)
    labels = predictor.label_manager.convert_logits_to_segmentation(logits)
    assert logits.shape == (4, 40, 33, 48)
    assert predictor.configuration_manager.patch_size == [48, 48, 48]
    padded = torch.nn.functional.pad(image, (0, 0, 7, 8, 4, 4))
    with torch.inference_mode():
        full = whole.network(padded[None])[0].argmax(0)[4:44, 7:40]
        few = trimmed.network(padded[None])[0]
    assert few.shape[0] == 4
    assert (torch.from_numpy(labels) == full).float().mean() > 0.999


@pytest.mark.slow
def test_official_weights_run_all_five_models_at_their_own_resolution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(untrained_official_weights(tmp_path)))
    seen: list[float] = []
    ct = toy_ct(0, 20)
    with Segmenter(Settings(segmentation="official", device="cpu")) as segmenter:
        result = segmenter.segment(ct, lambda phase, fraction: seen.append(fraction))
    assert (result.info.source, result.info.task) == ("official", "total")
    assert result.labels.shape == ct.shape
    assert len(np.unique(result.labels)) > 20, "untrained networks name structures of all five models"
    assert result.info.notices == ()
    windows = [fraction for fraction in seen if 0.1 < fraction < 0.95]
    assert len(set(windows)) >= 5


def official(root: Path, *modes: str) -> Path:
    tasks = {
        "default": ([291, 292, 293, 294, 295], "nnUNetTrainerNoMirroring"),
        "fast": ([297], "nnUNetTrainer_4000epochs_NoMirroring"),
        "fastest": ([298], "nnUNetTrainer_4000epochs_NoMirroring"),
    }
    for mode in modes:
        for task in tasks[mode][0]:
            folder = model_folder(root, task, tasks[mode][1])
            (folder / "fold_0").mkdir(parents=True)
            for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
                (folder / name).write_text(json.dumps([task, name]))
    return root


@pytest.mark.parametrize(
    ("modes", "task", "spacing"),
    [
        (("fastest",), "total_fastest", 6.0),
        (("fast", "fastest"), "total_fast", 3.0),
        (("default", "fast", "fastest"), "total", 1.5),
    ],
)
def test_the_best_installed_official_weights_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: tuple[str, ...], task: str, spacing: float
) -> None:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(official(tmp_path, *modes)))
    found = find_weights(Settings(segmentation="auto"))
    assert (found.source, found.task, found.spacing_mm) == ("official", task, spacing)


def test_an_incomplete_download_is_not_taken_for_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(tmp_path, "default", "fastest")
    next(tmp_path.glob("Dataset293*/*/fold_0/checkpoint_final.pth")).unlink()
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path))
    assert find_weights(Settings(segmentation="official")).task == "total_fastest"


def test_auto_falls_back_to_nano_and_official_says_how_to_get_weights(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOTALSEG_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path))
    assert find_weights(Settings(segmentation="auto"), weights).source == "nano"
    with pytest.raises(SegmentationError, match=r"totalseg_download_weights.*TUMORCHAIN_SEGMENTATION=nano"):
        find_weights(Settings(segmentation="official"), weights)
    with pytest.raises(SegmentationError, match="missing or incomplete"):
        find_weights(Settings(segmentation="nano"), tmp_path)


def test_weights_have_an_id_that_changes_with_any_file(tmp_path: Path) -> None:
    def identity(root: Path) -> str:
        found = installed(root, "fast", "official")
        assert found is not None
        return found.weights_id

    official(tmp_path / "a", "fast")
    official(tmp_path / "b", "fast")
    assert identity(tmp_path / "a") == identity(tmp_path / "b")
    next((tmp_path / "b").rglob("plans.json")).write_text("other plans")
    assert identity(tmp_path / "a") != identity(tmp_path / "b")


def test_the_nano_weights_live_inside_the_package() -> None:
    import tumorchain_agent

    package = Path(tumorchain_agent.__file__).resolve().parent
    assert NANO_WEIGHTS.resolve() in (
        package / "model" / "nano_segmentation",
        package.parent / "model" / "nano_segmentation",
    )


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((40, 37, 21), (0.7969, 0.7969, 5.0)),
        ((33, 50, 60), (1.37, 1.37, 1.0)),
        ((50, 40, 7), (2.5, 2.6, 0.9)),
        ((9, 8, 7), (3.0, 3.0, 3.0)),
    ],
)
def test_resampling_is_what_totalsegmentator_does(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    import nibabel
    from totalsegmentator.resampling import change_spacing

    hu = rng.integers(-1000, 1000, shape).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    scan = nibabel.Nifti1Image(hu.astype(float), affine)  # type: ignore[no-untyped-call]
    theirs: Any = change_spacing(scan, 3.0, order=1, dtype=np.int32)
    ours = to_spacing(hu, spacing, 3.0)
    np.testing.assert_array_equal(ours, theirs.get_fdata())
    labels = rng.integers(0, 118, ours.shape).astype(np.uint8)
    small = nibabel.Nifti1Image(labels, theirs.affine)  # type: ignore[no-untyped-call]
    back: Any = change_spacing(small, 3.0, shape, order=0, dtype=np.uint8, force_affine=affine)
    np.testing.assert_array_equal(to_grid(labels, shape), back.get_fdata())


def test_a_scan_thinner_than_a_voxel_of_the_network_still_resamples() -> None:
    image = to_spacing(np.zeros((30, 30, 1), np.float32), (3.5, 3.5, 0.6), 3.0)
    assert image.shape == (35, 35, 1)
    assert to_grid(np.ones((35, 35, 1), np.uint8), (30, 30, 1)).shape == (30, 30, 1)
