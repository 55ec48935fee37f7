"""Resource URIs: made of content hashes and organ names only, so that they resolve again after a restart.

A scan id, a checkpoint id and a segmentation id fix the bytes behind a URI; nothing in it names a file or a
patient.
"""

from __future__ import annotations

from urllib.parse import quote

SCAN = "scan://{scan_id}"
TRACE = "trace://{answer_id}"
REPORT = "report://{answer_id}"
GLOBAL_TOKENS = "tokens://{scan_id}/{checkpoint_id}/global"
ROI_TOKENS = "tokens://{scan_id}/{checkpoint_id}/{segmentation_id}/{organ}"
ZOOM_TOKENS = "tokens://{scan_id}/{checkpoint_id}/{segmentation_id}/{organ}/zoom"
LABEL_MAP = "mask://{scan_id}/{segmentation_id}/label-map"
MASK = "mask://{scan_id}/{segmentation_id}/organ/{organ}"
PICTURE = "picture://{scan_id}/{segmentation_id}/{organ}/{plane}/{window}"
MEASUREMENT = "measurement://{scan_id}/{segmentation_id}/{organ}"
CLASSIFICATION = "classification://{scan_id}/{checkpoint_id}/{segmentation_id}/{organ}"


def fill(template: str, **parts: str) -> str:
    """The URI of a template with its parts percent-encoded.

    >>> fill(MEASUREMENT, scan_id="ab12", segmentation_id="cd34", organ="colorectum")
    'measurement://ab12/cd34/colorectum'
    """
    return template.format(**{name: quote(part, safe="") for name, part in parts.items()})
