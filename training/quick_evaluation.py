"""``evaluate --quick``: is there a tumour, and in which organ, on phantoms of unseen seeds, through the whole agent.

Every phantom is written as a NIfTI file and asked about as a user would: opened, segmented by TotalSegmentator's
code, encoded, reasoned over by the graph. Majority-class answers stand beside it.
"""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.records import DISCLAIMER, Record
from tumorchain_agent.tools.organs import mentioned_organs
from tumorchain_agent.training.phantom.anatomy import ORGAN_IDS
from tumorchain_agent.training.phantom.export import save_nifti
from tumorchain_agent.training.phantom.patient import ORGANS, Case, generate
from tumorchain_agent.training.phantom.render import to_stored
from tumorchain_agent.training.seeds import QUICK_SEED

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from tumorchain_agent.graph.client import CTTools
    from tumorchain_agent.records import Answer
    from tumorchain_agent.settings import Settings

QUESTION = "Is there a tumor, and in which organ?"
STRATA = ("< 2 cm", "2-4 cm", "> 4 cm")
MasksFrom = Literal["segmentation", "truth"]


class Verdict(Record):
    """One patient: what was true and what was answered. ``None`` is no tumour."""

    seed: int
    organ: str | None
    size_mm: float
    answered: str | None
    rounds: int
    dice: dict[str, float]
    """Organ → Dice of the segmentation against the phantom's label map; empty with given masks."""
    seconds: float


class Stratum(Record):
    name: str
    patients: int
    present: float | None
    """Share of these tumours that were called a tumour."""
    organ: float | None
    """Share whose organ was right."""


class QuickResult(Record):
    """All rates are in 0..1; intervals are 95 % bootstrap percentiles over patients."""

    disclaimer: str = DISCLAIMER
    checkpoint_id: str
    masks: MasksFrom
    first_seed: int
    patients: int
    balanced_accuracy: float
    balanced_accuracy_interval: tuple[float, float]
    sensitivity: float
    specificity: float
    organ_2cm: float
    """"Which organ" on tumours of 2 cm and more."""
    organ_2cm_interval: tuple[float, float]
    majority_balanced_accuracy: float
    majority_organ_2cm: float
    strata: tuple[Stratum, ...]
    dice: dict[str, float]
    mean_dice: float | None
    mean_rounds: float
    seconds_per_patient: float


def organ_in(answer: str) -> str | None:
    """The primary that an answer names, or ``None`` for no tumour.

    The impression decides; without one, the last sentence does.
    """
    found = re.search(r"Impression:\s*(.*?)(?:Pathology:|$)", answer, re.IGNORECASE | re.DOTALL)
    text = found.group(1) if found else answer.rsplit(".", 2)[-1]
    if re.search(r"\bno (tumou?r|mass|lesion|malignan)", text, re.IGNORECASE):
        return None
    organs = mentioned_organs(text)
    return organs[0] if organs else None


def dice_by_organ(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of the five digestive organs that the truth holds."""
    scores = {}
    for organ in ORGANS:
        a, b = predicted == ORGAN_IDS[organ], truth == ORGAN_IDS[organ]
        if b.any():
            scores[organ] = float(2 * (a & b).sum() / (a.sum() + b.sum()))
    return scores


async def evaluate_quick(
    settings: Settings,
    patients: int,
    first_seed: int = QUICK_SEED,
    masks: MasksFrom = "segmentation",
    on_patient: Callable[[int, Verdict], None] | None = None,
) -> QuickResult:
    """Ask about ``patients`` phantoms from ``first_seed`` on, one after another."""
    from mcp import Client

    from tumorchain_agent.graph.client import CTTools
    from tumorchain_agent.mcp_server.server import build_server
    from tumorchain_agent.mcp_server.workbench import Workbench
    from tumorchain_agent.model.chat import chat_model_from
    from tumorchain_agent.model.checkpoint import NANO_DIR, read_info

    verdicts = []
    with tempfile.TemporaryDirectory(prefix="tumorchain-quick-") as folder:
        own = settings.model_copy(update={"cache_dir": Path(folder) / "cache"})
        chat_model = chat_model_from(own, evidence="tokens")
        with closing(Workbench(own)) as workbench:
            async with Client(build_server(workbench)) as client:
                for i in range(patients):
                    verdict = await _one(CTTools(client), chat_model, first_seed + i, masks, Path(folder))
                    verdicts.append(verdict)
                    if on_patient:
                        on_patient(i, verdict)
    return summarise(verdicts, read_info(settings.model or NANO_DIR).checkpoint_id, masks)


async def _one(
    tools: CTTools, chat_model: BaseChatModel, seed: int, masks: MasksFrom, folder: Path
) -> Verdict:
    from tumorchain_agent.graph.run import ask

    case = generate(seed)
    scan, labels = folder / f"{seed}.nii.gz", folder / f"{seed}_labels.nii.gz"
    save_nifti(to_stored(case.hu), case.grid.affine, scan)
    given = None
    if masks == "truth":
        save_nifti(case.labels, case.grid.affine, labels)
        given = str(labels)
    answer = await ask(tools, chat_model, str(scan), QUESTION, masks=given, checkpoint_db=None)
    dice = {} if given else await _dice(tools, answer, case)
    for path in (scan, labels):
        path.unlink(missing_ok=True)
    return Verdict(
        seed=seed,
        organ=case.truth.organ,
        size_mm=case.truth.size_mm,
        answered=organ_in(answer.conclusion),
        rounds=len(answer.rounds),
        dice=dice,
        seconds=answer.seconds,
    )


async def _dice(tools: CTTools, answer: Answer, case: Case) -> dict[str, float]:
    import nibabel as nib

    from tumorchain_agent.mcp_server import uris

    if answer.segmentation is None:
        return {}
    ids = {"scan_id": answer.scan.scan_id, "segmentation_id": answer.segmentation.weights_id}
    packed = await tools.read(uris.fill(uris.LABEL_MAP, **ids))
    image = nib.Nifti1Image.from_bytes(gzip.decompress(packed))
    return dice_by_organ(np.asarray(image.dataobj).astype(np.uint8), case.labels)


def summarise(verdicts: list[Verdict], checkpoint_id: str, masks: MasksFrom) -> QuickResult:
    """Rates over patients, with the majority class of this very cohort beside them."""
    rng = np.random.default_rng(0)
    large = [v for v in verdicts if v.organ and v.size_mm >= 20]
    draws = [[verdicts[i] for i in rng.integers(len(verdicts), size=len(verdicts))] for _ in range(1000)]
    sensitivity, specificity = _presence(verdicts)
    most = max((sum(v.organ == o for v in large) for o in ORGANS), default=0)
    dice = {o: _mean([v.dice[o] for v in verdicts if o in v.dice]) for o in ORGANS}
    known = {o: d for o, d in dice.items() if d is not None}
    return QuickResult(
        checkpoint_id=checkpoint_id,
        masks=masks,
        first_seed=verdicts[0].seed,
        patients=len(verdicts),
        balanced_accuracy=(sensitivity + specificity) / 2,
        balanced_accuracy_interval=_interval([sum(_presence(d)) / 2 for d in draws]),
        sensitivity=sensitivity,
        specificity=specificity,
        organ_2cm=_organ_rate(large),
        organ_2cm_interval=_interval(
            [_organ_rate([v for v in d if v.organ and v.size_mm >= 20]) for d in draws]
        ),
        majority_balanced_accuracy=0.5,
        majority_organ_2cm=most / len(large) if large else float("nan"),
        strata=tuple(_stratum(k, name, verdicts) for k, name in enumerate(STRATA)),
        dice=known,
        mean_dice=_mean(list(known.values())),
        mean_rounds=float(np.mean([v.rounds for v in verdicts])),
        seconds_per_patient=float(np.mean([v.seconds for v in verdicts])),
    )


def _presence(verdicts: list[Verdict]) -> tuple[float, float]:
    sick = [v.answered is not None for v in verdicts if v.organ]
    well = [v.answered is None for v in verdicts if not v.organ]
    return (float(np.mean(sick)) if sick else float("nan")), (float(np.mean(well)) if well else float("nan"))


def _organ_rate(verdicts: list[Verdict]) -> float:
    return float(np.mean([v.answered == v.organ for v in verdicts])) if verdicts else float("nan")


def _stratum(k: int, name: str, verdicts: list[Verdict]) -> Stratum:
    inside = [v for v in verdicts if v.organ and int(v.size_mm >= 20) + int(v.size_mm > 40) == k]
    return Stratum(
        name=name,
        patients=len(inside),
        present=_mean([float(v.answered is not None) for v in inside]),
        organ=_mean([float(v.answered == v.organ) for v in inside]),
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def _percent(share: float | None) -> str:
    return "–" if share is None or np.isnan(share) else f"{100 * share:.1f}"


def _row(name: str, rate: float, interval: tuple[float, float], majority: float) -> str:
    low, high = interval
    return f"| {name} | {_percent(rate)} | {_percent(low)}–{_percent(high)} | {_percent(majority)} |"


def as_markdown(result: QuickResult) -> str:
    """The table that a reader compares with the README's."""
    presence = _row(
        "tumor present, balanced accuracy %",
        result.balanced_accuracy,
        result.balanced_accuracy_interval,
        result.majority_balanced_accuracy,
    )
    organ = _row(
        "which organ, tumors ≥ 2 cm, %",
        result.organ_2cm,
        result.organ_2cm_interval,
        result.majority_organ_2cm,
    )
    lines = [
        f"{result.patients} phantoms from seed {result.first_seed}, "
        f"checkpoint {result.checkpoint_id}, masks from {result.masks}",
        "",
        "| | nano | 95 % interval | majority |",
        "|---|---|---|---|",
        presence,
        organ,
        "",
        "| tumor size | patients | called a tumor % | organ right % |",
        "|---|---|---|---|",
        *(
            f"| {s.name} | {s.patients} | {_percent(s.present)} | {_percent(s.organ)} |"
            for s in result.strata
        ),
        "",
        f"Sensitivity {_percent(result.sensitivity)} %, specificity {_percent(result.specificity)} %; "
        f"{result.mean_rounds:.2f} rounds and {result.seconds_per_patient:.1f} s a patient.",
    ]
    if result.mean_dice is not None:
        parts = ", ".join(f"{organ} {score:.3f}" for organ, score in result.dice.items())
        lines.append(f"Segmentation Dice {result.mean_dice:.3f} ({parts}).")
    return "\n".join([*lines, "", result.disclaimer])
