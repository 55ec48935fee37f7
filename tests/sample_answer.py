"""A hand-made answer with everything that a report can show, for tests of the report and the command line."""

from __future__ import annotations

import struct
import zlib

from tumorchain_agent.records import (
    TNM,
    Answer,
    Claim,
    Classification,
    Measurement,
    Notice,
    OrganEvidence,
    Picture,
    Round,
    ScanInfo,
    SegmentationInfo,
    TokenSet,
    Usage,
    Versions,
)

SCAN_ID = "9f1c2a7be4d05513"
CHECKPOINT = "nano-3fb2c81d77aa"
LABELS = "c0ffee12ab34"


def png(width: int = 8, height: int = 6, grey: int = 90) -> bytes:
    """A valid greyscale PNG."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes([grey] * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def measurement(organ: str, volume_ml: float, mean_hu: float, **more: object) -> Measurement:
    values: dict[str, object] = {
        "organ": organ,
        "present": True,
        "voxels": round(volume_ml / 0.027),
        "volume_ml": volume_ml,
        "mean_hu": mean_hu,
        "sd_hu": 21.4,
        "min_hu": -88.0,
        "max_hu": 214.0,
        "percentiles_hu": {"p05": -4.0, "p25": 38.0, "p50": 52.0, "p75": 66.0, "p95": 88.0},
        "largest_diameter_mm": 214.6,
        "largest_axial_diameter_mm": 187.2,
    }
    return Measurement.model_validate(values | more)


MEASUREMENTS = (
    measurement("liver", 1125.684, 54.2, cut_by_edge=("superior",)),
    measurement("pancreas", 18.77, 31.9, largest_diameter_mm=78.1, largest_axial_diameter_mm=66.4),
    measurement("spleen", 171.2, 47.7, largest_diameter_mm=104.0, largest_axial_diameter_mm=88.3),
    measurement("stomach", 130.57, 12.4),
    measurement("colorectum", 1619.14, -312.9, cut_by_edge=("inferior",)),
    Measurement(organ="esophagus", present=False),
    measurement("vertebrae_L3", 44.1, 201.3, level="structure"),
    measurement("vertebrae_L4", 46.8, 196.0, level="structure"),
)


def pictures_of(organ: str) -> tuple[Picture, ...]:
    places = (("axial", 71, -14.5), ("coronal", 48, 22.0), ("sagittal", 60, 31.5))
    return tuple(
        Picture(
            uri=f"picture://{SCAN_ID}/{LABELS}/{organ}/{plane}",
            organ=organ,
            plane=plane,  # type: ignore[arg-type]
            slice_index=index,
            position_mm=position,
            width=400,
            height=320,
        )
        for plane, index, position in places
    )


def evidence(
    organ: str, p_abnormal: float, *, asked_as: str | None = None, notices: tuple[Notice, ...] = ()
) -> OrganEvidence:
    tokens = TokenSet(
        uri=f"tokens://{SCAN_ID}/{CHECKPOINT}/{LABELS}/{organ}",
        scan_id=SCAN_ID,
        organ=organ,
        count=48,
        hidden_size=256,
        checkpoint_id=CHECKPOINT,
        cells=93,
    )
    measured = f"measurement://{SCAN_ID}/{LABELS}/{organ}"
    return OrganEvidence(
        organ=organ,
        asked_as=asked_as or organ,
        present=True,
        kind="tokens",
        tokens=tokens,
        measurement=next(each for each in MEASUREMENTS if each.organ == organ),
        classification=Classification(
            organ=organ,
            present=True,
            p_abnormal=p_abnormal,
            label="abnormal" if p_abnormal >= 0.5 else "normal",
            checkpoint_id=CHECKPOINT,
        ),
        uris=(tokens.uri, measured),
        notices=notices,
    )


SCAN = ScanInfo(
    scan_id=SCAN_ID,
    file_name="example_ct.nii.gz",
    source_format="nifti",
    shape=(122, 101, 112),
    spacing_mm=(3.0, 3.0, 3.0),
    affine=((3, 0, 0, -180), (0, 3, 0, -150), (0, 0, 3, -220), (0, 0, 0, 1)),
    source_axcodes="RAS",
    hu_min=-1207,
    hu_max=3382,
)

NOTICES = (
    Notice(
        code="demonstration_model",
        message="The nano model is a demonstration trained on synthetic phantoms, without clinical validity.",
    ),
    Notice(
        code="out_of_distribution",
        message="This scan is outside the nano model's training distribution: "
        "noise level in soft tissue 24.1 HU, trained on 4.2 to 15.8.",
    ),
    Notice(code="organ_absent", message="The esophagus is not in this scan.", organ="esophagus"),
    Notice(code="cut_by_edge", message="The scan's upper edge cuts the liver.", organ="liver"),
    Notice(code="cache", message="The label map was given with --masks.", severity="info"),
)

CONCLUSION = (
    "Findings: A hypodense lesion of about 3.1 cm with ill-defined margins is seen in the right lobe of the "
    "liver. The pancreas shows no focal lesion. The spleen is normal. The esophagus is not in the scan.\n\n"
    "Impression: Solitary hepatic mass, suspicious of hepatocellular carcinoma.\n\n"
    "Pathology: Likely malignant; cT1b N0 MX."
)


def sample_answer(**changes: object) -> Answer:
    """The answer; keyword arguments replace its fields."""
    cut = Notice(
        code="cut_by_edge",
        message="The scan's upper edge cuts the liver; its volume is a lower bound.",
        organ="liver",
    )
    missing = OrganEvidence(organ="esophagus", asked_as="oesophagus", present=False, kind="tokens")
    rounds = (
        Round(
            index=1,
            prompt="[τ_g]\nIs there a lesion in the liver, and what TNM stage?",
            text="Findings: The liver and the pancreatic tail need a closer look, and the oesophagus too.",
            organs_mentioned=("liver", "pancreas", "esophagus"),
            new_organs=("liver", "pancreas", "esophagus"),
            usage=Usage(prompt_tokens=291, cached_tokens=0, completion_tokens=25),
            seconds=1.4,
        ),
        Round(
            index=2,
            prompt="The question requires greater attention to liver [τ_l liver], pancreas [τ_l pancreas]",
            text="A hypodense lesion lies in the right lobe of the liver:\n\n- 3.1 cm\n- ill-defined\n\n"
            "The pancreas shows no focal lesion. The spleen should be seen for metastases.",
            evidence=(
                evidence("liver", 0.83, notices=(cut,)),
                evidence("pancreas", 0.21, asked_as="pancreatic tail"),
                missing,
            ),
            organs_mentioned=("liver", "pancreas", "spleen"),
            new_organs=("spleen",),
            usage=Usage(prompt_tokens=447, cached_tokens=316, completion_tokens=61),
            seconds=2.2,
        ),
        Round(
            index=3,
            prompt="The question requires greater attention to spleen [τ_l spleen]",
            text=CONCLUSION,
            evidence=(evidence("spleen", 0.08),),
            organs_mentioned=("liver", "pancreas", "spleen", "esophagus"),
            usage=Usage(prompt_tokens=590, cached_tokens=508, completion_tokens=88),
            seconds=2.9,
        ),
    )
    liver_uris = rounds[1].evidence[0].uris
    answer = Answer(
        question="Is there a lesion in the liver, and what TNM stage?",
        scan=SCAN,
        segmentation=SegmentationInfo(
            scan_id=SCAN_ID,
            source="given",
            task="given",
            weights_id=LABELS,
            organs_present=("liver", "pancreas", "spleen", "stomach", "colorectum"),
            seconds=0.2,
        ),
        evidence_kind="tokens",
        conclusion=CONCLUSION,
        tnm=TNM(
            primary_organ="liver",
            t="T1b",
            n="N0",
            m="MX",
            stage=None,
            reasons=("M was left open in the text.", "No stage group follows while M is unknown."),
            flags=("The text says T1b (over 2 cm, no vascular invasion) and “vascular invasion” at once.",),
        ),
        claims=(
            Claim(
                sentence="A hypodense lesion of about 3.1 cm is seen in the right lobe of the liver.",
                organs=("liver",),
                evidence_uris=liver_uris,
            ),
            Claim(
                sentence="The spleen is normal.",
                organs=("spleen",),
                evidence_uris=rounds[2].evidence[0].uris,
            ),
            Claim(sentence="Likely malignant; cT1b N0 MX."),
        ),
        rounds=rounds,
        organs_examined=("liver", "pancreas", "spleen"),
        organs_absent=("esophagus",),
        stopped_because="no new organ",
        notices=NOTICES,
        usage=Usage(prompt_tokens=1328, cached_tokens=824, completion_tokens=174),
        seconds=9.7,
        timings_s={"open": 0.3, "encode": 0.8, "segment": 0.2, "evidence": 1.1, "llm": 6.5},
        versions=Versions(
            tumorchain_agent="0.1.0",
            checkpoint_id=CHECKPOINT,
            llm="nano",
            segmentation="label map of the user",
            python="3.11.7",
            torch="2.13.0",
            totalsegmentator="2.18.0",
        ),
        thread_id="b7d1f00c2e",
    )
    return answer.model_copy(update=changes)


def sample_pictures() -> dict[str, tuple[tuple[Picture, bytes], ...]]:
    """Organ → its pictures and their PNG bytes."""
    return {
        organ: tuple((picture, png()) for picture in pictures_of(organ))
        for organ in ("liver", "pancreas", "spleen")
    }
