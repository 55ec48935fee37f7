"""The state behind the tools: nothing is computed twice, whoever asks and whatever happens meanwhile."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.mcp_server.conftest import Files, ScriptedSegmenter
from tumorchain_agent.errors import Cancelled, CheckpointError, LabelMapError, ScanError, SegmentationError
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.store import Entry, Store, read_work_log
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.checkpoint import (
    PHANTOM_DATA,
    load_llm,
    load_tokenizer,
    load_vision,
    save_checkpoint,
)
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.cache import Cache
from tumorchain_agent.tools.segment import Segmenter


def done(settings: Settings) -> list[str]:
    return [entry["work"] for entry in read_work_log(settings.cache_dir)]


def everything(bench: Workbench, files: Files) -> None:
    scan_id = bench.open_scan(str(files.scan)).scan_id
    bench.segment_organs(scan_id)
    bench.measure_organs(scan_id)
    bench.encode_scan(scan_id)
    bench.extract_roi_tokens(scan_id, "liver")
    bench.classify_abnormality(scan_id, ["liver", "spleen"])
    bench.view_organ(scan_id, "liver")


def test_a_second_call_is_answered_from_the_cache(settings: Settings, files: Files) -> None:
    with Workbench(settings, ScriptedSegmenter(settings, files.masks)) as bench:
        everything(bench, files)
        once = done(settings)
        assert once.count("segment") == 1
        assert once.count("encode") == 1
        everything(bench, files)
        scan_id = bench.open_scan(str(files.scan)).scan_id
        assert bench.segment_organs(scan_id).info.from_cache
        assert bench.measure_organs(scan_id).from_cache
        assert bench.encode_scan(scan_id).from_cache
        assert bench.extract_roi_tokens(scan_id, "liver").from_cache
        assert bench.classify_abnormality(scan_id, ["liver"]).from_cache
        assert bench.view_organ(scan_id, "liver").from_cache
    assert done(settings) == once


def test_another_process_computes_nothing_again_and_needs_no_weights(
    settings: Settings, files: Files
) -> None:
    with Workbench(settings, ScriptedSegmenter(settings, files.masks)) as bench:
        everything(bench, files)
    once = done(settings)
    with Workbench(settings, ScriptedSegmenter(settings, files.masks)) as again:
        everything(again, files)
        assert again.served._tower is None
    assert done(settings) == once


def test_a_scan_id_of_an_earlier_process_still_works(settings: Settings, files: Files) -> None:
    with Workbench(settings) as bench:
        info = bench.open_scan(str(files.scan))
    with Workbench(settings) as again:
        assert again.scan_info(info.scan_id) == info
        assert again.encode_scan(info.scan_id).count == 256


def test_the_latest_label_map_of_a_scan_is_remembered(settings: Settings, files: Files) -> None:
    with Workbench(settings, ScriptedSegmenter(settings, files.masks)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        given = bench.segment_organs(scan_id, masks=str(files.masks)).segmentation_id
    with Workbench(settings, ScriptedSegmenter(settings, files.masks)) as again:
        assert again.measure_organs(scan_id).segmentation_id == given
        nano = again.segment_organs(scan_id).segmentation_id
        assert nano != given
        assert again.measure_organs(scan_id).segmentation_id == nano
        assert again.measure_organs(scan_id, segmentation_id=given).segmentation_id == given


def test_a_scan_without_a_label_map_is_segmented_when_one_is_needed(settings: Settings, files: Files) -> None:
    with Workbench(settings, ScriptedSegmenter(settings, files.masks)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        assert bench.measure_organs(scan_id, ["liver"]).measurements[0].present
    assert done(settings) == ["segment", "measure"]


def test_a_label_map_survives_its_file(settings: Settings, files: Files, tmp_path: Path) -> None:
    masks = Path(shutil.copy(files.masks, tmp_path / "masks.nii.gz"))
    with Workbench(settings) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        found = bench.segment_organs(scan_id, masks=str(masks))
        masks.unlink()
        bench.close()
        assert bench.measure_organs(scan_id, segmentation_id=found.segmentation_id).measurements


def test_a_scan_whose_file_changed_is_refused_not_mixed_up(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    path = Path(shutil.copy(files.scan, tmp_path / "ct.nii.gz"))
    with Workbench(settings) as bench:
        scan_id = bench.open_scan(str(path)).scan_id
        other = bytearray(gzip.decompress(files.scan.read_bytes()))
        other[-1] ^= 1
        path.write_bytes(gzip.compress(bytes(other)))
        bench.close()
        with pytest.raises(ScanError, match=r"ct\.nii\.gz has changed"):
            bench.encode_scan(scan_id)
        assert bench.open_scan(str(path)).scan_id != scan_id


def test_the_same_scan_elsewhere_has_the_same_id_and_the_name_it_was_opened_by(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(files.scan, tmp_path / "copy.nii.gz"))
    with Workbench(settings) as bench:
        first, second = bench.open_scan(str(files.scan)), bench.open_scan(str(copy))
        assert first.scan_id == second.scan_id
        assert (first.file_name, second.file_name) == ("ct.nii.gz", "copy.nii.gz")
        copy.unlink()
        assert bench.open_scan(str(files.scan)) == first
        bench.close()
        assert bench.encode_scan(first.scan_id).count == 256


def test_eight_callers_at_once_make_each_result_once(settings: Settings, files: Files) -> None:
    gate = threading.Barrier(8)

    def work(bench: Workbench) -> str:
        gate.wait()
        everything(bench, files)
        return bench.encode_scan(bench.open_scan(str(files.scan)).scan_id).uri

    segmenter = ScriptedSegmenter(settings, files.masks)
    with (
        Workbench(settings, segmenter) as one,
        Workbench(settings, segmenter) as two,
        ThreadPoolExecutor(8) as threads,
    ):
        uris = list(threads.map(work, [one, two] * 4))
    assert len(set(uris)) == 1
    assert len(done(settings)) == len(set(done(settings)))


def test_segmenting_and_encoding_run_side_by_side(settings: Settings, files: Files) -> None:
    encoded = threading.Event()

    def pause(job: Job) -> None:
        assert encoded.wait(60)

    with Workbench(settings, ScriptedSegmenter(settings, files.masks, pause)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        with ThreadPoolExecutor(1) as threads:
            segmentation = threads.submit(bench.segment_organs, scan_id)
            assert bench.encode_scan(scan_id).count == 256
            assert not segmentation.done()
            encoded.set()
            assert segmentation.result().info.organs_present


def test_who_waits_for_the_same_segmentation_hears_of_its_progress_and_may_leave(
    settings: Settings, files: Files
) -> None:
    begun, finish, leave = threading.Event(), threading.Event(), threading.Event()
    heard: list[tuple[str, float]] = []

    def pause(job: Job) -> None:
        begun.set()
        assert finish.wait(60)

    def listen(phase: str, fraction: float) -> None:
        heard.append((phase, fraction))
        leave.set()

    with Workbench(settings, ScriptedSegmenter(settings, files.masks, pause)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(bench.segment_organs, scan_id)
            assert begun.wait(60)
            with pytest.raises(Cancelled, match="waiting to segment"):
                bench.segment_organs(scan_id, job=Job(listen, leave.is_set))
            finish.set()
            assert first.result().info.organs_present
    assert heard[0] == ("waiting for another call: predicting", 0.5)


def test_who_waits_for_another_process_hears_of_it_and_may_leave_and_holds_nobody_up(
    settings: Settings,
) -> None:
    entry = Entry("segment", ("a scan",), Path.read_text)
    other = Cache(settings.cache_dir / "results", 10**9)
    store, heard = Store(settings), threading.Event()

    def listen(phase: str, fraction: float) -> None:
        assert phase == "waiting for another process: segment"
        heard.set()

    def made(text: str) -> Callable[[Path, Job], None]:
        def write(path: Path, job: Job) -> None:
            path.write_text(text)

        return write

    with other.lock(entry.key):
        with pytest.raises(Cancelled, match="segment"):
            store.get_or_make(entry, made("mine"), Job(listen, heard.is_set))
        neighbour = Entry("segment", ("another scan",), Path.read_text)
        assert store.get_or_make(neighbour, made("neighbour"), Job()) == ("neighbour", False)
    assert store.get_or_make(entry, made("mine"), Job()) == ("mine", False)


def test_a_cancelled_segmentation_leaves_nothing_and_can_be_repeated(
    settings: Settings, files: Files
) -> None:
    def pause(job: Job) -> None:
        job.check("segmentation")

    with Workbench(settings, ScriptedSegmenter(settings, files.masks, pause)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        gone = threading.Event()
        with pytest.raises(Cancelled):
            bench.segment_organs(scan_id, job=Job(lambda phase, fraction: gone.set(), gone.is_set))
        assert done(settings) == []
        assert bench.segment_organs(scan_id).info.organs_present
    assert done(settings) == ["segment"]


def test_without_any_weights_the_error_names_the_remedy(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    with Workbench(settings, Segmenter(settings, nano_folder=tmp_path / "none")) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        with pytest.raises(SegmentationError, match="nano segmentation weights"):
            bench.segment_organs(scan_id)
        with pytest.raises(LabelMapError, match="segment_organs"):
            bench.measure_organs(scan_id, segmentation_id="0123456789abcdef")
        listed = bench.list_organs()
        assert not any(organ.segmentable for organ in listed.organs)
        assert listed.organs[0].unavailable_because


def test_the_nano_weights_own_up_to_the_organs_that_they_never_learned(
    settings: Settings, files: Files
) -> None:
    with Workbench(settings) as bench:
        listed = {organ.name: organ for organ in bench.list_organs().organs}
    assert listed["pancreas"].segmentable
    assert not listed["prostate"].segmentable
    assert "never trained" in str(listed["prostate"].unavailable_because)


def test_a_checkpoint_that_is_none_is_an_error_and_no_encoding(
    settings: Settings, files: Files, tmp_path: Path
) -> None:
    broken = settings.model_copy(update={"model": tmp_path / "empty"})
    with Workbench(broken) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        with pytest.raises(CheckpointError, match="no TumorChain checkpoint"):
            bench.encode_scan(scan_id)
    assert done(settings) == []


def test_closing_ends_the_worker_and_the_workbench_can_be_used_again(
    settings: Settings, files: Files
) -> None:
    segmenter = ScriptedSegmenter(settings, files.masks)
    with Workbench(settings, segmenter) as bench:
        everything(bench, files)
    assert segmenter.closed
    everything(bench, files)


def test_a_checkpoint_that_is_replaced_under_the_server_is_refused(
    settings: Settings, files: Files, checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    with Workbench(settings.model_copy(update={"model": folder})) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        assert bench.served.checkpoint_id
        _retrain(folder)
        with pytest.raises(CheckpointError, match="was replaced while the server ran"):
            bench.encode_scan(scan_id)
    assert "encode" not in done(settings)


@pytest.mark.parametrize(("data", "said"), [(PHANTOM_DATA, True), ("3-D CoT, 1.5 M questions", False)])
def test_a_checkpoint_is_a_demonstration_by_what_it_was_trained_on_not_by_its_size(
    settings: Settings, files: Files, checkpoint: Path, tmp_path: Path, data: str, said: bool
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    info = json.loads((folder / "tumorchain.json").read_text())
    (folder / "tumorchain.json").write_text(json.dumps(info | {"provenance": {"data": data}}))
    with Workbench(settings.model_copy(update={"model": folder})) as bench:
        notices = bench.encode_scan(bench.open_scan(str(files.scan)).scan_id).notices
    assert ("demonstration_model" in {notice.code for notice in notices}) is said


@pytest.mark.parametrize("allowed", [False, True])
def test_an_untrained_checkpoint_is_refused_unless_allowed_and_then_says_so(
    settings: Settings, files: Files, checkpoint: Path, tmp_path: Path, allowed: bool
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    info = json.loads((folder / "tumorchain.json").read_text())
    changed = info | {"provenance": {"untrained": ["projector", "cls"]}}
    (folder / "tumorchain.json").write_text(json.dumps(changed))
    changes = {"model": folder, "allow_untrained": allowed}
    with Workbench(settings.model_copy(update=changes), ScriptedSegmenter(settings, files.masks)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        segmented = bench.segment_organs(scan_id).info
        assert bench.measure_organs(scan_id, ["liver"]).measurements[0].present
        if allowed:
            for found in (bench.encode_scan(scan_id), bench.classify_abnormality(scan_id, ["liver"])):
                assert "untrained_checkpoint" in {notice.code for notice in found.notices}
            return
        attempts: list[Callable[[], object]] = [
            lambda: bench.encode_scan(scan_id),
            lambda: bench.extract_roi_tokens(scan_id, "liver"),
            lambda: bench.classify_abnormality(scan_id, ["liver"]),
            lambda: bench.global_tokens_file(scan_id, info["checkpoint_id"]),
            lambda: bench.classification(scan_id, info["checkpoint_id"], segmented.weights_id, "liver"),
            lambda: bench.served.load(),
        ]
        for attempt in attempts:
            with pytest.raises(CheckpointError, match=r"projector and cls hold random weights.*train it"):
                attempt()


def _retrain(folder: Path) -> None:
    """Other weights in the same folder."""
    vision, info = load_vision(folder)
    with torch.no_grad():
        vision.cls.bias.add_(1)
    llm, tokenizer = load_llm(folder), load_tokenizer(folder)
    save_checkpoint(
        folder, llm, vision, tokenizer, size="nano", preprocessing=info.preprocessing, provenance={}
    )


def test_tokens_of_another_precision_are_not_taken_for_these(settings: Settings, files: Files) -> None:
    exact, rough = (
        settings.model_copy(update={"encoder_precision": name}) for name in ("float32", "bfloat16")
    )
    for each in (exact, rough, exact, rough):
        with Workbench(each) as bench:
            bench.encode_scan(bench.open_scan(str(files.scan)).scan_id)
    assert done(settings).count("encode") == 2
