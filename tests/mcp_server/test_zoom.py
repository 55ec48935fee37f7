"""ROI zoom through the server: tokens of a crop have a name, a place and a key of their own, and only where trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mcp import Client
from safetensors.torch import load

from tests.mcp_server.conftest import Files, call, open_segmented, text_of, with_client
from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.mcp_server.store import read_work_log
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.checkpoint import NANO_DIR, load_vision, read_info
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.labels import load_label_map
from tumorchain_agent.tools.organs import ORGANS
from tumorchain_agent.tools.preprocess import preprocess
from tumorchain_agent.tools.roi import covered_cells, roi_mixture
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.tools.zoom import Zoom, zoom_in

Place = Callable[..., Settings]


@pytest.fixture
def trained(settings: Settings, checkpoint: Path, tmp_path: Path) -> Place:
    """``trained(max_tokens=16)``: settings with the checkpoint as if it had been trained with this zoom."""

    def make(**zoom: Any) -> Settings:
        folder = Path(shutil.copytree(checkpoint, tmp_path / f"zoom-{len(list(tmp_path.iterdir()))}"))
        info = json.loads((folder / "tumorchain.json").read_text())
        info["zoom"] = Zoom(**zoom).model_dump(mode="json")
        (folder / "tumorchain.json").write_text(json.dumps(info))
        return settings.model_copy(update={"model": folder})

    return make


def zooms(settings: Settings) -> int:
    return [entry["work"] for entry in read_work_log(settings.cache_dir)].count("zoom")


def test_a_checkpoint_trained_with_zoom_gives_tokens_of_the_crop_beside_those_of_the_whole(
    trained: Place, files: Files
) -> None:
    settings = trained(max_tokens=48)

    async def steps(client: Client) -> None:
        scan_id, _ = await open_segmented(client, files)
        found = await call(client, "extract_roi_tokens", scan_id=scan_id, organ="liver")
        plain = await call(client, "extract_roi_tokens", scan_id=scan_id, organ="liver", zoom=False)
        assert plain["zoom"] is None
        assert {k: v for k, v in found.items() if k not in ("zoom", "from_cache")} == {
            k: v for k, v in plain.items() if k not in ("zoom", "from_cache")
        }
        zoom = found["zoom"]
        assert zoom["uri"] == f"{found['uri']}/zoom"
        (content,) = (await client.read_resource(zoom["uri"])).contents
        tokens = load(_bytes(content))["tokens"]
        assert tokens.shape == (zoom["count"], found["hidden_size"])
        expected, cells, side_mm = by_hand(settings, files)
        assert torch.allclose(tokens, expected, atol=1e-5)
        assert (zoom["cells"], zoom["side_mm"]) == (cells, pytest.approx(side_mm))
        told = text_of(await client.call_tool("extract_roi_tokens", {"scan_id": scan_id, "organ": "liver"}))
        assert f"{zoom['count']} more at higher resolution, {side_mm:.0f} mm across: {zoom['uri']}" in told

    with_client(settings, steps)
    assert zooms(settings) == 1


def _bytes(content: Any) -> bytes:
    import base64

    return base64.b64decode(content.blob)


def by_hand(settings: Settings, files: Files) -> tuple[torch.Tensor, int, float]:
    """The liver's zoomed tokens from the parts that they are made of: crop, encoder, Γ, projector."""
    ct = open_ct(files.scan)
    labels = load_label_map(files.masks, ct).labels
    tower, info = load_vision(settings.model or NANO_DIR)
    assert info.zoom is not None
    crop = zoom_in(ct, labels, "liver", preprocess(ct), info.zoom)
    assert crop is not None
    share = crop.coverage[next(key for key, name in ORGANS.items() if name == "liver")]
    with torch.inference_mode():
        tokens = tower.encode(torch.from_numpy(crop.model.volume)[None])[0]
        expected = tower.project(roi_mixture(share, info.zoom.max_tokens).of(tokens))
    return expected, len(covered_cells(share)), crop.side_mm


def test_zoomed_tokens_are_kept_and_known_again_by_their_settings(trained: Place, files: Files) -> None:
    with Workbench(trained(max_tokens=64)) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        bench.segment_organs(scan_id, masks=str(files.masks))
        first = bench.extract_roi_tokens(scan_id, "liver")
        again = bench.extract_roi_tokens(scan_id, "liver")
        assert (first.from_cache, again.from_cache) == (False, True)
        assert first.zoom == again.zoom
        assert zooms(bench.settings) == 1
    with Workbench(trained(max_tokens=8)) as other:
        found = other.extract_roi_tokens(scan_id, "liver")
        assert found.zoom is not None
        assert first.zoom is not None
        assert found.zoom.count <= 8 < first.zoom.count <= 64
        assert zooms(other.settings) == 2


def test_organs_that_it_was_not_trained_to_zoom_into_and_absent_ones_have_no_zoomed_tokens(
    trained: Place, files: Files
) -> None:
    with Workbench(trained(organs=("liver", "pancreas"))) as bench:
        scan_id = bench.open_scan(str(files.scan)).scan_id
        segmentation = bench.segment_organs(scan_id, masks=str(files.masks)).segmentation_id
        spleen = bench.extract_roi_tokens(scan_id, "spleen", zoom=True)
        assert spleen.count
        assert spleen.zoom is None
        pancreas = bench.extract_roi_tokens(scan_id, "pancreas")
        assert (pancreas.count, pancreas.zoom) == (0, None)
        assert zooms(bench.settings) == 0
        with pytest.raises(CheckpointError, match="doesn't zoom into spleen; read its ROI tokens"):
            bench.zoom_tokens_file(scan_id, bench.served.checkpoint_id, segmentation, "spleen")


def test_zoom_of_a_checkpoint_that_was_not_trained_with_it_is_an_error_before_any_work(
    settings: Settings, files: Files
) -> None:
    async def steps(client: Client) -> None:
        scan = await call(client, "open_scan", path=str(files.scan))
        result = await client.call_tool(
            "extract_roi_tokens", {"scan_id": scan["scan_id"], "organ": "liver", "zoom": True}
        )
        assert result.is_error
        assert "was not trained with ROI zoom" in text_of(result)
        assert "\n" not in text_of(result)
        asked = {"path": str(files.scan), "question": "Is there a tumor?", "zoom": True}
        result = await client.call_tool("ask", asked)
        assert "was not trained with ROI zoom" in text_of(result)
        result = await client.call_tool("ask", asked | {"evidence": "text"})
        assert "zoom is of token evidence, not of text" in text_of(result)

    with_client(settings, steps)
    assert read_work_log(settings.cache_dir) == []


def test_a_checkpoint_that_does_not_say_is_one_without_zoom(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    info = json.loads((folder / "tumorchain.json").read_text())
    assert info.pop("zoom") is None
    (folder / "tumorchain.json").write_text(json.dumps(info))
    assert read_info(folder).zoom is None
    info["zoom"] = {"margin_mm": 12.0, "angle": 30}
    (folder / "tumorchain.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match="angle"):
        read_info(folder)
