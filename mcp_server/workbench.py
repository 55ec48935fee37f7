"""The state behind the tools, with no MCP in it: blocking methods that return records, from any thread.

Open scans, label maps, tokens, classifications, measurements and pictures, all kept on disk by content, so
that nothing is segmented or encoded twice, whichever process asks. At most one scan is segmented and one
encoded at a time, side by side with each other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tumorchain_agent.errors import InputError
from tumorchain_agent.mcp_server import notices, uris
from tumorchain_agent.mcp_server.answers import Answers, Render, explain
from tumorchain_agent.mcp_server.guard import Guard, NoGuard
from tumorchain_agent.mcp_server.index import Index
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.measuring import PLANES, Measuring, Window
from tumorchain_agent.mcp_server.organ_list import licensed_tasks, organ_infos
from tumorchain_agent.mcp_server.relations import Relations
from tumorchain_agent.mcp_server.results import (
    ClassificationSet,
    Comparison,
    Explanation,
    LesionSet,
    MaskLink,
    MeasurementSet,
    OrganList,
    PictureSet,
    Segmentation,
)
from tumorchain_agent.mcp_server.scans import SCAN_MEMORY_BYTES, Scans
from tumorchain_agent.mcp_server.segmentations import Segmentations
from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.mcp_server.store import Store
from tumorchain_agent.mcp_server.views import Views
from tumorchain_agent.mcp_server.vision import Vision
from tumorchain_agent.records import (
    Answer,
    Classification,
    Measurement,
    Picture,
    ScanInfo,
    SegmentationInfo,
    TokenSet,
)
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.organs import organ_structures, resolve_organ

if TYPE_CHECKING:
    from tumorchain_agent.tools.contact import Contact
    from tumorchain_agent.tools.picture import Plane
    from tumorchain_agent.tools.segment import Segmenter

SILENT: Final = Job()


class Workbench:
    """One for each server. ``close`` ends the segmentation worker and drops what is in memory."""

    def __init__(
        self,
        settings: Settings,
        segmenter: Segmenter | None = None,
        guard: Guard | None = None,
        *,
        memory_bytes: int = SCAN_MEMORY_BYTES,
    ) -> None:
        """Without a ``guard`` any path is read: that is for a caller with the user's own rights.

        ``memory_bytes`` bounds the CTs that are kept in memory, and their label maps; 0 is for the latest alone.
        """
        from tumorchain_agent.tools.segment import Segmenter

        self.settings = settings
        self.guard: Guard = guard or NoGuard()
        self._segmenter = segmenter or Segmenter(settings)
        self._store = Store(settings)
        self._index = Index(settings.cache_dir / "index")
        self._scans = Scans(settings, self._index, self.guard, memory_bytes=memory_bytes)
        self._segmentations = Segmentations(
            settings, self._store, self._index, self._scans, self._segmenter, self.guard, memory_bytes
        )
        self.served = ServedCheckpoint(settings)
        views = Views(self._store, self._scans, self._segmentations, self.served)
        self._vision = Vision(self._store, self._segmentations, self.served, views)
        self._measuring = Measuring(settings, self._store, self._scans, self._segmentations)
        self._relations = Relations(self._scans, self._segmentations, self._measuring, self.guard)
        self.answers = Answers(self._index)

    def __enter__(self) -> Workbench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be used again afterwards; the worker then starts anew."""
        self._segmenter.close()
        self.served.close()
        self._scans.forget()
        self._segmentations.forget()

    def open_scan(self, path: str, volume: int | None = None, job: Job = SILENT) -> ScanInfo:
        """Read a CT (NIfTI, DICOM folder or zip), and say what it seems to be. Raises ScanError."""
        return self._scans.open(path, volume, job)

    def scan_info(self, scan_id: str) -> ScanInfo:
        """Raises ScanError for an id that no process with this cache has opened."""
        return self._scans.info(scan_id)

    def list_organs(self, scan_id: str | None = None, job: Job = SILENT) -> OrganList:
        """The 56 organs; with a scan that has been segmented, which of them it holds."""
        present, segmentation_id = None, None
        deferred: tuple[str, ...] = ()
        if scan_id is not None:
            self._scans.info(scan_id)
            segmentation_id = self._segmentations.current_id(scan_id)
        if scan_id is not None and segmentation_id is not None:
            made = self._segmentations.info(scan_id, segmentation_id, job)
            present, deferred = made.organs_present, made.organs_deferred
        choices, unknown = self._segmentations.choices(), self._segmentations.organs_unknown()
        return OrganList(
            organs=organ_infos(present, any(choice.would_be_used for choice in choices), unknown, deferred),
            segmentation_choices=choices,
            needs_licence=licensed_tasks(),
            scan_id=scan_id,
            segmentation_id=segmentation_id,
        )

    def segment_organs(
        self, scan_id: str, organs: Sequence[str] | None = None, masks: str | None = None, job: Job = SILENT
    ) -> Segmentation:
        """Segment the scan, or take over a label map; ``organs``: whose networks run, and whose masks are listed."""
        wanted = _resolved(organs)
        self._scans.info(scan_id)
        info = self._segmentations.make(scan_id, masks, job, wanted)
        present = info.organs_present
        ids = {"scan_id": scan_id, "segmentation_id": info.weights_id}
        return Segmentation(
            segmentation_id=info.weights_id,
            info=info,
            label_map_uri=uris.fill(uris.LABEL_MAP, **ids),
            masks=tuple(
                MaskLink(organ=organ, uri=uris.fill(uris.MASK, **ids, organ=organ))
                for organ in present
                if wanted is None or organ in wanted
            ),
            organs_absent=tuple(organ for organ in wanted or () if organ not in present),
        )

    def measure_organs(
        self,
        scan_id: str,
        organs: Sequence[str] | None = None,
        segmentation_id: str | None = None,
        job: Job = SILENT,
    ) -> MeasurementSet:
        """The organs named; without names all organs and structures, absent ones too."""
        wanted = _resolved(organs)
        info = self._segmented(scan_id, segmentation_id, job, wanted)
        found, from_cache = self._measuring.measurements(scan_id, info.weights_id, job.part(0.9, 1.0))
        records = [found[organ] for organ in wanted] if wanted else _looked_for(found, info)
        ids = {"scan_id": scan_id, "segmentation_id": info.weights_id}
        return MeasurementSet(
            **ids,
            measurements=tuple(records),
            uris={m.organ: uris.fill(uris.MEASUREMENT, **ids, organ=m.organ) for m in records},
            from_cache=from_cache,
            notices=notices.unique(info.notices, notices.measured(records, info) if wanted else ()),
        )

    def encode_scan(self, scan_id: str, job: Job = SILENT) -> TokenSet:
        """τ_g. Raises CheckpointError, ScanError, Cancelled."""
        self._scans.info(scan_id)
        return self._vision.global_tokens(scan_id, job)

    def extract_roi_tokens(
        self,
        scan_id: str,
        organ: str,
        segmentation_id: str | None = None,
        zoom: bool | None = None,
        job: Job = SILENT,
    ) -> TokenSet:
        """τ_l; count 0 and a notice for an absent organ. ``zoom``: as the checkpoint was trained, unless false."""
        name = resolve_organ(organ)
        self.served.zoom(zoom)
        info = self._segmented(scan_id, segmentation_id, job, [name])
        return self._vision.roi_tokens(scan_id, info.weights_id, name, job.part(0.9, 1.0), zoom)

    def classify_abnormality(
        self,
        scan_id: str,
        organs: Sequence[str] | None = None,
        segmentation_id: str | None = None,
        job: Job = SILENT,
    ) -> ClassificationSet:
        """Cls of each organ named; without names of every organ that the scan holds."""
        wanted = _resolved(organs)
        info = self._segmented(scan_id, segmentation_id, job, wanted)
        chosen = wanted or info.organs_present
        records, from_cache = self._vision.classify(scan_id, info.weights_id, chosen, job.part(0.9, 1.0))
        ids = {
            "scan_id": scan_id,
            "segmentation_id": info.weights_id,
            "checkpoint_id": self.served.checkpoint_id,
        }
        return ClassificationSet(
            **ids,
            classifications=records,
            uris={r.organ: uris.fill(uris.CLASSIFICATION, **ids, organ=r.organ) for r in records},
            from_cache=from_cache,
            notices=notices.unique(info.notices, *(record.notices for record in records)),
        )

    def view_organ(
        self,
        scan_id: str,
        organ: str,
        planes: Sequence[Plane] | None = None,
        segmentation_id: str | None = None,
        job: Job = SILENT,
    ) -> PictureSet:
        """Outlined slices; none and a notice for an absent organ."""
        name = resolve_organ(organ)
        for plane in planes or ():
            if plane not in PLANES:
                raise InputError(f"{plane!r} is not a plane; choose from {', '.join(PLANES)}")
        info = self._segmented(scan_id, segmentation_id, job, [name])
        present = name in info.organs_present
        pictures, from_cache = self._measuring.pictures(
            scan_id, info.weights_id, name, planes or PLANES, job.part(0.9, 1.0)
        )
        return PictureSet(
            scan_id=scan_id,
            segmentation_id=info.weights_id,
            organ=name,
            present=present,
            pictures=pictures,
            from_cache=from_cache,
            notices=notices.unique(info.notices, () if present else (notices.absent(name, info),)),
        )

    def measure_lesions(
        self, scan_id: str, mask: str, segmentation_id: str | None = None, job: Job = SILENT
    ) -> LesionSet:
        """Lesions of the caller's mask; with their organs when the scan has been segmented."""
        self._scans.info(scan_id)
        wanted = segmentation_id or self._segmentations.current_id(scan_id)
        info = None if wanted is None else self._segmentations.info(scan_id, wanted, job)
        found = self._relations.lesions(scan_id, mask, wanted, job)
        return found if info is None else found.model_copy(update={"notices": info.notices})

    def measure_contact(
        self,
        scan_id: str,
        a: str,
        b: str,
        mask: str | None = None,
        segmentation_id: str | None = None,
        job: Job = SILENT,
    ) -> Contact:
        """Two structures, or the caller's lesion mask and a structure."""
        info = self._segmented(scan_id, segmentation_id, job)
        return self._relations.contact(scan_id, a, b, mask, info.weights_id, job.part(0.9, 1.0))

    def compare_scans(
        self,
        earlier_scan_id: str,
        later_scan_id: str,
        organs: Sequence[str] | None = None,
        earlier_segmentation_id: str | None = None,
        later_segmentation_id: str | None = None,
        job: Job = SILENT,
    ) -> Comparison:
        """Organ by organ; without names those that either scan holds."""
        wanted = _resolved(organs)
        earlier = self._segmented(earlier_scan_id, earlier_segmentation_id, job.part(0.0, 0.45), wanted)
        later = self._segmented(later_scan_id, later_segmentation_id, job.part(0.45, 0.9), wanted)
        return self._relations.compare((earlier, later), wanted, job.part(0.9, 1.0))

    def answer(self, answer_id: str, job: Job = SILENT) -> Answer:
        """An answer of the ``ask`` tool. Raises InputError for none of this server's."""
        found = self.answers.find(answer_id)
        self._scans.check_allowed(found.scan.scan_id)
        return found

    def explain(self, answer_id: str, claim: int, job: Job = SILENT) -> Explanation:
        """A claim of an answer, counted from 1, with what it rests on."""
        return explain(self.answer(answer_id), claim)

    def check_allowed(self, scan_id: str) -> None:
        """Raises ScanError for a scan that this server's callers may not read."""
        self._scans.check_allowed(scan_id)

    def trace(self, answer_id: str, job: Job = SILENT) -> str:
        """``trace://…``: JSON lines, as ``ask --out`` writes them."""
        from tumorchain_agent.graph.trace import trace_records

        answer = self.answer(answer_id)
        records = trace_records(answer, self._measured(answer, job))
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def report(self, answer_id: str, render: Render, job: Job = SILENT) -> str:
        """``report://…``: the page with the pictures of the organs that were examined."""
        answer = self.answer(answer_id)
        pictures: dict[str, list[tuple[Picture, bytes]]] = {}
        if answer.segmentation is not None:
            ids = (answer.scan.scan_id, answer.segmentation.weights_id)
            for organ in answer.organs_examined:
                pictures[organ] = self._measuring.drawn(*ids, organ, job)
        return render(answer, pictures, self._measured(answer, job))

    def _measured(self, answer: Answer, job: Job) -> tuple[Measurement, ...]:
        if answer.segmentation is None:
            return ()
        found, _ = self._measuring.measurements(answer.scan.scan_id, answer.segmentation.weights_id, job)
        return tuple(_looked_for(found, answer.segmentation))

    def global_tokens_file(self, scan_id: str, checkpoint_id: str, job: Job = SILENT) -> bytes:
        """``tokens://…/global``: safetensors, ``tokens`` [256, hidden]."""
        return self._vision.global_file(scan_id, checkpoint_id, job)

    def roi_tokens_file(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, job: Job = SILENT
    ) -> bytes:
        """``tokens://…``: safetensors, ``tokens`` [n, hidden]."""
        return self._vision.roi_file(scan_id, checkpoint_id, segmentation_id, resolve_organ(organ), job)

    def zoom_tokens_file(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, job: Job = SILENT
    ) -> bytes:
        """``tokens://…/zoom``: safetensors, ``tokens`` [n, hidden]."""
        return self._vision.zoom_file(scan_id, checkpoint_id, segmentation_id, resolve_organ(organ), job)

    def label_map_file(self, scan_id: str, segmentation_id: str, job: Job = SILENT) -> bytes:
        """``mask://…/label-map``: ``.nii.gz``, ids 0..117 on the CT's RAS+ grid."""
        return self._segmentations.file(scan_id, segmentation_id, job)

    def mask_file(self, scan_id: str, segmentation_id: str, organ: str, job: Job = SILENT) -> bytes:
        """``mask://…/organ/…``: ``.nii.gz``, 0 and 1 on the CT's RAS+ grid."""
        return self._measuring.mask(scan_id, segmentation_id, resolve_organ(organ), job)

    def picture_file(
        self, scan_id: str, segmentation_id: str, organ: str, plane: str, window: str, job: Job = SILENT
    ) -> bytes:
        """``picture://…``: PNG. Raises InputError for an organ that isn't in the scan, or no such plane."""
        name = resolve_organ(organ)
        png = self._measuring.png(scan_id, segmentation_id, name, plane, Window.parse(window), job)
        if png is None:
            raise InputError(f"there is no {plane[:20]} picture of {name} in scan {scan_id}; call view_organ")
        return png

    def measurement(self, scan_id: str, segmentation_id: str, name: str, job: Job = SILENT) -> Measurement:
        """``measurement://…``, of an organ or a TotalSegmentator structure."""
        found, _ = self._measuring.measurements(scan_id, segmentation_id, job)
        return found[name] if name in found else found[resolve_organ(name)]

    def classification(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, job: Job = SILENT
    ) -> Classification:
        """``classification://…``. Raises CheckpointError when the server runs another checkpoint."""
        self.served.check_id(checkpoint_id)
        return self._vision.classify(scan_id, segmentation_id, [resolve_organ(organ)], job)[0][0]

    def _segmented(
        self, scan_id: str, segmentation_id: str | None, job: Job, organs: Sequence[str] | None = None
    ) -> SegmentationInfo:
        self._scans.info(scan_id)
        return self._segmentations.resolve(scan_id, segmentation_id, job.part(0.0, 0.9), organs)


def _looked_for(found: dict[str, Measurement], info: SegmentationInfo) -> list[Measurement]:
    """Without what the label map's networks can't find, whose absence would say nothing."""
    deferred = {*info.organs_deferred, *(s for o in info.organs_deferred for s in organ_structures(o))}
    return [record for record in found.values() if record.organ not in deferred]


def _resolved(organs: Sequence[str] | None) -> tuple[str, ...] | None:
    """Table 10 names, each once; ``None`` when none are named. Raises UnknownOrganError."""
    return tuple(dict.fromkeys(resolve_organ(organ) for organ in organs)) if organs else None
