"""The tools of the MCP server as typed async methods; whatever transport the client uses.

A tool error comes back as the exception of :mod:`tumorchain_agent.errors` that the server raised.
"""

from __future__ import annotations

import base64
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from pydantic import ValidationError

from tumorchain_agent import errors
from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.records import (
    Classification,
    Measurement,
    Notice,
    Picture,
    Record,
    ScanInfo,
    SegmentationInfo,
    TokenSet,
)

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

ERROR_META: Final = "tumorchain/error"
"""Key in a tool result's ``_meta`` that holds ``code`` and ``message`` of our error."""

MAX_PICTURE_BYTES: Final = 256 * 1024
DEFAULT_MEMORY_BYTES: Final = 256 * 2**20

_CODED: Final = re.compile(r"(?:Error executing tool \w+: )?(\w+): (.+)", re.DOTALL)
_OUR_ERRORS: Final[dict[str, type[TumorChainError]]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, TumorChainError)
}

R = TypeVar("R", bound=Record)
OnProgress = Callable[[float | None, str], None]
"""``on_progress(fraction or None, message)``."""


@dataclass(frozen=True)
class Segmented:
    """A label map on the server and the names that other tools and resources know it by."""

    segmentation_id: str
    info: SegmentationInfo
    label_map_uri: str | None = None
    mask_uris: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    measurements: tuple[Measurement, ...]
    uris: dict[str, str]
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Classified:
    classifications: tuple[Classification, ...]
    uris: dict[str, str]
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Pictured:
    pictures: tuple[Picture, ...]
    notices: tuple[Notice, ...]


@asynccontextmanager
async def connect(server: Any, **options: Any) -> AsyncIterator[Client]:
    """``mcp.Client(server)``; an error raised inside comes out as it is, not wrapped by its task group."""
    from mcp import Client

    try:
        async with Client(server, **options) as client:
            yield client
    except BaseExceptionGroup as group:
        raise _only(group) from None


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


class CTTools:
    """One client's view of the server; resources that were read stay in memory, oldest use out first."""

    def __init__(self, client: Client, *, memory_bytes: int = DEFAULT_MEMORY_BYTES) -> None:
        self._client = client
        self._memory_bytes = memory_bytes
        self._read: OrderedDict[str, str] = OrderedDict()
        self._restored: set[tuple[str, str]] = set()
        self._restoring = anyio.Lock()

    async def open_scan(
        self, path: str, volume: int | None = None, on_progress: OnProgress | None = None
    ) -> ScanInfo:
        """Open a CT file, folder or zip on the server's machine."""
        content = await self._call("open_scan", on_progress, path=path, volume=volume)
        return self._record(ScanInfo, "open_scan", content)

    async def segment_organs(
        self,
        scan_id: str,
        masks: str | None = None,
        on_progress: OnProgress | None = None,
        organs: Sequence[str] | None = None,
    ) -> Segmented:
        """Segment with the networks that find ``organs`` (default all), or take over the label map ``masks``."""
        content = await self._call(
            "segment_organs", on_progress, scan_id=scan_id, masks=masks, organs=organs and list(organs)
        )
        info = self._record(SegmentationInfo, "segment_organs", content.get("info"))
        segmentation_id = str(content.get("segmentation_id", info.weights_id))
        self._restored.add((scan_id, segmentation_id))
        links = {link["organ"]: link["uri"] for link in content.get("masks", ())}
        return Segmented(segmentation_id, info, content.get("label_map_uri"), links)

    async def measure_organs(
        self, scan_id: str, segmentation_id: str | None = None, organs: list[str] | None = None
    ) -> Measured:
        """Measurements of the organs; all of them, and TotalSegmentator's structures, when none are named."""
        content = await self._call(
            "measure_organs", scan_id=scan_id, segmentation_id=segmentation_id, organs=organs
        )
        records = self._records(Measurement, "measure_organs", content, "measurements")
        return Measured(records, content.get("uris", {}), self._notices("measure_organs", content))

    async def encode_scan(self, scan_id: str, on_progress: OnProgress | None = None) -> TokenSet:
        """τ_g of the scan."""
        content = await self._call("encode_scan", on_progress, scan_id=scan_id)
        return self._record(TokenSet, "encode_scan", content)

    async def extract_roi_tokens(
        self, scan_id: str, segmentation_id: str, organ: str, zoom: bool | None = None
    ) -> TokenSet:
        """τ_l of one organ, with those of its crop unless ``zoom`` is false; ``count`` is 0 for an absent organ."""
        content = await self._call(
            "extract_roi_tokens", scan_id=scan_id, segmentation_id=segmentation_id, organ=organ, zoom=zoom
        )
        return self._record(TokenSet, "extract_roi_tokens", content)

    async def classify_abnormality(self, scan_id: str, segmentation_id: str, organs: list[str]) -> Classified:
        """Cls of each organ."""
        content = await self._call(
            "classify_abnormality", scan_id=scan_id, segmentation_id=segmentation_id, organs=organs
        )
        records = self._records(Classification, "classify_abnormality", content, "classifications")
        return Classified(records, content.get("uris", {}), self._notices("classify_abnormality", content))

    async def view_organ(self, scan_id: str, segmentation_id: str, organ: str) -> Pictured:
        """One slice through the organ in each of three planes, outlined."""
        content = await self._call(
            "view_organ", scan_id=scan_id, segmentation_id=segmentation_id, organ=organ
        )
        records = self._records(Picture, "view_organ", content, "pictures")
        return Pictured(records, self._notices("view_organ", content))

    async def restore(
        self,
        path: str,
        volume: int | None,
        scan_id: str,
        segmentation_id: str,
        masks: str | None,
        organs: Sequence[str] | None = None,
    ) -> None:
        """Make sure that this server has the scan and its label map of ``organs``, e.g. after a restart.

        Raises InputError when the file or the segmentation is no longer the one that the question began
        with.
        """
        async with self._restoring:
            if (scan_id, segmentation_id) in self._restored:
                return
            scan = await self.open_scan(path, volume)
            if scan.scan_id != scan_id:
                raise errors.InputError(
                    f"{path} has changed since the question began; ask again with --fresh"
                )
            segmented = await self.segment_organs(scan_id, masks, organs=organs)
            if segmented.segmentation_id != segmentation_id:
                raise errors.InputError(
                    f"the segmentation of {path} changed since the question began; ask again with --fresh"
                )

    async def tokens(self, uri: str, count: int) -> str:
        """Evidence tokens as the ``data`` of a ``prompt_embeds`` part; there must be ``count`` of them."""
        if uri not in self._read:
            self._remember(uri, _prompt_embeds(uri, count, await self.read(uri)))
        return self._recall(uri)

    async def picture(self, uri: str) -> str:
        """A PNG as a data URI, 256 kB at most."""
        if uri not in self._read:
            png = await self.read(uri)
            if len(png) > MAX_PICTURE_BYTES:
                raise TumorChainError(
                    f"{uri} has {len(png):,} bytes; a picture may have {MAX_PICTURE_BYTES:,} at most"
                )
            self._remember(uri, "data:image/png;base64," + base64.b64encode(png).decode())
        return self._recall(uri)

    def _remember(self, uri: str, text: str) -> None:
        self._read[uri] = text
        while len(self._read) > 1 and sum(map(len, self._read.values())) > self._memory_bytes:
            self._read.popitem(last=False)

    def _recall(self, uri: str) -> str:
        self._read.move_to_end(uri)
        return self._read[uri]

    async def _call(
        self, tool: str, on_progress: OnProgress | None = None, **arguments: Any
    ) -> dict[str, Any]:
        given = {name: value for name, value in arguments.items() if value is not None}

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            if on_progress is not None:
                on_progress(progress / total if total else None, message or "")

        listen = progressed if on_progress else None
        called = self._client.call_tool(tool, given, progress_callback=listen)
        content = _content(tool, await _protocol(tool, called))
        while content.get("status") == "running" and "job_id" in content:
            fetched = self._client.call_tool(
                "get_job", {"job_id": content["job_id"]}, progress_callback=listen
            )
            status = _content(tool, await _protocol(tool, fetched))
            content = status if status.get("result") is None else status["result"]
        return content

    async def read(self, uri: str) -> bytes:
        """A binary resource as it is: a mask, a picture, a tokens file."""
        result = await _protocol(uri, self._client.read_resource(uri, cache_mode="bypass"))
        for content in result.contents:
            if (blob := getattr(content, "blob", None)) is not None:
                return base64.b64decode(blob)
        raise TumorChainError(f"resource {uri} holds no binary content; use tumorchain-agent's own server")

    def _record(self, kind: type[R], tool: str, content: Any) -> R:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise TumorChainError(
                f"tool {tool} returned no valid {kind.__name__} ({where}: {first['msg']}); "
                "client and server must be of the same version"
            ) from error

    def _records(self, kind: type[R], tool: str, content: dict[str, Any], key: str) -> tuple[R, ...]:
        return tuple(self._record(kind, tool, item) for item in content.get(key, ()))

    def _notices(self, tool: str, content: dict[str, Any]) -> tuple[Notice, ...]:
        return self._records(Notice, tool, content, "notices")


T = TypeVar("T")


async def _protocol(name: str, request: Awaitable[T]) -> T:
    """The result of a request; a protocol error becomes ours."""
    from mcp import MCPError

    try:
        return await request
    except MCPError as error:
        raise _coded_error(error.message) or TumorChainError(
            f"the MCP server could not answer {name}: {_one_line(error.message)}; see its log"
        ) from error


def _content(tool: str, result: CallToolResult) -> dict[str, Any]:
    """What a program reads of a tool's result; an error of the tool is raised."""
    if result.is_error:
        raise _tool_error(tool, result)
    if not isinstance(result.structured_content, dict):
        raise TumorChainError(
            f"tool {tool} returned no structured content; use tumorchain-agent's own server"
        )
    return result.structured_content


def _tool_error(tool: str, result: CallToolResult) -> TumorChainError:
    detail = (result.meta or {}).get(ERROR_META)
    if isinstance(detail, dict) and detail.get("code") in _OUR_ERRORS:
        return _OUR_ERRORS[detail["code"]](_one_line(str(detail.get("message", ""))))
    text = " ".join(getattr(block, "text", "") for block in result.content)
    return _coded_error(text) or TumorChainError(
        f"tool {tool} failed: {_one_line(text)}; see the MCP server's log"
    )


def _coded_error(text: str) -> TumorChainError | None:
    """``ScanError: ct.nii.gz is 4-D …`` → that error."""
    match = _CODED.fullmatch(text.strip())
    if match is None or match[1] not in _OUR_ERRORS:
        return None
    return _OUR_ERRORS[match[1]](_one_line(match[2]))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _prompt_embeds(uri: str, count: int, blob: bytes) -> str:
    from safetensors import SafetensorError
    from safetensors.torch import load

    from tumorchain_agent.model.template import encode_embeds

    try:
        tokens = load(blob)["tokens"]
    except (SafetensorError, KeyError) as error:
        raise TumorChainError(
            f"{uri} is no safetensors file with a tensor 'tokens' ({error}); encode the scan again"
        ) from error
    if tokens.shape[0] != count:
        raise TumorChainError(
            f"{uri} holds {tokens.shape[0]} tokens where {count} were announced; encode the scan again"
        )
    return encode_embeds(tokens)
