"""Files of a result as links: the model sees that they are there, and a client reads what it needs."""

from __future__ import annotations

from collections.abc import Iterator

from mcp_types import ResourceLink

from tumorchain_agent.mcp_server import uris
from tumorchain_agent.mcp_server.resources import HTML, JSON_LINES, NIFTI, PNG, SAFETENSORS
from tumorchain_agent.mcp_server.results import PictureSet, Segmentation
from tumorchain_agent.records import Answer, TokenSet

MAX_MASKS = 12


def of_segmentation(found: Segmentation) -> Iterator[ResourceLink]:
    """The label map; masks, too, where few organs were asked for."""
    yield ResourceLink(uri=found.label_map_uri, name="label_map.nii.gz", mime_type=NIFTI)
    if len(found.masks) <= MAX_MASKS:
        for mask in found.masks:
            yield ResourceLink(uri=mask.uri, name=f"{mask.organ}.nii.gz", mime_type=NIFTI)


def of_tokens(found: TokenSet) -> Iterator[ResourceLink]:
    name = found.organ or "global"
    yield ResourceLink(uri=found.uri, name=f"{name}.safetensors", mime_type=SAFETENSORS)
    if found.zoom is not None:
        yield ResourceLink(uri=found.zoom.uri, name=f"{name}_zoom.safetensors", mime_type=SAFETENSORS)


def of_pictures(found: PictureSet) -> Iterator[ResourceLink]:
    for picture in found.pictures:
        yield ResourceLink(uri=picture.uri, name=f"{picture.organ}_{picture.plane}.png", mime_type=PNG)


def of_answer(answer: Answer) -> Iterator[ResourceLink]:
    ids = {"answer_id": answer.thread_id}
    yield ResourceLink(uri=uris.fill(uris.REPORT, **ids), name="report.html", mime_type=HTML)
    yield ResourceLink(uri=uris.fill(uris.TRACE, **ids), name="trace.jsonl", mime_type=JSON_LINES)
