"""The checkpoint's tokens and Cls for a scan, each computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import CheckpointError
from tumorchain_agent.mcp_server import notices, uris
from tumorchain_agent.mcp_server.jobs import Job
from tumorchain_agent.mcp_server.segmentations import Segmentations
from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.mcp_server.store import Entry, Store
from tumorchain_agent.mcp_server.views import Views
from tumorchain_agent.records import Classification, Notice, SegmentationInfo, TokenSet, ZoomTokens
from tumorchain_agent.tools.cache import content_key
from tumorchain_agent.tools.organs import ORGANS

if TYPE_CHECKING:
    import torch

    from tumorchain_agent.tools.zoom import Zoom

ORGAN_INDEX = {name: index for index, name in ORGANS.items()}


class Vision:
    """τ_v, τ_g, τ_l and Cls.

    Cls reads the whole's tokens of an organ, as in the paper's 3.1, whether there are zoomed ones or not.
    """

    def __init__(
        self, store: Store, segmentations: Segmentations, served: ServedCheckpoint, views: Views
    ) -> None:
        self._store = store
        self._segmentations = segmentations
        self._served = served
        self._views = views

    def global_tokens(self, scan_id: str, job: Job) -> TokenSet:
        """τ_g: the vision tokens pooled 2×2×2 and projected, [256, hidden]."""
        blob, from_cache = self._global(scan_id, job.part(0.0, 0.95))
        limits = self._views.notices(scan_id, job.part(0.95, 1.0))
        uri = uris.fill(uris.GLOBAL_TOKENS, scan_id=scan_id, checkpoint_id=self._served.checkpoint_id)
        return self._token_set(uri, scan_id, None, blob, from_cache, limits)

    def roi_tokens(
        self, scan_id: str, segmentation_id: str, organ: str, job: Job, zoom: bool | None = None
    ) -> TokenSet:
        """τ_l = Γ(τ_v, mask), projected; none for an absent organ, with a notice.

        With the tokens of the organ's crop, if the checkpoint was trained with them and ``zoom`` isn't false.
        Raises CheckpointError for a true ``zoom`` of a checkpoint that wasn't.
        """
        closer = self._served.zoom(zoom)
        segmentation = self._segmentations.info(scan_id, segmentation_id, job)
        ids = (scan_id, segmentation_id, organ)
        blob, from_cache = self._roi(*ids, job.part(0.0, 0.5))
        zoomed, zoom_cached = None, True
        if closer is not None and organ in closer.organs and _header(blob).count:
            zoomed, zoom_cached = self._zoom_tokens(*ids, closer, job.part(0.5, 0.95))
        found = self._views.notices(scan_id, job.part(0.95, 1.0))
        limits = found if _header(blob).count else (_nothing_of(organ, segmentation),)
        uri = self._roi_uri(uris.ROI_TOKENS, *ids)
        whole = self._token_set(uri, scan_id, organ, blob, from_cache and zoom_cached, limits)
        return whole.model_copy(update={"zoom": zoomed})

    def _zoom_tokens(
        self, scan_id: str, segmentation_id: str, organ: str, zoom: Zoom, job: Job
    ) -> tuple[ZoomTokens | None, bool]:
        """``None`` when nothing of the organ is in its crop; and whether that was known."""
        blob, from_cache = self._zoomed(scan_id, segmentation_id, organ, zoom, job)
        header = _header(blob)
        if not header.count:
            return None, from_cache
        uri = self._roi_uri(uris.ZOOM_TOKENS, scan_id, segmentation_id, organ)
        found = ZoomTokens(uri=uri, count=header.count, cells=header.cells, side_mm=header.side_mm)
        return found, from_cache

    def _roi_uri(self, template: str, scan_id: str, segmentation_id: str, organ: str) -> str:
        return uris.fill(
            template,
            scan_id=scan_id,
            checkpoint_id=self._served.checkpoint_id,
            segmentation_id=segmentation_id,
            organ=organ,
        )

    def classify(
        self, scan_id: str, segmentation_id: str, organs: Sequence[str], job: Job
    ) -> tuple[tuple[Classification, ...], bool]:
        """Cls of each organ, and whether it was known; absent or out of view is "not assessed"."""
        segmentation = self._segmentations.info(scan_id, segmentation_id, job)
        p_abnormal, from_cache = self._p_abnormal(scan_id, segmentation_id, job.part(0.0, 0.95))
        limits = self._views.notices(scan_id, job.part(0.95, 1.0))
        records = [self._record(organ, segmentation, p_abnormal.get(organ), limits) for organ in organs]
        return tuple(records), from_cache

    def global_file(self, scan_id: str, checkpoint_id: str, job: Job) -> bytes:
        """The safetensors file of τ_g. Raises CheckpointError when the server runs another checkpoint."""
        self._served.check_id(checkpoint_id)
        return self._global(scan_id, job)[0]

    def roi_file(self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, job: Job) -> bytes:
        """The safetensors file of τ_l. Raises CheckpointError when the server runs another checkpoint."""
        self._served.check_id(checkpoint_id)
        return self._roi(scan_id, segmentation_id, organ, job)[0]

    def zoom_file(
        self, scan_id: str, checkpoint_id: str, segmentation_id: str, organ: str, job: Job
    ) -> bytes:
        """The safetensors file of an organ's zoomed tokens. Raises CheckpointError as ``roi_file`` and where the
        checkpoint doesn't zoom."""
        self._served.check_id(checkpoint_id)
        zoom = self._served.zoom(True)
        if zoom is None or organ not in zoom.organs:
            raise CheckpointError(
                f"checkpoint {checkpoint_id} doesn't zoom into {organ}; read its ROI tokens instead"
            )
        return self._zoomed(scan_id, segmentation_id, organ, zoom, job)[0]

    def _key(self, scan_id: str, *more: str) -> tuple[str, ...]:
        served = self._served
        return (scan_id, served.checkpoint_id, served.preprocessing_key, *served.precision_key, *more)

    def _vision_tokens(self, scan_id: str, job: Job) -> torch.Tensor:
        """τ_v [2048, C]."""
        entry = Entry("vision tokens", self._key(scan_id), _load_tokens, ".safetensors")

        def make(target: Path, held: Job) -> None:
            volume = self._views.volume(scan_id, held.part(0.0, 0.4)).volume
            held.progress("loading the vision tower", 0.4)
            self._served.load()
            held.check("encoding the scan")
            held.progress("encoding the scan", 0.5)
            _save_tokens(target, self._served.encode(volume))

        return self._store.get_or_make(entry, make, job, work="encode")[0]

    def _global(self, scan_id: str, job: Job) -> tuple[bytes, bool]:
        entry = Entry("global tokens", self._key(scan_id), Path.read_bytes, ".safetensors")

        def make(target: Path, held: Job) -> None:
            from tumorchain_agent.tools.roi import global_pool

            tokens = global_pool(self._vision_tokens(scan_id, held))
            _save_tokens(target, self._served.project(tokens))

        return self._store.get_or_make(entry, make, job)

    def _roi(self, scan_id: str, segmentation_id: str, organ: str, job: Job) -> tuple[bytes, bool]:
        parts = self._key(scan_id, segmentation_id, organ)
        entry = Entry("roi tokens", parts, Path.read_bytes, ".safetensors")

        def make(target: Path, held: Job) -> None:
            from tumorchain_agent.tools.roi import roi_tokens

            coverage = self._views.coverage(scan_id, segmentation_id, held.part(0.0, 0.5))
            tokens = self._vision_tokens(scan_id, held.part(0.5, 1.0))
            found = roi_tokens(tokens, coverage[ORGAN_INDEX[organ]])
            _save_tokens(target, self._served.project(found.tokens), cells=len(found.cells))

        return self._store.get_or_make(entry, make, job)

    def _zoomed(
        self, scan_id: str, segmentation_id: str, organ: str, zoom: Zoom, job: Job
    ) -> tuple[bytes, bool]:
        """One crop is encoded at a time; the other organs' calls wait for their turn."""
        parts = self._key(scan_id, segmentation_id, organ, content_key(zoom.model_dump(mode="json")))
        entry = Entry("zoomed roi tokens", parts, Path.read_bytes, ".safetensors")

        def make(target: Path, held: Job) -> None:
            import torch

            crop = self._views.crop(scan_id, segmentation_id, organ, zoom, held.part(0.0, 0.4))
            if crop is None:
                _save_tokens(target, torch.zeros(0, self._served.info.hidden_size))
                return
            self._served.load()
            held.check("encoding the organ")
            held.progress("encoding the organ", 0.5)
            tokens = self._served.encode(crop.model.volume)
            mixture = zoom.mixture(crop.own_coverage)
            projected = self._served.project(mixture.of(tokens))
            _save_tokens(target, projected, cells=len(mixture.cells), side_mm=crop.side_mm)

        return self._store.get_or_make(entry, make, job, work="zoom")

    def _p_abnormal(self, scan_id: str, segmentation_id: str, job: Job) -> tuple[dict[str, float], bool]:
        """p(abnormal) of every organ that the model sees something of."""
        entry = Entry("abnormality", self._key(scan_id, segmentation_id), _load_json, ".json")

        def make(target: Path, held: Job) -> None:
            coverage = self._views.coverage(scan_id, segmentation_id, held.part(0.0, 0.5))
            tokens = self._vision_tokens(scan_id, held.part(0.5, 1.0))
            target.write_text(json.dumps(self._cls(tokens, coverage)), encoding="utf-8")

        return self._store.get_or_make(entry, make, job)

    def _cls(self, tokens: torch.Tensor, coverage: NDArray[np.float32]) -> dict[str, float]:
        import torch

        from tumorchain_agent.tools.roi import mean_roi

        seen = [organ for organ, index in ORGAN_INDEX.items() if coverage[index].any()]
        if not seen:
            return {}
        means = torch.stack([mean_roi(tokens, coverage[ORGAN_INDEX[organ]]) for organ in seen])
        return dict(zip(seen, self._served.p_abnormal(means), strict=True))

    def _token_set(
        self,
        uri: str,
        scan_id: str,
        organ: str | None,
        blob: bytes,
        from_cache: bool,
        limits: tuple[Notice, ...],
    ) -> TokenSet:
        header = _header(blob)
        return TokenSet(
            uri=uri,
            scan_id=scan_id,
            organ=organ,
            count=header.count,
            hidden_size=header.hidden_size,
            checkpoint_id=self._served.checkpoint_id,
            cells=header.cells,
            from_cache=from_cache,
            notices=limits,
        )

    def _record(
        self,
        organ: str,
        segmentation: SegmentationInfo,
        p_abnormal: float | None,
        limits: tuple[Notice, ...],
    ) -> Classification:
        present = organ in segmentation.organs_present
        if p_abnormal is None or not present:
            label, p_abnormal, limits = "not assessed", None, (_nothing_of(organ, segmentation),)
        else:
            label = "abnormal" if p_abnormal >= 0.5 else "normal"
        return Classification.model_validate(
            {
                "organ": organ,
                "present": present,
                "p_abnormal": p_abnormal,
                "label": label,
                "checkpoint_id": self._served.checkpoint_id,
                "notices": limits,
            }
        )


def _nothing_of(organ: str, segmentation: SegmentationInfo) -> Notice:
    if organ in segmentation.organs_present:
        return notices.out_of_view(organ)
    return notices.absent(organ, segmentation)


def _save_tokens(target: Path, tokens: torch.Tensor, cells: int = 0, side_mm: float = 0.0) -> None:
    """One key of metadata: safetensors writes several in any order, and equal results are equal bytes."""
    from safetensors.torch import save_file

    facts = {"crop": json.dumps({"cells": cells, "side_mm": side_mm})} if side_mm else {"cells": str(cells)}
    save_file({"tokens": tokens.contiguous()}, target, metadata=facts)


def _load_tokens(path: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(path)["tokens"]


@dataclass(frozen=True)
class _Header:
    count: int
    hidden_size: int
    cells: int
    side_mm: float


def _header(blob: bytes) -> _Header:
    """Of a tokens file: 8 bytes of length, then JSON, then data."""
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    count, hidden_size = header["tokens"]["shape"]
    facts = header["__metadata__"]
    crop = json.loads(facts["crop"]) if "crop" in facts else {"cells": facts["cells"], "side_mm": 0.0}
    return _Header(count, hidden_size, int(crop["cells"]), float(crop["side_mm"]))


def _load_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
