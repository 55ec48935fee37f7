"""A small synthetic CT with its label map, a tiny random checkpoint, and a server over them."""

from __future__ import annotations

import gzip
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import nibabel
import numpy as np
import pytest
import torch
from mcp import Client
from mcp_types import CallToolResult, TextContent

from tests.conftest import torso, torso_grid
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.server import build_server, connect_in_memory
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.model.checkpoint import PHANTOM_DATA, save_checkpoint
from tumorchain_agent.model.config import VisionConfig, VitConfig
from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.labels import LabelMap, label_map, load_label_map
from tumorchain_agent.tools.scan import CT
from tumorchain_agent.tools.segment import Segmenter
from tumorchain_agent.tools.segment_weights import Weights

HIDDEN = 32
PRESENT = ("spleen", "liver", "lumbar_vertebrae", "aorta")
"""What the torso's label map holds, in the order of Table 10."""


@dataclass(frozen=True)
class Files:
    """A CT and its label map, stored as LAS so that orientation matters."""

    scan: Path
    masks: Path
    labels: np.ndarray[Any, np.dtype[np.uint8]]
    """[x, y, z] in RAS."""


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Tiny models only lose time to several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("scan")
    affine, shape = torso_grid(8.0, 8.0, 12.0)
    hu, labels = torso(affine, shape)
    flipped = affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[:3, 3] += affine[:3, 0] * (shape[0] - 1)
    for name, values, kind in (("ct.nii.gz", hu, np.int16), ("masks.nii.gz", labels, np.uint8)):
        make: Any = nibabel.Nifti1Image
        image = make(values[::-1].astype(kind), flipped, dtype=kind)
        (folder / name).write_bytes(gzip.compress(image.to_bytes(), 1))
    return Files(folder / "ct.nii.gz", folder / "masks.nii.gz", labels)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real input size, everything else tiny."""
    torch.manual_seed(0)
    tokenizer = build_nano_tokenizer(["A lesion in the liver. The pancreas is normal."] * 8)
    config = llm_config(
        "nano",
        tokenizer,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    encoder = VitConfig(width=16, mlp_width=16, layers=1, heads=1)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(
        folder,
        build_llm(config),
        VisionConfig(encoder=encoder, hidden_size=HIDDEN).build(),
        tokenizer,
        size="nano",
        preprocessing={"window_hu": 400.0, "level_hu": 40.0},
        provenance={"data": PHANTOM_DATA, "seed": 0},
        training_distribution={"statistics": {"noise_hu": [1e6, 2e6]}},
    )
    return folder


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Settings:
    return Settings(
        cache_dir=tmp_path / "cache",
        model=checkpoint,
        device="cpu",
        segmentation="nano",
        encoder_precision="float32",
    )


@pytest.fixture
def workbench(settings: Settings) -> Iterator[Workbench]:
    with Workbench(settings) as bench:
        yield bench


class ScriptedSegmenter(Segmenter):
    """Gives the synthetic scan's own labels, at the pace that a test sets."""

    def __init__(self, settings: Settings, masks: Path, pause: Callable[[Job], None] | None = None) -> None:
        super().__init__(settings)
        self._masks = masks
        self._pause = pause or (lambda job: None)
        self.closed = False

    def weights(self) -> Weights:
        return Weights("nano", "fast", self._masks.parent, 3.0, (), ())

    def close(self) -> None:
        self.closed = True

    def segment(
        self,
        ct: CT,
        progress: Callable[[str, float], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        weights: Weights | None = None,
    ) -> LabelMap:
        assert progress is not None
        assert cancelled is not None
        progress("predicting", 0.5)
        self._pause(Job(progress, cancelled))
        found = load_label_map(self._masks, ct)
        return label_map(
            found.labels, ct, source="nano", task="total_fast", weights_id=self.weights_id(), seconds=1.0
        )


Steps = Callable[[Client], Awaitable[None]]


def with_client(source: Workbench | Settings, steps: Steps) -> None:
    """Run async steps with a real client of a real server, in memory."""

    async def main() -> None:
        async with connect_in_memory(build_server(source)) as client:
            await steps(client)

    anyio.run(main)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a call that must succeed."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    content = result.structured_content
    assert isinstance(content, dict)
    return content


def text_of(result: CallToolResult) -> str:
    """What the model reads."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


async def open_segmented(client: Client, files: Files) -> tuple[str, str]:
    """Scan id and segmentation id of the given label map."""
    scan = await call(client, "open_scan", path=str(files.scan))
    found = await call(client, "segment_organs", scan_id=scan["scan_id"], masks=str(files.masks))
    return scan["scan_id"], found["segmentation_id"]
