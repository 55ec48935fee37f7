"""A CT server with the real protocol and made-up contents, and a chat model that says what it is told to."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import PrivateAttr
from safetensors.torch import save

from tests.sample_answer import png
from tumorchain_agent.errors import ScanError, TumorChainError
from tumorchain_agent.mcp_server.calls import failure, success
from tumorchain_agent.mcp_server.results import (
    ClassificationSet,
    MaskLink,
    MeasurementSet,
    PictureSet,
    Segmentation,
)
from tumorchain_agent.records import (
    Classification,
    Measurement,
    Notice,
    Picture,
    Record,
    ScanInfo,
    SegmentationInfo,
    TokenSet,
    ZoomTokens,
)
from tumorchain_agent.tools.organs import ORGANS

SCAN, CHECKPOINT, LABELS = "scan-1", "nano-1", "labels-1"
HIDDEN = 4
SIDE_MM = 163.0
"""Of every crop."""
IDS = {name: number for number, name in ORGANS.items()}
DEMONSTRATION = Notice(code="demonstration_model", message="A demonstration model.")

Hook = Callable[[str, str], Awaitable[None]]
"""``await hook(tool, organ or "")`` before a tool does its work."""


def global_uri() -> str:
    return f"tokens://{SCAN}/{CHECKPOINT}/global"


def tokens_uri(organ: str) -> str:
    return f"tokens://{SCAN}/{CHECKPOINT}/{LABELS}/{organ}"


def measured(organ: str, present: bool, cut: tuple[str, ...] = ()) -> Measurement:
    if not present:
        return Measurement(organ=organ, present=False)
    return Measurement(
        organ=organ,
        present=True,
        voxels=1000,
        volume_ml=27.0,
        mean_hu=50.4,
        sd_hu=12.6,
        largest_diameter_mm=61.2,
        largest_axial_diameter_mm=40.7,
        cut_by_edge=cut,
    )


class FakeCT:
    """What the server knows: all organs but the absent ones; τ_g holds 0, τ_l the organ's number.

    Of the organs ``zoomed`` there are two tokens more, that hold a half more, unless a call wants none.
    """

    def __init__(
        self,
        *,
        absent: Sequence[str] = ("esophagus",),
        unknown: tuple[str, ...] = (),
        cut: dict[str, tuple[str, ...]] | None = None,
        tokenless: Sequence[str] = (),
        zoomed: Sequence[str] = (),
        hook: Hook | None = None,
        disk: Path | None = None,
        checkpoint: str = CHECKPOINT,
        labels: str = LABELS,
    ) -> None:
        self.absent, self.unknown, self.cut, self.tokenless = absent, unknown, cut or {}, tokenless
        self.zoomed = zoomed
        self.hook, self.disk, self.checkpoint, self.labels = hook, disk, checkpoint, labels
        self.calls: list[tuple[str, str]] = []
        self.reads: list[str] = []

    async def work(self, tool: str, organ: str = "") -> None:
        """A call; with ``disk``, work that a file there records is not done again, as in a cache."""
        self.calls.append((tool, organ))
        if self.hook is not None:
            await self.hook(tool, organ)
        if self.disk is not None and not (done := self.disk / f"{tool}-{organ}").exists():
            done.touch()
            with (self.disk / "work.log").open("a") as log:
                log.write(f"{tool} {organ}".strip() + "\n")

    def scan(self, path: str) -> ScanInfo:
        if "missing" in path:
            raise ScanError(f"{path} does not exist; check the path")
        return ScanInfo(
            scan_id=SCAN if "other" not in path else "scan-2",
            file_name=Path(path).name,
            source_format="nifti",
            shape=(60, 50, 40),
            spacing_mm=(1.5, 1.5, 3.0),
            affine=((1.5, 0, 0, 0), (0, 1.5, 0, 0), (0, 0, 3, 0), (0, 0, 0, 1)),
            source_axcodes="RAS",
            hu_min=-1000,
            hu_max=900,
        )

    def token_set(self, organ: str | None, zoom: bool | None = None) -> TokenSet:
        gone = organ in self.absent or organ in self.tokenless
        closer = None
        if organ is not None and organ in self.zoomed and not gone and zoom is not False:
            closer = ZoomTokens(uri=f"{tokens_uri(organ)}/zoom", count=2, cells=9, side_mm=SIDE_MM)
        return TokenSet(
            uri=global_uri() if organ is None else tokens_uri(organ),
            scan_id=SCAN,
            organ=organ,
            count=2 if organ is None else (0 if gone else 1),
            hidden_size=HIDDEN,
            checkpoint_id=self.checkpoint,
            zoom=closer,
        )

    def server(self) -> MCPServer:
        server = MCPServer("fake-ct")
        _add_scan_tools(server, self)
        _add_organ_tools(server, self)
        _add_resources(server, self)
        return server


def _done(record: Record) -> CallToolResult:
    return success(record, "done")


def _add_scan_tools(server: MCPServer, ct: FakeCT) -> None:
    @server.tool()
    async def open_scan(ctx: Context[Any, Any], path: str, volume: int | None = None) -> CallToolResult:
        await ct.work("open_scan")
        await ctx.report_progress(0.5, 1.0, "reading the scan")
        try:
            return _done(ct.scan(path))
        except TumorChainError as error:
            return failure(error)

    @server.tool()
    async def segment_organs(
        scan_id: str, organs: list[str] | None = None, masks: str | None = None
    ) -> CallToolResult:
        await ct.work("segment_organs")
        info = SegmentationInfo(
            scan_id=scan_id,
            source="given" if masks else "nano",
            task="given" if masks else "total_fast",
            weights_id="weights-1",
            organs_present=tuple(name for name in IDS if name not in ct.absent),
            organs_unknown=ct.unknown,
            seconds=0.1,
            notices=(Notice(code="nano_segmentation", message="Made by the nano weights."),),
        )
        return _done(
            Segmentation(
                segmentation_id=ct.labels,
                info=info,
                label_map_uri=f"mask://{SCAN}/{LABELS}/label-map",
                masks=(MaskLink(organ="liver", uri=f"mask://{SCAN}/{LABELS}/organ/liver"),),
            )
        )

    @server.tool()
    async def encode_scan(scan_id: str) -> CallToolResult:
        await ct.work("encode_scan")
        return _done(ct.token_set(None))


def _add_organ_tools(server: MCPServer, ct: FakeCT) -> None:
    @server.tool()
    async def measure_organs(
        scan_id: str, segmentation_id: str | None = None, organs: list[str] | None = None
    ) -> CallToolResult:
        names = organs or list(IDS)
        await ct.work("measure_organs", ",".join(organs or ()))
        found = tuple(measured(name, name not in ct.absent, ct.cut.get(name, ())) for name in names)
        uris = {name: f"measurement://{SCAN}/{LABELS}/{name}" for name in names}
        return _done(MeasurementSet(scan_id=scan_id, segmentation_id=LABELS, measurements=found, uris=uris))

    @server.tool()
    async def extract_roi_tokens(
        scan_id: str, organ: str, segmentation_id: str | None = None, zoom: bool | None = None
    ) -> CallToolResult:
        await ct.work("extract_roi_tokens", organ)
        return _done(ct.token_set(organ, zoom))

    @server.tool()
    async def classify_abnormality(
        scan_id: str, organs: list[str], segmentation_id: str | None = None
    ) -> CallToolResult:
        await ct.work("classify_abnormality", ",".join(organs))
        found = tuple(
            Classification(
                organ=organ, present=True, p_abnormal=0.75, label="abnormal", checkpoint_id=ct.checkpoint
            )
            for organ in organs
        )
        uris = {organ: f"classification://{SCAN}/{CHECKPOINT}/{LABELS}/{organ}" for organ in organs}
        return _done(
            ClassificationSet(
                scan_id=scan_id,
                segmentation_id=LABELS,
                checkpoint_id=ct.checkpoint,
                classifications=found,
                uris=uris,
                notices=(DEMONSTRATION,),
            )
        )

    @server.tool()
    async def view_organ(
        scan_id: str, organ: str, segmentation_id: str | None = None, planes: list[str] | None = None
    ) -> CallToolResult:
        await ct.work("view_organ", organ)
        pictures = tuple(
            Picture(
                uri=f"picture://{SCAN}/{LABELS}/{organ}/{plane}",
                organ=organ,
                plane=plane,
                slice_index=3,
                position_mm=9.0,
                width=8,
                height=6,
            )
            for plane in ("axial", "coronal", "sagittal")
        )
        return _done(
            PictureSet(scan_id=scan_id, segmentation_id=LABELS, organ=organ, present=True, pictures=pictures)
        )


def _add_resources(server: MCPServer, ct: FakeCT) -> None:
    @server.resource("tokens://{scan}/{checkpoint}/global", mime_type="application/octet-stream")
    async def global_tokens(scan: str, checkpoint: str) -> bytes:
        ct.reads.append("global")
        return save({"tokens": torch.zeros(2, HIDDEN)})

    @server.resource("tokens://{scan}/{checkpoint}/{labels}/{organ}", mime_type="application/octet-stream")
    async def roi_tokens(scan: str, checkpoint: str, labels: str, organ: str) -> bytes:
        ct.reads.append(organ)
        return save({"tokens": torch.full((1, HIDDEN), float(IDS[organ]))})

    @server.resource(
        "tokens://{scan}/{checkpoint}/{labels}/{organ}/zoom", mime_type="application/octet-stream"
    )
    async def zoom_tokens(scan: str, checkpoint: str, labels: str, organ: str) -> bytes:
        ct.reads.append(f"{organ} zoomed")
        return save({"tokens": torch.full((2, HIDDEN), IDS[organ] + 0.5)})

    @server.resource("picture://{scan}/{labels}/{organ}/{plane}", mime_type="image/png")
    async def picture(scan: str, labels: str, organ: str, plane: str) -> bytes:
        ct.reads.append(f"{organ} {plane}")
        return png(grey=IDS[organ])


class ScriptedModel(BaseChatModel):
    """Says its replies in order, word by word, and remembers what it was sent."""

    replies: list[str]
    endless: bool = False
    """Start over at the end instead of failing."""
    finish_reason: str = "stop"
    checkpoint_id: str = CHECKPOINT
    _calls: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    @property
    def calls(self) -> list[list[BaseMessage]]:
        return self._calls

    @property
    def said(self) -> list[list[tuple[str, list[str]]]]:
        """Every call in short: role and parts, tokens as ``<τ_g>`` and ``<τ_l liver>``."""
        return [[(message.type, list(_short(message.content))) for message in call] for call in self._calls]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def reply_to(self, messages: list[BaseMessage]) -> str:
        """The next reply: as many as there were calls before this one."""
        index = len(self._calls) - 1
        return self.replies[index % len(self.replies) if self.endless else index]

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        self._calls.append(messages)
        words = self.reply_to(messages).split(" ")
        for index, word in enumerate(words):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word if index == 0 else f" {word}"))
        number = 1 + sum(isinstance(message, AIMessage) for message in messages)
        usage = UsageMetadata(
            input_tokens=100 * number,
            output_tokens=len(words),
            total_tokens=100 * number + len(words),
            input_token_details=InputTokenDetails(cache_read=100 * (number - 1)),
        )
        last = AIMessageChunk(
            content="", usage_metadata=usage, response_metadata={"finish_reason": self.finish_reason}
        )
        yield ChatGenerationChunk(message=last)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(
            generations=[ChatGeneration(message=chunk.message) for chunk in self._stream(messages)]
        )


def _short(content: str | list[Any]) -> Iterator[str]:
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        if part["type"] == "text":
            yield part["text"]
        elif part["type"] == "prompt_embeds":
            yield tokens_label(part["data"])
        else:
            yield "<picture>"


def tokens_label(data: str) -> str:
    tensor = torch.load(io.BytesIO(base64.b64decode(data)), weights_only=True)
    number = int(tensor[0, 0])
    return f"<τ_l {ORGANS[number]}>" if number else "<τ_g>"


def work_log(disk: Path) -> list[str]:
    """What was really done with this folder, in order."""
    log = disk / "work.log"
    return log.read_text().splitlines() if log.exists() else []
