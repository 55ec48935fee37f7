"""What a run of the data engine is told: a YAML file; a key that nobody knows is an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tumorchain_agent.errors import InputError
from tumorchain_agent.training.data.explain import explain

Stage = Literal["extractor", "reasoner", "calibrator", "summarizer", "mentor", "intern", "judge"]
STAGES: tuple[Stage, ...] = ("extractor", "reasoner", "calibrator", "summarizer", "mentor", "intern", "judge")
Form = Literal["choice", "open"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Part):
    """One expert's model behind an OpenAI-compatible endpoint."""

    url: str
    model: str
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; a key itself never stands in a file."""
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=4096, gt=0)
    timeout_s: float = Field(default=180.0, gt=0)
    stream: bool = False
    retries: int = Field(default=6, ge=0)
    """Tries after the first, of a call that timed out, broke off or failed in the server; one that is limited (429)
    waits and uses up none."""
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)
    """Price of a million tokens, in whatever currency; costs are reported in it."""

    @property
    def api_key(self) -> str | None:
        """InputError when the variable is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env)
        if not key:
            raise InputError(f"{self.api_key_env}, the key of {self.url}, is not set; export it")
        return key


class Experts(_Part):
    """The four experts that are language models (paper 2.2, 11.1)."""

    extractor: ModelConfig
    reasoner: ModelConfig
    calibrator: ModelConfig
    summarizer: ModelConfig


class Mics(_Part):
    """Mentor-Intern Collaborative Search (Chiron-o1, 3.2) in the place of the reasoner's first chain."""

    mentors: tuple[ModelConfig, ...] = Field(min_length=1)
    interns: tuple[ModelConfig, ...] = Field(min_length=1)
    temperatures: tuple[float, ...] = Field(default=(0.2, 0.8), min_length=1)
    """Each intern finishes a path once at each."""
    depth: int = Field(default=4, ge=1)
    searches: int = Field(default=2, ge=1)
    """How often a search is begun whose mentors all score zero."""
    judge: ModelConfig | None = None
    """Compares answers; without one, organ, malignancy and categories are compared as they are."""


class EngineConfig(_Part):
    """A run. Paths are relative to the file's folder."""

    cases: Path
    """Folder of a phantom cohort, or JSON Lines of cases with their reports."""
    experts: Experts
    mics: Mics | None = None
    knowledge: Path | None = None
    """Folder of a knowledge graph; default: the one in the package."""
    segment: bool = False
    """Segment scans that come without a label map."""
    forms: tuple[Form, ...] = Field(default=("choice", "open"), min_length=1)
    concurrency: int = Field(default=8, ge=1)
    """Cases in work, and so calls in flight."""
    reviews: int = Field(default=2, ge=0)
    """How often the calibrator and the summarizer may each send a chain back."""
    triples: int = Field(default=40, ge=1)
    """Of the knowledge graph that a case is shown at most."""
    test_share: float = Field(default=0.1, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.forms)) < len(self.forms):
            raise ValueError("forms names one twice")
        return self


def load_config(path: Path) -> EngineConfig:
    """Read a YAML file; its paths come out absolute. InputError for what can't be used."""
    import yaml

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read; name a YAML file, e.g. examples/engine.yaml") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())[:200]}); mend it") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no keys; see examples/engine.yaml")
    try:
        config = EngineConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}") from error
    folder = path.absolute().parent
    knowledge = None if config.knowledge is None else folder / config.knowledge
    return config.model_copy(update={"cases": folder / config.cases, "knowledge": knowledge})
