"""A configuration → everything that a training works with."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from tumorchain_agent.errors import CheckpointError, DataError, InputError
from tumorchain_agent.model.checkpoint import load_llm, load_tokenizer, load_vision
from tumorchain_agent.model.config import VisionConfig
from tumorchain_agent.model.llm import build_llm
from tumorchain_agent.model.nano_encoder import NanoEncoderConfig
from tumorchain_agent.model.tokenizer import build_nano_tokenizer
from tumorchain_agent.model.vision import VisionTower
from tumorchain_agent.model.wording import WITHOUT_COT, WITHOUT_IIR, absent_text, attention_text, zoom_text
from tumorchain_agent.training.hco.config import TrainConfig
from tumorchain_agent.training.hco.dense import DenseHeads
from tumorchain_agent.training.hco.engine import Engine, build_engine
from tumorchain_agent.training.hco.export import export_checkpoint, untrained_parts
from tumorchain_agent.training.hco.joint import JointModel
from tumorchain_agent.training.hco.resume import Place, claim
from tumorchain_agent.training.hco.samples import DESCRIBE, of_phantom
from tumorchain_agent.training.hco.scans import VolumeCache
from tumorchain_agent.training.hco.sizes import sizes_of
from tumorchain_agent.training.hco.sources import PhantomSource, RecordSource, Source
from tumorchain_agent.training.hco.trainer import Run
from tumorchain_agent.training.phantom.patient import ORGANS
from tumorchain_agent.training.phantom.text import QUESTIONS
from tumorchain_agent.training.phantom.volume import Pool, make_pool
from tumorchain_agent.training.seeds import TRAINING_SEED, VALIDATION_SEED
from tumorchain_agent.training.targets import PhantomStream, stack
from tumorchain_agent.training.vision_stage import train_vision, vision_is_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)
CORPUS_SCANS: Final = 200
CORPUS_RECORDS: Final = 5000
"""From which a tokenizer is made where none is given."""


def build(config: TrainConfig, out: Path) -> Run:
    """Open the data, build or load the model, start the processes. ``out`` becomes this training's folder."""
    _check(config)
    engine = build_engine(config)
    if engine.main:
        claim(out, config.model_dump(mode="json"))
    engine.barrier()
    cache = config.data.cache or out / "cache"
    source, held_out = open_sources(config, cache, engine)
    tokenizer = _tokenizer(config, source, out, engine)
    vision = _vision(config, source, held_out, out, engine)
    torch.manual_seed(config.seed)
    model = build_model(config, tokenizer, vision).to(engine.device)
    untrained = untrained_parts(config)

    def export(name: str, place: Place) -> None:
        export_checkpoint(config, model, tokenizer, source, out / name, place, untrained)

    return Run(config, engine, model, tokenizer, source, held_out, out, cache, export)


def prepared_sources(config: TrainConfig, out: Path) -> tuple[Source, Source]:
    """What a training in ``out`` would be trained on, and what is held out, without a model."""
    _check(config)
    engine = build_engine(config)
    claim(out, config.model_dump(mode="json"))
    return open_sources(config, config.data.cache or out / "cache", engine)


def _vision(config: TrainConfig, source: Source, held_out: Source, out: Path, engine: Engine) -> Path | None:
    """``vision.pt`` to begin from, trained here where the configuration says so."""
    stage, encoder = config.pretrain, config.model.encoder
    if stage is None:
        return config.model.vision
    folder = out / "vision"
    if engine.main and not vision_is_trained(stage, folder):
        if (
            not isinstance(source, PhantomSource)
            or not isinstance(held_out, PhantomSource)
            or not isinstance(encoder, NanoEncoderConfig)
        ):
            raise InputError(
                "pretrain trains a nano encoder on phantoms: set model.encoder and data.phantoms"
            )
        log.info("the encoder, on phantoms, for %g minutes", stage.minutes)
        stream = iter(PhantomStream(Pool.open(held_out.pool), stage.seed, diseases=held_out.diseases))
        validation = [stack(list(islice(stream, 16))) for _ in range(12)]
        train_vision(stage, encoder, Pool.open(source.pool), validation, folder, config.zoom)
    engine.barrier()
    return folder / "vision.pt"


def _check(config: TrainConfig) -> None:
    """Refuse what would fail in the first step. Under zero2, bf16 is the weights' own type."""
    half = config.engine == "zero2" and config.precision == "bf16"
    if half and not torch.cuda.is_available() and sizes_of(config.model)[1].kind == "nano":
        raise InputError(
            "torch can't pool volumes in bf16 on a CPU, which engine zero2 asks of the nano encoder: "
            "set precision to fp32, or engine to plain"
        )


def open_sources(config: TrainConfig, cache: Path, engine: Engine) -> tuple[Source, Source]:
    """(what is trained on, what is held out). Raises DataError when a side is empty."""
    volumes, data = VolumeCache(cache), config.data
    found: tuple[Source, Source]
    if data.records is not None:
        train = RecordSource(data.records, "train", volumes, data.volumes, zoom=config.zoom)
        found = train, RecordSource(data.records, "test", volumes, data.volumes, zoom=config.zoom)
        for side, source in zip(("train", "test"), found, strict=True):
            if not len(source):
                raise DataError(
                    f"{data.records} has no sample of split {side}: run tumorchain-agent data split"
                )
        if train.bad_lines and engine.main:
            log.warning("%s: %d bad lines, first %s", data.records, len(train.bad_lines), train.bad_lines[0])
        if train.bad_lines and data.on_bad == "fail":
            raise DataError(f"{data.records} {train.bad_lines[0]}; mend it, or set data.on_bad to skip")
        return found
    phantoms = data.phantoms
    if phantoms is None:
        raise DataError("the configuration names no data: set data.records or data.phantoms")
    root = phantoms.pool or cache
    pools = {
        root / "pool": (phantoms.anatomies, TRAINING_SEED),
        root / "pool_validation": (phantoms.validation_anatomies, VALIDATION_SEED),
    }
    if engine.main:
        for folder, (count, seed) in pools.items():
            if not (folder / "tissue.npy").exists():
                log.info("painting %d anatomies into %s", count, folder)
                make_pool(folder, count, seed)
    engine.barrier()
    counts = (phantoms.patients, phantoms.validation_patients)
    training, validation = (
        PhantomSource(
            folder,
            count,
            config.seed,
            volumes,
            phantoms.diseases,
            data.volumes,
            config.zoom,
            phantoms.healthy,
        )
        for folder, count in zip(pools, counts, strict=True)
    )
    return training, validation


def _tokenizer(config: TrainConfig, source: Source, out: Path, engine: Engine) -> PreTrainedTokenizerFast:
    """That of the checkpoint to begin from, or one made once from the data."""
    if config.model.init is not None:
        return load_tokenizer(config.model.init)
    folder = out / "tokenizer"
    if engine.main and not (folder / "tokenizer_config.json").is_file():
        made = build_nano_tokenizer(corpus(source, config), vocabulary=config.model.vocabulary)
        made.save_pretrained(folder)
    engine.barrier()
    return load_tokenizer(folder)


def corpus(source: Source, config: TrainConfig) -> list[str]:
    """Texts as the LLM will meet them."""
    texts = [question for questions in QUESTIONS.values() for question in questions]
    texts += [words(organ) for organ in ORGANS for words in (attention_text, absent_text)]
    texts += DESCRIBE
    if config.zoom is not None:
        texts += [zoom_text(organ, mm) for organ in config.zoom.organs for mm in range(120, 360, 10)]
    if isinstance(source, RecordSource):
        numbers = [number for group in source.groups for number in group][:CORPUS_RECORDS]
        for record in map(source.record, numbers):
            texts += [record.prompt, *record.texts, record.conclusion]
    elif isinstance(source, PhantomSource):
        for scan in range(min(CORPUS_SCANS, len(source))):
            drawn = source.whole(scan)
            for pick in range(12):
                item = of_phantom(drawn, [config.seed, scan * 12 + pick], None, "")
                texts += [item.question, *item.texts, item.answer, item.caption]
    return texts + [WITHOUT_IIR, WITHOUT_COT] * (len(texts) // 20)


def build_model(
    config: TrainConfig, tokenizer: PreTrainedTokenizerFast, vision: Path | None = None
) -> JointModel:
    """From ``model.init``, or with random weights; the encoder and Cls from ``vision`` where it is given."""
    wanted = config.model
    if wanted.init is not None:
        tower, info = load_vision(wanted.init)
        if info.size != wanted.size:
            raise CheckpointError(f"{wanted.init} is of size {info.size}: set model.size to it")
        llm = load_llm(wanted.init)
    else:
        sizes, encoder = sizes_of(wanted, tokenizer)
        llm = build_llm(sizes)
        tower = VisionConfig(encoder=encoder, hidden_size=sizes.hidden_size).build()
    if vision is not None:
        _load_vision_stage(tower, vision)
    if (
        tower.config.encoder.kind == "nano" and config.engine == "plain"
    ):  # DeepSpeed wants weights in one order
        tower.encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if config.checkpointing:
        llm.gradient_checkpointing_enable({"use_reentrant": False})
    heads = None
    if any(stage.dense for stage in config.stages):
        heads = DenseHeads(tower.config.encoder.width)
    autocast = config.precision == "bf16" and config.engine == "plain"  # zero2 makes the weights bf16
    return JointModel(tower, llm, heads, torch.bfloat16 if autocast else None)


def _load_vision_stage(tower: VisionTower, path: Path) -> None:
    try:
        saved = torch.load(path, weights_only=True)["model"]
        for name, module in (("encoder.", tower.encoder), ("cls.", tower.cls)):
            mine = {k.removeprefix(name): v for k, v in saved.items() if k.startswith(name)}
            module.load_state_dict(mine)
    except (OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is no vision.pt of this encoder ({reason}): check model.vision"
        ) from error
