"""The arguments of the tools, described for a model that has never seen them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from tumorchain_agent.errors import InputError, LabelMapError, ScanError

WAIT_S = 20.0
MAX_WAIT_S = 3600.0
PATHS: Final[Mapping[str, type[InputError]]] = {
    "path": ScanError,
    "masks": LabelMapError,
    "mask": LabelMapError,
}
"""Arguments that are paths on the server's machine, with the error of one that may not be read."""

ScanId = Annotated[
    str, Field(description="The scan_id that open_scan returned.", examples=["9c1a5b0e7d2f4a6b8c0d1e2f"])
]
Organ = Annotated[
    str,
    Field(
        description='One of the 56 organs of list_organs, or a synonym, e.g. "liver", "pancreatic tail".',
        examples=["liver", "pancreas"],
    ),
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
    Field(
        description="CT on the server's machine: .nii, .nii.gz, a DICOM series folder or a .zip of one. "
        "Absolute, or below the folders that the server may read.",
        examples=["patient7/ct.nii.gz", "/data/scans/series4"],
    ),
]
Volume = Annotated[
    int | None, Field(ge=0, description="Which volume of a 4-D NIfTI, or series of a DICOM folder, from 0.")
]
Masks = Annotated[
    str | None,
    Field(
        description="Label map on the server's machine to use instead of segmenting: .nii.gz on the scan's "
        "grid, ids of TotalSegmentator's task total v2, or a DICOM SEG of the scan."
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
Structure = Annotated[
    str,
    Field(
        description="An organ of list_organs, a TotalSegmentator structure such as portal_vein_and_splenic_vein, "
        'or "lesion" for the mask that is passed.',
        examples=["lesion", "aorta", "pancreas"],
    ),
]
LesionMask = Annotated[
    str,
    Field(
        description="Mask on the server's machine: .nii.gz on the scan's grid, nonzero inside lesions.",
        examples=["patient7/tumor.nii.gz"],
    ),
]
Wait = Annotated[
    float,
    Field(
        ge=0,
        le=MAX_WAIT_S,
        description="Seconds to wait for the result. What takes longer goes on as a job: then the result is "
        'status "running" with a job_id for get_job.',
    ),
]
JobId = Annotated[str, Field(description="The job_id of a call that didn't end in time, or of list_jobs.")]
