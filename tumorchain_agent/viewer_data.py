"""What the page of ``view`` shows, worked out from an answer's folder: texts, organs, and where a click leads."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tumorchain_agent.errors import InputError
from tumorchain_agent.output import ANSWER, MASKS
from tumorchain_agent.records import Answer, OrganEvidence, Round
from tumorchain_agent.report_text import Section, format_number, sentence_case, split_sections
from tumorchain_agent.tools.grid import Affine, apply_affine
from tumorchain_agent.tools.organs import ORGANS, STRUCTURES, display_name, organ_structures
from tumorchain_agent.tools.snomed import CODES

LABEL_MAP: Final = f"{MASKS}/label_map.nii.gz"


@dataclass(frozen=True, eq=False)
class Labels:
    """The label map of an answer's folder."""

    values: NDArray[np.uint8]
    """[x, y, z] on the scan's RAS+ grid."""
    affine: Affine


def read_answer(folder: Path) -> Answer:
    """The answer in a folder that ``ask`` wrote. Raises InputError."""
    path = folder / ANSWER
    if not path.is_file():
        raise InputError(f"{folder} holds no {ANSWER}; pass the folder that tumorchain-agent ask wrote")
    try:
        return Answer.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as cause:
        raise InputError(f"{path} can't be read as an answer of this version; ask again") from cause


def read_labels(folder: Path) -> Labels | None:
    """The label map, or ``None`` where nothing was segmented. Raises InputError for a damaged one."""
    path = folder / LABEL_MAP
    if not path.is_file():
        return None
    nibabel: Any = import_module("nibabel")
    try:
        image = nibabel.load(path)
        return Labels(np.asarray(image.dataobj, np.uint8), np.asarray(image.affine, np.float64))
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as cause:
        raise InputError(f"{path} is damaged; ask again, into another folder") from cause


def view_data(answer: Answer, labels: Labels | None) -> dict[str, Any]:
    """``data.json`` of the page; all of it plain text and numbers."""
    evidence = {item.organ: item for each in answer.rounds for item in each.evidence}
    centres = organ_centres(labels) if labels is not None else {}
    mentioned = [organ for claim in answer.claims for organ in claim.organs]
    named = dict.fromkeys((*answer.organs_examined, *answer.organs_absent, *evidence, *mentioned, *centres))
    return {
        "disclaimer": answer.disclaimer,
        "question": answer.question,
        "scan": _scan_line(answer),
        "origin": _origin(answer),
        "warnings": [
            notice.message
            for notice in dict.fromkeys((*answer.notices, *answer.scan.notices))
            if notice.severity == "warning"
        ],
        "sections": _sections(split_sections(answer.conclusion)),
        "tnm": _tnm(answer),
        "claims": [{"sentence": each.sentence, "organs": list(each.organs)} for each in answer.claims],
        "rounds": [_round(each) for each in answer.rounds],
        "organs": [_organ(name, centres.get(name), evidence.get(name), answer) for name in named],
        "labels": LABEL_MAP if labels is not None else None,
        "structures": _structures(answer),
        "largestId": max(STRUCTURES),
        "anyExamined": any(organ in centres for organ in answer.organs_examined),
    }


def organ_centres(labels: Labels) -> dict[str, tuple[float, float, float]]:
    """Organ → RAS mm of its voxel nearest to the middle of its largest axial slice: where pictures cut too."""
    found: dict[str, tuple[float, float, float]] = {}
    counts = np.stack([np.bincount(plane.ravel(order="K"), minlength=256) for plane in labels.values.T])
    ids = {name: key for key, name in STRUCTURES.items()}
    for organ in ORGANS.values():
        keys = [ids[name] for name in organ_structures(organ)]
        areas = counts[:, keys].sum(axis=1)
        if not areas.any():
            continue
        level = int(areas.argmax())
        inside = np.argwhere(np.isin(labels.values[:, :, level], keys))
        nearest = inside[np.linalg.norm(inside - inside.mean(axis=0), axis=1).argmin()]
        x, y, z = apply_affine(labels.affine, [*nearest, level])
        found[organ] = (round(float(x), 2), round(float(y), 2), round(float(z), 2))
    return found


def _scan_line(answer: Answer) -> str:
    scan = answer.scan
    voxels = " × ".join(str(size) for size in scan.shape)
    spacing = " × ".join(format_number(mm, 2) for mm in scan.spacing_mm)
    return f"{scan.file_name}: {voxels} voxels of {spacing} mm"


def _origin(answer: Answer) -> str:
    versions = answer.versions
    return (
        f"tumorchain-agent {versions.tumorchain_agent}, LLM {versions.llm}, "
        f"checkpoint {versions.checkpoint_id or 'none'}, segmentation {versions.segmentation}. {answer.disclaimer}"
    )


def _sections(sections: tuple[Section, ...]) -> list[dict[str, str | None]]:
    found = []
    for section in sections:
        lines = []
        for block in section.blocks:
            texts = ["".join(piece.text for piece in item) for item in block.items]
            lines += [f"• {text}" for text in texts] if block.is_list else texts
        if lines:
            found.append({"title": section.title, "text": "\n".join(lines)})
    return found


def _tnm(answer: Answer) -> list[str]:
    tnm = answer.tnm
    stage = f"stage {tnm.stage}" if tnm.stage else "stage not determined"
    organ = [sentence_case(display_name(tnm.primary_organ))] if tnm.primary_organ else []
    return [*organ, tnm.t, tnm.n, tnm.m, stage]


def _round(item: Round) -> dict[str, Any]:
    organs = [evidence.organ for evidence in item.evidence]
    first = "first look at the whole scan" if item.index == 1 else "no new organ"
    return {
        "index": item.index,
        "title": ", ".join(map(display_name, organs)) or first,
        "sections": _sections(split_sections(item.text)),
        "organs": organs,
        "next": [display_name(organ) for organ in item.new_organs],
    }


def _organ(
    name: str, centre: tuple[float, float, float] | None, evidence: OrganEvidence | None, answer: Answer
) -> dict[str, Any]:
    known = name in ORGANS.values()
    structure = organ_structures(name)[0] if known else None
    made = answer.segmentation
    unknown = made is not None and name in (*made.organs_unknown, *made.organs_deferred)
    return {
        "name": name,
        "title": sentence_case(display_name(name)) if known else name,
        "centre": list(centre) if centre else None,
        "rgb": list(CODES[structure].rgb) if structure else [128, 128, 128],
        "facts": _facts(evidence),
        "absence": "not looked for" if unknown else "not in the scan, not assessed",
    }


def _facts(evidence: OrganEvidence | None) -> str:
    if evidence is None:
        return ""
    facts = []
    verdict, measured = evidence.classification, evidence.measurement
    if verdict is not None and verdict.p_abnormal is not None:
        facts.append(f"{verdict.label}, p {verdict.p_abnormal:.2f}")
    if measured is not None and measured.volume_ml is not None:
        facts.append(f"{format_number(measured.volume_ml)} ml")
    return ", ".join(facts)


def _structures(answer: Answer) -> dict[int, dict[str, Any]]:
    """Label id → its organ and colour."""
    organ_of = {name: organ for organ in ORGANS.values() for name in organ_structures(organ)}
    return {
        key: {
            "organ": organ_of[name],
            "rgb": list(CODES[name].rgb),
            "examined": organ_of[name] in answer.organs_examined,
        }
        for key, name in STRUCTURES.items()
    }
