"""Resources behind the URIs of results: tokens, masks and pictures as binary, measurements and Cls as JSON.

All are templates: their contents follow from the URI, so one of an earlier process is read, or made, again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError

from tumorchain_agent.errors import InputError, TumorChainError
from tumorchain_agent.mcp_server import uris
from tumorchain_agent.mcp_server.answers import Render
from tumorchain_agent.mcp_server.calls import T, in_thread
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.workbench import Workbench

SAFETENSORS = "application/vnd.safetensors"
NIFTI = "application/gzip"
PNG = "image/png"
JSON = "application/json"
JSON_LINES = "application/jsonl"
HTML = "text/html"


class Resources:
    """One reader for each template of :mod:`~tumorchain_agent.mcp_server.uris`."""

    def __init__(self, workbench: Workbench, render: Render | None = None) -> None:
        """Reports are made by ``render``; without one there are none."""
        self._bench = workbench
        self._render = render

    def register(self, server: MCPServer[None]) -> None:
        for template, reader, mime_type, description in (
            (uris.GLOBAL_TOKENS, self.global_tokens, SAFETENSORS, "τ_g: tensor 'tokens' [256, hidden]"),
            (uris.ROI_TOKENS, self.roi_tokens, SAFETENSORS, "τ_l of an organ: tensor 'tokens' [n, hidden]"),
            (
                uris.ZOOM_TOKENS,
                self.zoom_tokens,
                SAFETENSORS,
                "an organ's zoomed tokens: 'tokens' [n, hidden]",
            ),
            (uris.LABEL_MAP, self.label_map, NIFTI, "label map, TotalSegmentator ids 1..117, .nii.gz"),
            (uris.MASK, self.mask, NIFTI, "binary mask of an organ, .nii.gz on the CT's RAS+ grid"),
            (uris.PICTURE, self.picture, PNG, "slice through an organ with its outline"),
            (uris.MEASUREMENT, self.measurement, JSON, "measurements of an organ"),
            (uris.CLASSIFICATION, self.classification, JSON, "abnormality classification of an organ"),
            (uris.SCAN, self.scan, JSON, "what is known of a CT: shape, spacing, HU range, notices"),
            (uris.TRACE, self.trace, JSON_LINES, "all that an answer was made of, one record a line"),
        ):
            server.resource(template, mime_type=mime_type, description=description)(reader)
        if self._render is not None:
            about = "an answer as a page for people, with pictures and measurements"
            server.resource(uris.REPORT, mime_type=HTML, description=about)(self.reporter(self._render))

    async def global_tokens(self, scan_id: str, checkpoint_id: str, ctx: Context) -> bytes:
        return await self._read(
            scan_id, lambda job: self._bench.global_tokens_file(scan_id, checkpoint_id, job), ctx
        )

    async def roi_tokens(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, ctx: Context
    ) -> bytes:
        return await self._read(
            scan_id,
            lambda job: self._bench.roi_tokens_file(scan_id, checkpoint_id, segmentation_id, organ, job),
            ctx,
        )

    async def zoom_tokens(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, ctx: Context
    ) -> bytes:
        return await self._read(
            scan_id,
            lambda job: self._bench.zoom_tokens_file(scan_id, checkpoint_id, segmentation_id, organ, job),
            ctx,
        )

    async def label_map(self, scan_id: str, segmentation_id: str, ctx: Context) -> bytes:
        return await self._read(
            scan_id, lambda job: self._bench.label_map_file(scan_id, segmentation_id, job), ctx
        )

    async def mask(self, scan_id: str, segmentation_id: str, organ: str, ctx: Context) -> bytes:
        return await self._read(
            scan_id, lambda job: self._bench.mask_file(scan_id, segmentation_id, organ, job), ctx
        )

    async def picture(
        self, scan_id: str, segmentation_id: str, organ: str, plane: str, window: str, ctx: Context
    ) -> bytes:
        return await self._read(
            scan_id,
            lambda job: self._bench.picture_file(scan_id, segmentation_id, organ, plane, window, job),
            ctx,
        )

    async def measurement(self, scan_id: str, segmentation_id: str, organ: str, ctx: Context) -> str:
        found = await self._read(
            scan_id, lambda job: self._bench.measurement(scan_id, segmentation_id, organ, job), ctx
        )
        return found.model_dump_json()

    async def classification(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, ctx: Context
    ) -> str:
        found = await self._read(
            scan_id,
            lambda job: self._bench.classification(scan_id, checkpoint_id, segmentation_id, organ, job),
            ctx,
        )
        return found.model_dump_json()

    async def scan(self, scan_id: str, ctx: Context) -> str:
        found = await self._read(scan_id, lambda job: self._bench.scan_info(scan_id), ctx)
        return found.model_dump_json()

    async def trace(self, answer_id: str, ctx: Context) -> str:
        return await self._read(None, lambda job: self._bench.trace(answer_id, job), ctx)

    def reporter(self, render: Render) -> Callable[..., Awaitable[str]]:
        """The reader of reports."""

        async def report(answer_id: str, ctx: Context) -> str:
            return await self._read(None, lambda job: self._bench.report(answer_id, render, job), ctx)

        return report

    async def _read(self, scan_id: str | None, work: Callable[[Job], T], ctx: Context) -> T:
        """A protocol error for what can't be read, ``code: message``."""
        try:
            if scan_id is not None:
                self._bench.check_allowed(scan_id)
            return await in_thread(work, ctx)
        except InputError as error:
            raise ResourceNotFoundError(f"{error.code}: {error}") from error
        except TumorChainError as error:
            raise ResourceError(f"{error.code}: {error}") from error
