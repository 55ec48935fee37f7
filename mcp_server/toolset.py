"""The nine tools: arguments and descriptions for whoever calls them; the work is done elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import ConfigDict, Field

from tumorchain_agent.mcp_server import texts
from tumorchain_agent.mcp_server.asking import Asker, Connect
from tumorchain_agent.mcp_server.calls import answered, in_thread
from tumorchain_agent.mcp_server.results import (
    ClassificationSet,
    MeasurementSet,
    OrganList,
    PictureSet,
    Segmentation,
)
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import Answer, EvidenceKind, ScanInfo, TokenSet

ScanId = Annotated[str, Field(description="The scan_id that open_scan returned.")]
Organ = Annotated[
    str,
    Field(description='One of the 56 organs of list_organs, or a synonym, e.g. "liver", "pancreatic tail".'),
]
SegmentationId = Annotated[
    str | None,
    Field(
        description="Which label map to use: the segmentation_id of segment_organs. "
        "Default: the scan's latest; a scan without one is segmented first (minutes on a CPU)."
    ),
]
ScanPath = Annotated[
    str,
    Field(description="CT on the server's machine: .nii, .nii.gz, a DICOM series folder or a .zip of one."),
]
Volume = Annotated[
    int | None, Field(ge=0, description="Which volume of a 4-D NIfTI, or series of a DICOM folder, from 0.")
]
Masks = Annotated[
    str | None,
    Field(
        description="Label map on the server's machine to use instead of segmenting: .nii.gz on the scan's "
        "grid, ids of TotalSegmentator's task total v2."
    ),
]
Zoom = Annotated[
    bool | None,
    Field(
        description="Also look at each organ's own crop at higher resolution. "
        "Default: as the checkpoint was trained."
    ),
]
Plane = Literal["axial", "coronal", "sagittal"]


class Toolset:
    """Each method is a tool of the same name; its docstring is what the calling model reads."""

    def __init__(self, workbench: Workbench, connect: Connect) -> None:
        self._bench = workbench
        self._asker = Asker(workbench, connect)

    def tools(self) -> list[Tool]:
        return [
            _tool(self.open_scan, "Open a CT scan"),
            _tool(self.list_organs, "List organs"),
            _tool(self.segment_organs, "Segment organs"),
            _tool(self.measure_organs, "Measure organs"),
            _tool(self.encode_scan, "Encode the scan"),
            _tool(self.extract_roi_tokens, "Extract an organ's tokens"),
            _tool(self.classify_abnormality, "Classify abnormality"),
            _tool(self.view_organ, "View an organ"),
            _tool(self.ask, "Ask about a CT scan"),
        ]

    async def open_scan(
        self, path: ScanPath, ctx: Context, volume: Volume = None
    ) -> Annotated[CallToolResult, ScanInfo]:
        """Open a 3-D CT scan from a file and get its scan_id, which all other tools take.

        Call this first. The id is a hash of the voxels, so the same scan always has the same id, and it stays
        valid after a restart of the server. Returns shape, spacing and HU range, and notices, e.g. when the
        file looks like MR."""
        return await answered(
            in_thread(lambda job: self._bench.open_scan(path, volume, job), ctx), texts.tell_scan
        )

    async def list_organs(
        self,
        ctx: Context,
        scan_id: Annotated[str | None, Field(description="Also tell which organs this scan holds.")] = None,
    ) -> Annotated[CallToolResult, OrganList]:
        """List the 56 organs that the other tools know, and how this machine can segment them.

        Each with synonyms and TotalSegmentator classes; unavailable weights with the reason. With the
        scan_id of a scan that has been segmented, `present` says which organs were found in it."""
        return await answered(
            in_thread(lambda job: self._bench.list_organs(scan_id, job), ctx), texts.tell_organs
        )

    async def segment_organs(
        self,
        scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None, Field(description="Return mask links of these organs only; default all.")
        ] = None,
        masks: Masks = None,
    ) -> Annotated[CallToolResult, Segmentation]:
        """Segment all organs of a scan with TotalSegmentator, or take over a label map that exists already.

        Takes seconds to minutes; sends progress. Cached: a second call returns at once. Returns the
        segmentation_id, the organs present, and mask:// resources (.nii.gz). An organ that is not present was
        not found in the scan: it is not assessed, which does not mean normal."""
        return await answered(
            in_thread(lambda job: self._bench.segment_organs(scan_id, organs, masks, job), ctx),
            texts.tell_segmentation,
        )

    async def measure_organs(
        self,
        scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None, Field(description="Organs to measure; default all 56, and all structures.")
        ] = None,
        segmentation_id: SegmentationId = None,
    ) -> Annotated[CallToolResult, MeasurementSet]:
        """Measure organs: volume in ml, HU mean, sd and percentiles, largest diameters in mm, box, centroid.

        Numbers come from the segmentation, not from a language model: prefer them to estimates. `cut_by_edge`
        marks organs that the scan's border cuts, whose volume is a lower bound."""
        return await answered(
            in_thread(lambda job: self._bench.measure_organs(scan_id, organs, segmentation_id, job), ctx),
            texts.tell_measurements,
        )

    async def encode_scan(self, scan_id: ScanId, ctx: Context) -> Annotated[CallToolResult, TokenSet]:
        """Encode the whole scan with the TumorChain checkpoint into 256 global tokens (a tokens:// resource).

        Only of use to a TumorChain language model of the same checkpoint_id; other models should use
        measure_organs, classify_abnormality and view_organ. The notices say when the scan is unlike anything
        the checkpoint was trained on."""
        return await answered(
            in_thread(lambda job: self._bench.encode_scan(scan_id, job), ctx), texts.tell_tokens
        )

    async def extract_roi_tokens(
        self,
        scan_id: ScanId,
        organ: Organ,
        ctx: Context,
        segmentation_id: SegmentationId = None,
        zoom: Zoom = None,
    ) -> Annotated[CallToolResult, TokenSet]:
        """Extract the tokens of one organ (a tokens:// resource), for a TumorChain language model.

        A checkpoint that was trained with ROI zoom gives a second resource in `zoom`: tokens of the organ's crop.
        An organ that was not found in the scan gives count 0 and a notice: it is not assessed, which does not
        mean normal."""
        return await answered(
            in_thread(
                lambda job: self._bench.extract_roi_tokens(scan_id, organ, segmentation_id, zoom, job), ctx
            ),
            texts.tell_tokens,
        )

    async def classify_abnormality(
        self,
        scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None, Field(description="Organs to classify; default all that the scan holds.")
        ] = None,
        segmentation_id: SegmentationId = None,
    ) -> Annotated[CallToolResult, ClassificationSet]:
        """Classify organs as normal or abnormal with the checkpoint's classifier: p_abnormal in [0, 1].

        A research classifier, not a diagnosis: read the notices. "not assessed" (organ absent or out of the
        model's view) does not mean normal."""
        return await answered(
            in_thread(
                lambda job: self._bench.classify_abnormality(scan_id, organs, segmentation_id, job), ctx
            ),
            texts.tell_classifications,
        )

    async def view_organ(
        self,
        scan_id: ScanId,
        organ: Organ,
        ctx: Context,
        planes: Annotated[list[Plane] | None, Field(description="Default: all three.")] = None,
        segmentation_id: SegmentationId = None,
    ) -> Annotated[CallToolResult, PictureSet]:
        """Draw windowed slices through an organ's largest cross-section with its outline.

        The pictures are picture:// PNG resources: read one to see it. Radiological display: the patient's
        right is on the left."""
        return await answered(
            in_thread(lambda job: self._bench.view_organ(scan_id, organ, planes, segmentation_id, job), ctx),
            texts.tell_pictures,
        )

    async def ask(
        self,
        path: ScanPath,
        question: Annotated[
            str, Field(description='E.g. "Is there a tumor in the pancreas, and what TNM stage?"')
        ],
        ctx: Context,
        masks: Masks = None,
        evidence: Annotated[
            EvidenceKind | None,
            Field(
                description="What the server's LLM can read: tokens (TumorChain, default), images or text."
            ),
        ] = None,
        history: Annotated[
            Literal["append", "latest"] | None,
            Field(description="Keep all rounds (append) or the latest (latest); default as trained."),
        ] = None,
        max_rounds: Annotated[int | None, Field(ge=1, description="Limit of rounds.")] = None,
        volume: Volume = None,
        zoom: Zoom = None,
    ) -> Annotated[CallToolResult, Answer]:
        """Answer a question about a CT scan by TumorChain's iterative reasoning: the whole chain in one call.

        Looks at the whole scan, then examines organ after organ as the reasoning reaches them, from findings
        to impression to TNM, with the evidence of each sentence. Takes minutes; sends progress. Asking the
        same again returns the same answer at once, and a run that was cut off goes on where it stopped.
        Research output, not a diagnosis."""
        return await answered(
            self._asker.ask(
                path,
                question,
                ctx,
                masks=masks,
                evidence=evidence,
                history=history,
                max_rounds=max_rounds,
                volume=volume,
                zoom=zoom,
            ),
            texts.tell_answer,
        )


def _tool(function: Callable[..., Any], title: str) -> Tool:
    """A tool that only reads, may be repeated, stays on this machine, and refuses unknown arguments."""
    tool = Tool.from_function(
        function,
        title=title,
        description=inspect.getdoc(function),
        annotations=ToolAnnotations(
            title=title,
            read_only_hint=True,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
        structured_output=True,
    )
    known = tool.fn_metadata.arg_model
    namespace = {"model_config": ConfigDict(extra="forbid"), "__module__": __name__}
    strict: Any = type(known.__name__, (known,), namespace)
    tool.fn_metadata.arg_model = strict
    tool.parameters = strict.model_json_schema(by_alias=True)
    return tool
