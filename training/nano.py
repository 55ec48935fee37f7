"""Make nano: ``python -m tumorchain_agent.training.nano WORK OUT [--config FILE]``.

Pool of anatomies → vision stage → tokens of fresh patients → LLM stage → checkpoint folder. Every stage keeps
its result in WORK and is not repeated.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from tumorchain_agent.model.checkpoint import PHANTOM_DATA, CheckpointInfo, save_checkpoint
from tumorchain_agent.model.config import VisionConfig
from tumorchain_agent.model.llm import build_llm, llm_config
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.model.vision import VisionTower
from tumorchain_agent.model.wording import WITHOUT_COT, WITHOUT_IIR, absent_text, attention_text, zoom_text
from tumorchain_agent.tools.distribution import Statistics, fit_ranges, volume_statistics
from tumorchain_agent.tools.preprocess import Preprocessing, preprocess
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.atomic import save_torch
from tumorchain_agent.training.cases import TokenCase, token_cases
from tumorchain_agent.training.llm_stage import LLMStageConfig, train_llm
from tumorchain_agent.training.phantom.export import write_cohort
from tumorchain_agent.training.phantom.patient import ORGANS, Truth
from tumorchain_agent.training.phantom.text import QUESTIONS, compose
from tumorchain_agent.training.phantom.volume import Pool, make_pool
from tumorchain_agent.training.seeds import DISTRIBUTION_SEED, TRAINING_SEED, VALIDATION_SEED
from tumorchain_agent.training.targets import PhantomStream, stack
from tumorchain_agent.training.tasks import SUBTASKS
from tumorchain_agent.training.vision_stage import VisionModel, VisionStageConfig, train_vision

log = logging.getLogger(__name__)


class NanoConfig(BaseModel):
    """All that decides what nano becomes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anatomies: int = 1500
    validation_anatomies: int = 120
    patients: int = 3600
    """Patients of the LLM stage; each is asked many questions."""
    held_out: int = 160
    described: int = 24
    """Scans from which the ranges of the training distribution are taken."""
    vocabulary: int = 1024
    zoom: Zoom | None = None
    """ROI zoom: the LLM gets organs' crops, too, and the checkpoint says so; ``vision.zoom_share`` teaches the encoder
    to read them."""
    vision: VisionStageConfig = VisionStageConfig()
    llm: LLMStageConfig = LLMStageConfig()
    llm_sizes: dict[str, int] = {}
    """Changes to the nano LLM's sizes, e.g. ``{"num_hidden_layers": 3}``."""


def train_nano(config: NanoConfig, work: Path, out: Path) -> CheckpointInfo:
    """Run or resume all stages and write the checkpoint folder ``out``."""
    work.mkdir(parents=True, exist_ok=True)
    pool = _pool(work / "pool", config.anatomies, TRAINING_SEED)
    validation = _pool(work / "pool_validation", config.validation_anatomies, VALIDATION_SEED)
    vision = _vision(config, pool, validation, work / "vision")
    kind = "_zoomed.pt" if config.zoom else ".pt"
    cases = _cases(config, vision, pool, config.patients, work / f"cases{kind}")
    held_out = _cases(config, vision, validation, config.held_out, work / f"held_out{kind}")
    tokenizer = build_nano_tokenizer(corpus(cases), vocabulary=config.vocabulary)
    torch.manual_seed(config.llm.seed)
    llm = build_llm(llm_config("nano", tokenizer, **config.llm_sizes))
    tower = VisionTower(VisionConfig(encoder=config.vision.encoder, hidden_size=llm.config.hidden_size))
    tower.encoder.load_state_dict(vision.encoder.state_dict())
    tower.cls.load_state_dict(vision.cls.state_dict())
    train_llm(config.llm, llm, tower, tokenizer, cases, held_out, work / "llm")
    return save_checkpoint(
        out,
        llm.train(False),
        tower.eval(),
        tokenizer,
        size="nano",
        preprocessing=Preprocessing().as_dict(),
        provenance={"data": PHANTOM_DATA, "config": config.model_dump(mode="json")},
        training_distribution={
            "statistics": fit_ranges(described_statistics(work / "described", config.described))
        },
        alpha=config.llm.alpha,
        zoom=config.zoom,
    )


def _pool(folder: Path, count: int, seed: int) -> Pool:
    if not (folder / "tissue.npy").exists():
        log.info("painting %d anatomies", count)
        return make_pool(folder, count, seed)
    return Pool.open(folder)


def _vision(config: NanoConfig, pool: Pool, validation: Pool, folder: Path) -> VisionModel:
    stream = iter(PhantomStream(validation, config.vision.seed, diseases=(0.4, 0.6)))
    batches = [stack([next(stream) for _ in range(16)]) for _ in range(12)]
    vision = config.vision.model_copy(update={"zoom": config.zoom or config.vision.zoom})
    return train_vision(vision, pool, batches, folder)


def _cases(config: NanoConfig, vision: VisionModel, pool: Pool, count: int, path: Path) -> list[TokenCase]:
    if not path.exists():
        log.info("encoding %d patients", count)
        found = token_cases(vision, pool, count, config.llm.seed, zoom=config.zoom)
        save_torch({"cases": [asdict(case) for case in found]}, path)
    stored = torch.load(path, weights_only=False)["cases"]
    return [TokenCase(**{**case, "truth": _truth(case["truth"])}) for case in stored]


def _truth(fields: dict[str, object]) -> Truth:
    return Truth(**fields)  # type: ignore[arg-type]


def corpus(cases: list[TokenCase], seed: int = 0) -> list[str]:
    """Every wording that the LLM will meet, for the tokenizer."""
    rng = np.random.default_rng([13, seed])
    texts = [question for questions in QUESTIONS.values() for question in questions]
    texts += [words(organ) for organ in ORGANS for words in (attention_text, absent_text)]
    texts += [zoom_text(organ, side_mm) for c in cases[:100] for organ, (side_mm, _) in c.zoomed.items()]
    for case in cases[:600]:
        for subtask in SUBTASKS:
            sample = compose(rng, case.truth, subtask, case.suspicion)
            texts += [sample.question, *sample.texts]
    texts += [WITHOUT_IIR, WITHOUT_COT] * (len(texts) // 20)
    return texts


def described_statistics(folder: Path, count: int) -> list[Statistics]:
    """Statistics of phantoms on the way that a user's scan takes: written, opened, preprocessed."""
    config = Preprocessing()
    found = []
    for patient in write_cohort(folder, count, DISTRIBUTION_SEED):
        volume = preprocess(open_ct(patient / "ct.nii.gz"), config).volume
        found.append(volume_statistics(volume, window_hu=config.window_hu, level_hu=config.level_hu))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", type=Path, help="JSON with fields of NanoConfig")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = NanoConfig.model_validate_json(args.config.read_text()) if args.config else NanoConfig()
    info = train_nano(config, args.work, args.out)
    log.info("checkpoint %s in %s", info.checkpoint_id, args.out)


if __name__ == "__main__":
    main()
