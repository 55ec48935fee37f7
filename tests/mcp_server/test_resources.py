"""URIs of results: what they hold, that they outlive the server, and how they fail."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np
import pytest
from mcp import Client, MCPError
from mcp_types import BlobResourceContents, TextResourceContents
from nibabel import Nifti1Image
from safetensors.torch import load

from tests.mcp_server.conftest import HIDDEN, PRESENT, Files, call, open_segmented, with_client
from tumorchain_agent.mcp_server.store import read_work_log
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.settings import Settings


async def read(client: Client, uri: str) -> bytes:
    (content,) = (await client.read_resource(uri, cache_mode="bypass")).contents
    assert content.uri == uri
    if isinstance(content, BlobResourceContents):
        return base64.b64decode(content.blob)
    assert isinstance(content, TextResourceContents)
    return content.text.encode()


async def all_uris(client: Client, files: Files) -> dict[str, str]:
    """One URI of each kind, as the tools give them."""
    scan_id, _ = await open_segmented(client, files)
    segmentation = await call(client, "segment_organs", scan_id=scan_id, masks=str(files.masks))
    classes = await call(client, "classify_abnormality", scan_id=scan_id, organs=["liver"])
    measured = await call(client, "measure_organs", scan_id=scan_id, organs=["liver"])
    pictures = await call(client, "view_organ", scan_id=scan_id, organ="liver", planes=["axial"])
    masks = {link["organ"]: link["uri"] for link in segmentation["masks"]}
    assert tuple(masks) == PRESENT
    return {
        "global": (await call(client, "encode_scan", scan_id=scan_id))["uri"],
        "roi": (await call(client, "extract_roi_tokens", scan_id=scan_id, organ="liver"))["uri"],
        "empty roi": (await call(client, "extract_roi_tokens", scan_id=scan_id, organ="stomach"))["uri"],
        "label map": segmentation["label_map_uri"],
        "mask": masks["liver"],
        "picture": pictures["pictures"][0]["uri"],
        "measurement": measured["uris"]["liver"],
        "classification": classes["uris"]["liver"],
    }


def test_resources_hold_what_the_results_announced(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        uris = await all_uris(client, files)
        held = {kind: await read(client, uri) for kind, uri in uris.items()}
        assert load(held["global"])["tokens"].shape == (256, HIDDEN)
        assert load(held["roi"])["tokens"].shape[0] > 0
        assert load(held["empty roi"])["tokens"].shape == (0, HIDDEN)
        assert held["picture"].startswith(b"\x89PNG")
        assert len(held["picture"]) <= 256 * 1024
        assert json.loads(held["measurement"])["organ"] == "liver"
        assert json.loads(held["classification"])["p_abnormal"] is not None
        labels, liver = (_nifti(held[kind]) for kind in ("label map", "mask"))
        assert np.array_equal(np.asarray(labels.dataobj), files.labels)
        assert np.array_equal(np.asarray(liver.dataobj), files.labels == 5)
        assert np.array_equal(labels.affine, liver.affine)
        assert np.all(np.diag(labels.affine) > 0)

    with_client(workbench, steps)


def _nifti(data: bytes) -> Any:
    read: Any = Nifti1Image.from_bytes
    return read(gzip.decompress(data))


def test_uris_resolve_after_a_restart_without_computing_anything(settings: Settings, files: Files) -> None:
    kept: dict[str, tuple[str, bytes]] = {}

    async def first(client: Client) -> None:
        for kind, uri in (await all_uris(client, files)).items():
            kept[kind] = (uri, await read(client, uri))

    with_client(settings, first)
    done = read_work_log(settings.cache_dir)

    async def second(client: Client) -> None:
        for uri, content in kept.values():
            assert await read(client, uri) == content

    with_client(settings, second)
    assert read_work_log(settings.cache_dir) == done


def test_a_uri_whose_content_left_the_cache_is_made_again(settings: Settings, files: Files) -> None:
    kept: dict[str, tuple[str, bytes]] = {}

    async def first(client: Client) -> None:
        for kind, uri in (await all_uris(client, files)).items():
            kept[kind] = (uri, await read(client, uri))

    with_client(settings, first)
    entries = settings.cache_dir / "results" / "entries"
    for entry in entries.iterdir():
        if entry.is_file():
            entry.unlink()

    async def second(client: Client) -> None:
        for uri, content in kept.values():
            assert await read(client, uri) == content

    with_client(settings, second)


UNREADABLE = {
    "tokens://{scan}/feedfacefeedface/global": "CheckpointError: these tokens belong to checkpoint",
    "tokens://{scan}/feedfacefeedface/{seg}/liver": "CheckpointError: these tokens belong to checkpoint",
    "mask://{scan}/{seg}/organ/livr": "UnknownOrganError: 'livr'",
    "mask://{scan}/nope/label-map": "LabelMapError: segmentation 'nope'",
    "picture://{scan}/{seg}/stomach/axial/w400l40": "InputError: there is no axial picture of stomach",
    "picture://{scan}/{seg}/liver/axial/bone": "InputError: 'bone' is not a window",
    "measurement://0123456789abcdef/{seg}/liver": "LabelMapError: segmentation",
    "nothing://{scan}": "Unknown resource",
}


def test_a_uri_that_can_not_be_read_is_an_error_that_says_why(workbench: Workbench, files: Files) -> None:
    async def steps(client: Client) -> None:
        scan_id, segmentation_id = await open_segmented(client, files)
        for uri, reason in UNREADABLE.items():
            with pytest.raises(MCPError) as caught:
                await read(client, uri.format(scan=scan_id, seg=segmentation_id))
            assert caught.value.error.message.startswith(reason), uri

    with_client(workbench, steps)
