"""What training writes: the checkpoint folder that ``ask`` and vLLM load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from tumorchain_agent import __version__
from tumorchain_agent.model.checkpoint import PHANTOM_DATA, CheckpointInfo, read_info, save_checkpoint
from tumorchain_agent.tools.distribution import Statistics, fit_ranges, volume_statistics
from tumorchain_agent.tools.preprocess import Preprocessing, preprocess
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.training.hco.config import TrainConfig
from tumorchain_agent.training.hco.joint import JointModel
from tumorchain_agent.training.hco.resume import Place
from tumorchain_agent.training.hco.scans import ScanData
from tumorchain_agent.training.hco.sources import PhantomSource, RecordSource, Source, load
from tumorchain_agent.training.phantom.export import GENERATOR, write_cohort
from tumorchain_agent.training.seeds import DISTRIBUTION_SEED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DESCRIBED_SCANS: Final = 100
"""Training scans from which the ranges of the training distribution are taken."""
PARTS: Final = ("encoder", "projector", "cls", "llm")


def export_checkpoint(
    config: TrainConfig,
    model: JointModel,
    tokenizer: PreTrainedTokenizerFast,
    source: Source,
    folder: Path,
    place: Place,
    untrained: Sequence[str] = (),
) -> CheckpointInfo:
    """Write what ``ask`` and vLLM load, with where it comes from; ``untrained`` parts hold random weights still."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    dtype = torch.bfloat16 if config.precision == "bf16" and config.model.size != "nano" else None
    try:
        return save_checkpoint(
            folder,
            model.llm,
            model.tower,
            tokenizer,
            size=config.model.size,
            preprocessing=Preprocessing().as_dict(),
            provenance=provenance_of(config, source, place, untrained),
            training_distribution=_distribution(config, source, folder.parent),
            alpha=config.stages[-1].alpha,
            zoom=config.zoom,
            weights_dtype=dtype,
        )
    finally:
        for module in training:
            module.training = True


def provenance_of(
    config: TrainConfig, source: Source, place: Place, untrained: Sequence[str] = ()
) -> dict[str, Any]:
    """What a checkpoint was made of and how, back to the first it began from; of paths only the names.

    A checkpoint is handed on, where its maker's folders are nobody's business.
    """
    records, init = config.data.records, config.model.init
    found: dict[str, Any] = {
        "data": PHANTOM_DATA if records is None else records.name,
        "data_hash": data_hash(source),
        "config": _named(config.model_dump()),
        "steps": place.total_steps,
        "samples": place.samples,
        "tokens": place.tokens,
        "validation_loss": place.best,
        "trained_by": __version__,
    }
    if init is not None:
        before = read_info(init)
        found["begun_from"] = {"checkpoint_id": before.checkpoint_id, "provenance": before.provenance}
    if untrained:
        found["untrained"] = list(untrained)
    return found


def _named(value: Any) -> Any:
    """JSON with the name alone of every path."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named(item) for item in value]
    return value


def untrained_parts(config: TrainConfig) -> list[str]:
    """Parts whose weights are random at first and that no stage trains."""
    init, rates = config.model.init, [stage.rates.model_dump() for stage in config.stages]
    random = PARTS if init is None else read_info(init).untrained
    loaded = ("encoder", "cls") if config.model.vision is not None or config.pretrain is not None else ()
    return [part for part in random if part not in loaded and not any(each[part] for each in rates)]


def data_hash(source: Source) -> str:
    """Of the records' file, or of the phantoms' anatomies and seed."""
    digest = hashlib.sha256()
    if isinstance(source, RecordSource):
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(source, PhantomSource):
        digest.update(np.load(source.pool / "seeds.npy").tobytes())
        digest.update(f"{GENERATOR} {source.seed} {source.patients} {source.diseases}".encode())
    return digest.hexdigest()


def _distribution(config: TrainConfig, source: Source, out: Path) -> dict[str, Any]:
    """Ranges of the training scans' statistics, worked out once; kept beside the checkpoints."""
    path = out / "distribution.json"
    if not path.is_file():
        ranges = fit_ranges(_statistics(config, source, out))
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps({"statistics": ranges} if ranges else {}), encoding="utf-8")
        draft.replace(path)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _statistics(config: TrainConfig, source: Source, out: Path) -> list[Statistics]:
    """Of phantoms on the way that a user's scan takes, or of the first training scans."""
    phantoms = config.data.phantoms
    if phantoms is not None:
        return _described(out / "described", phantoms.described) if phantoms.described else []
    usual = Preprocessing()
    found = []
    for number in range(min(DESCRIBED_SCANS, len(source))):
        scan = load(source, number)
        if isinstance(scan, ScanData):
            volume = scan.unit_volume().numpy()
            found.append(volume_statistics(volume, window_hu=usual.window_hu, level_hu=usual.level_hu))
    return found


def _described(folder: Path, count: int) -> list[Statistics]:
    """Of phantoms that are written, opened and preprocessed."""
    usual = Preprocessing()
    found = []
    for patient in write_cohort(folder, count, DISTRIBUTION_SEED):
        volume = preprocess(open_ct(patient / "ct.nii.gz"), usual).volume
        found.append(volume_statistics(volume, window_hu=usual.window_hu, level_hu=usual.level_hu))
    return found
