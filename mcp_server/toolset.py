"""The tools: descriptions for whoever calls them; the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult
from pydantic import Field

from tumorchain_agent.mcp_server import texts
from tumorchain_agent.mcp_server.arguments import (
    WAIT_S,
    LesionMask,
    Masks,
    Organ,
    Plane,
    ScanId,
    ScanPath,
    SegmentationId,
    Structure,
    Volume,
    Wait,
    Zoom,
)
from tumorchain_agent.mcp_server.background import Jobs
from tumorchain_agent.mcp_server.declare import declared
from tumorchain_agent.mcp_server.job_tools import JobTools
from tumorchain_agent.mcp_server.results import (
    ClassificationSet,
    Comparison,
    Explanation,
    LesionSet,
    MeasurementSet,
    OrganList,
    PictureSet,
    Segmentation,
)
from tumorchain_agent.mcp_server.tasks import Runner, blocking
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import Answer, EvidenceKind, Record, ScanInfo, TokenSet
from tumorchain_agent.tools.contact import Contact


class Toolset:
    """Each method is a tool of the same name; its docstring is what the calling model reads."""

    def __init__(self, workbench: Workbench, runner: Runner) -> None:
        """With ``Jobs`` as the runner, what takes long goes on by itself, and there are tools to look at it."""
        self._bench = workbench
        self._runner = runner
        self._explain = blocking(workbench.explain, texts.tell_explanation)
        self._list_organs = blocking(workbench.list_organs, texts.tell_organs)

    def tools(self) -> list[Tool]:
        common = [
            self._slow(self.open_scan, "Open a CT scan", ScanInfo),
            declared(self.list_organs, "List organs"),
            self._slow(self.segment_organs, "Segment organs", Segmentation),
            self._slow(self.measure_organs, "Measure organs", MeasurementSet),
            self._slow(self.measure_lesions, "Measure lesions", LesionSet),
            self._slow(self.measure_contact, "Measure contact of two structures", Contact),
            self._slow(self.compare_scans, "Compare two scans of a patient", Comparison),
            self._slow(self.encode_scan, "Encode the scan", TokenSet),
            self._slow(self.extract_roi_tokens, "Extract an organ's tokens", TokenSet),
            self._slow(self.classify_abnormality, "Classify abnormality", ClassificationSet),
            self._slow(self.view_organ, "View an organ", PictureSet),
            self._slow(self.ask, "Ask about a CT scan", Answer),
            declared(self.explain, "Explain a claim of an answer"),
        ]
        return [*common, *JobTools(self._runner).tools()] if isinstance(self._runner, Jobs) else common

    def _slow(self, function: Callable[..., Any], title: str, result: type[Record]) -> Tool:
        """Only where there are jobs may a job's status come in the result's place; clients check every result."""
        return declared(function, title, result if isinstance(self._runner, Jobs) else None)

    async def open_scan(
        self, path: ScanPath, ctx: Context, volume: Volume = None, wait_seconds: Wait = WAIT_S
    ) -> Annotated[CallToolResult, ScanInfo]:
        """Open a 3-D CT scan from a file and get its scan_id, which all other tools take.

        Call this first. The id is a hash of the voxels, so the same scan always has the same id, and it stays
        valid after a restart of the server. Returns shape, spacing and HU range; `gate`, guesses with a
        confidence of modality, contrast phase, field of view, orientation and slice thickness, to be checked
        before anything is concluded; and notices, e.g. when the file looks like MR."""
        return await self._run("open_scan", ctx, wait_seconds, path=path, volume=volume)

    async def list_organs(
        self,
        ctx: Context,
        scan_id: Annotated[str | None, Field(description="Also tell which organs this scan holds.")] = None,
    ) -> Annotated[CallToolResult, OrganList]:
        """List the 56 organs that the other tools know, and how this machine can segment them.

        Each with synonyms and TotalSegmentator classes; weights that are not available and tasks that need a
        licence, with the reason. With the scan_id of a scan that has been segmented, `present` says which
        organs were found in it."""
        return await self._list_organs.run({"scan_id": scan_id}, ctx)

    async def segment_organs(
        self,
        scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None,
            Field(description="Segment these, list masks of these; default all."),
        ] = None,
        masks: Masks = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, Segmentation]:
        """Segment all organs of a scan with TotalSegmentator, or take over a label map that exists already.

        Takes seconds to minutes; sends progress. Name organs to wait only for what finds them: official weights
        are five networks, each runs once. Cached: a second call returns at once. Returns the
        segmentation_id, the organs present, and mask:// resources (.nii.gz). An organ that is not present was
        not found in the scan: it is not assessed, which does not mean normal."""
        return await self._run(
            "segment_organs", ctx, wait_seconds, scan_id=scan_id, organs=organs, masks=masks
        )

    async def measure_organs(
        self,
        scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None, Field(description="Organs to measure; default all 56, and all structures.")
        ] = None,
        segmentation_id: SegmentationId = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, MeasurementSet]:
        """Measure organs: volume in ml, HU mean, sd and percentiles, largest diameters in mm, box, centroid.

        Numbers come from the segmentation, not from a language model: prefer them to estimates. `cut_by_edge`
        marks organs that the scan's border cuts, whose volume is a lower bound."""
        return await self._run(
            "measure_organs",
            ctx,
            wait_seconds,
            scan_id=scan_id,
            organs=organs,
            segmentation_id=segmentation_id,
        )

    async def measure_lesions(
        self,
        scan_id: ScanId,
        mask: LesionMask,
        ctx: Context,
        segmentation_id: SegmentationId = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, LesionSet]:
        """Measure each lesion of a mask: volume, HU, long and short axial diameter in mm (RECIST), its organ.

        The mask is drawn by someone else; this server does not find lesions. The organ is known once the scan
        has been segmented."""
        return await self._run(
            "measure_lesions",
            ctx,
            wait_seconds,
            scan_id=scan_id,
            mask=mask,
            segmentation_id=segmentation_id,
        )

    async def measure_contact(
        self,
        scan_id: ScanId,
        a: Structure,
        b: Structure,
        ctx: Context,
        mask: Annotated[LesionMask | None, Field(description='The mask that "lesion" stands for.')] = None,
        segmentation_id: SegmentationId = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, Contact]:
        """Measure how structure a lies to structure b: nearest distance, area of contact, encasement in degrees.

        For a tumor and a vessel, pass the tumor's mask and a="lesion", b the vessel: `max_encasement_deg` is the
        largest part of the vessel's outline that the tumor touches in an axial slice."""
        return await self._run(
            "measure_contact",
            ctx,
            wait_seconds,
            scan_id=scan_id,
            a=a,
            b=b,
            mask=mask,
            segmentation_id=segmentation_id,
        )

    async def compare_scans(
        self,
        earlier_scan_id: ScanId,
        later_scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None, Field(description="Organs to compare; default those of either scan.")
        ] = None,
        earlier_segmentation_id: SegmentationId = None,
        later_segmentation_id: SegmentationId = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, Comparison]:
        """Compare two scans of one patient organ by organ: change of volume, HU and diameter.

        `beyond_method_error` is false where a change is as small as two segmentations of one organ differ.
        Organs that are absent, or cut by the edge of either scan, are not compared. Read the notices: other
        contrast, slice thickness or way of segmenting makes changes doubtful."""
        return await self._run(
            "compare_scans",
            ctx,
            wait_seconds,
            earlier_scan_id=earlier_scan_id,
            later_scan_id=later_scan_id,
            organs=organs,
            earlier_segmentation_id=earlier_segmentation_id,
            later_segmentation_id=later_segmentation_id,
        )

    async def encode_scan(
        self, scan_id: ScanId, ctx: Context, wait_seconds: Wait = WAIT_S
    ) -> Annotated[CallToolResult, TokenSet]:
        """Encode the whole scan with the TumorChain checkpoint into 256 global tokens (a tokens:// resource).

        Only of use to a TumorChain language model of the same checkpoint_id; other models should use
        measure_organs, classify_abnormality and view_organ. The notices say when the scan is unlike anything
        the checkpoint was trained on."""
        return await self._run("encode_scan", ctx, wait_seconds, scan_id=scan_id)

    async def extract_roi_tokens(
        self,
        scan_id: ScanId,
        organ: Organ,
        ctx: Context,
        segmentation_id: SegmentationId = None,
        zoom: Zoom = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, TokenSet]:
        """Extract the tokens of one organ (a tokens:// resource), for a TumorChain language model.

        A checkpoint that was trained with ROI zoom gives a second resource in `zoom`: tokens of the organ's crop.
        An organ that was not found in the scan gives count 0 and a notice: it is not assessed, which does not
        mean normal."""
        return await self._run(
            "extract_roi_tokens",
            ctx,
            wait_seconds,
            scan_id=scan_id,
            organ=organ,
            segmentation_id=segmentation_id,
            zoom=zoom,
        )

    async def classify_abnormality(
        self,
        scan_id: ScanId,
        ctx: Context,
        organs: Annotated[
            list[str] | None, Field(description="Organs to classify; default all that the scan holds.")
        ] = None,
        segmentation_id: SegmentationId = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, ClassificationSet]:
        """Classify organs as normal or abnormal with the checkpoint's classifier: p_abnormal in [0, 1].

        A research classifier, not a diagnosis: read the notices. "not assessed" (organ absent or out of the
        model's view) does not mean normal."""
        return await self._run(
            "classify_abnormality",
            ctx,
            wait_seconds,
            scan_id=scan_id,
            organs=organs,
            segmentation_id=segmentation_id,
        )

    async def view_organ(
        self,
        scan_id: ScanId,
        organ: Organ,
        ctx: Context,
        planes: Annotated[list[Plane] | None, Field(description="Default: all three.")] = None,
        segmentation_id: SegmentationId = None,
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, PictureSet]:
        """Draw windowed slices through an organ's largest cross-section with its outline.

        The pictures are picture:// PNG resources: read one to see it. Radiological display: the patient's
        right is on the left."""
        return await self._run(
            "view_organ",
            ctx,
            wait_seconds,
            scan_id=scan_id,
            organ=organ,
            planes=planes,
            segmentation_id=segmentation_id,
        )

    async def ask(
        self,
        path: ScanPath,
        question: Annotated[
            str,
            Field(
                description="What to find out, in a sentence.",
                examples=["Is there a tumor in the pancreas, and what TNM stage?"],
            ),
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
        wait_seconds: Wait = WAIT_S,
    ) -> Annotated[CallToolResult, Answer]:
        """Answer a question about a CT scan by TumorChain's iterative reasoning: the whole chain in one call.

        Looks at the whole scan, then examines organ after organ as the reasoning reaches them, from findings
        to impression to TNM, with the evidence of each sentence. Takes minutes; sends progress. Asking the
        same again returns the same answer at once, and a run that was cut off goes on where it stopped.
        Research output, not a diagnosis."""
        return await self._run(
            "ask",
            ctx,
            wait_seconds,
            path=path,
            question=question,
            masks=masks,
            evidence=evidence,
            history=history,
            max_rounds=max_rounds,
            volume=volume,
            zoom=zoom,
        )

    async def explain(
        self,
        answer_id: Annotated[str, Field(description="The thread_id of an answer of ask.")],
        claim: Annotated[int, Field(description="Number of the sentence in the answer's claims, from 1.")],
        ctx: Context,
    ) -> Annotated[CallToolResult, Explanation]:
        """Explain one claim of an answer: the evidence that the language model was shown, organ by organ.

        `organs_without_evidence` were named but never examined: do not repeat what the claim says of them."""
        return await self._explain.run({"answer_id": answer_id, "claim": claim}, ctx)

    async def _run(self, tool: str, ctx: Context, wait_s: float, /, **arguments: Any) -> CallToolResult:
        given = {name: value for name, value in arguments.items() if value is not None}
        return await self._runner.call(tool, given, ctx, wait_s)
