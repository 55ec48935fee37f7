"""Settings from ``TUMORCHAIN_*`` environment variables; an explicit argument always wins over them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Precision = Literal["auto", "float32", "bfloat16"]


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tumorchain-agent"


def _folders(given: Any) -> Any:
    return tuple(part for part in given.split(os.pathsep) if part) if isinstance(given, str) else given


class Settings(BaseSettings):
    """What every room may need to know; passed down explicitly, never read from a global."""

    model_config = SettingsConfigDict(env_prefix="TUMORCHAIN_", extra="ignore", frozen=True)

    cache_dir: Path = Field(default_factory=_default_cache)
    """Where segmentations, tokens, checkpoints of questions and job state live."""

    cache_max_gb: float = Field(default=20.0, gt=0)
    """Least recently used entries are removed above this size."""

    model: Path | None = None
    """TumorChain checkpoint folder; ``None`` is the nano model that ships with the package."""

    allow_untrained: bool = False
    """Let a checkpoint answer whose projector and Cls are untrained: to try the machinery, as its answers are
    noise."""

    segmentation: Literal["auto", "official", "nano"] = "auto"
    """``auto``: official TotalSegmentator weights when installed, else the nano weights."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` …"""

    encoder_precision: Precision = "auto"
    """``auto``: bfloat16 for a ViT where the processor or GPU multiplies it, else float32; nano is float32."""

    window_hu: float = Field(default=400.0, gt=0)
    level_hu: float = 40.0
    """Soft-tissue window (paper 10.1)."""

    max_scan_voxels: int = 1_500_000_000
    """A header that claims more voxels than this is refused before anything is allocated."""

    llm_url: str | None = None
    llm_model: str | None = None
    llm_api_key: str | None = None
    llm_timeout_s: float = Field(default=300.0, gt=0)

    roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_folders)] = ()
    """Folders below which the MCP server reads files for its callers, in the variable joined by ``:``; none is the
    working directory."""

    mcp_token: SecretStr | None = None
    """Bearer token that callers of the MCP server over HTTP must show."""

    max_rounds: int = Field(default=8, ge=1)
    """Guard against endless rounds; reported when hit."""
