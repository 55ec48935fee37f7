"""What an answer rests on beside its prompt: checkpoint or LLM, evidence, scan and masks, as one hash.

Files count by path, size and time of change: a quick look at each question, which reads no voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tumorchain_agent import __version__
from tumorchain_agent.errors import TumorChainError
from tumorchain_agent.mcp_server.index import file_signature
from tumorchain_agent.records import EvidenceKind
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.cache import Part
from tumorchain_agent.tools.segment_weights import find_weights
from tumorchain_agent.training.evaluation.masks import KnownFacts

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


def of_agent(
    known: KnownFacts, evidence: EvidenceKind, chat_model: Callable[[], BaseChatModel]
) -> list[Part]:
    """Checkpoint, evidence, and the LLM behind an address where there is one."""
    settings = known.bench.settings
    checkpoint = _told(lambda: known.bench.served.checkpoint_id)
    return [__version__, "agent", evidence, checkpoint, settings.llm_url, _model(settings, chat_model)]


def of_segmenter(settings: Settings) -> Part:
    """Of scans without masks."""
    return ["segmented", _told(lambda: find_weights(settings).weights_id)]


def of_files(paths: list[Path]) -> Part:
    """Each file, and all files below each folder."""
    return [file_signature(path) for path in paths]


def of_llm(chat_model: BaseChatModel) -> list[Part]:
    """The LLM's address and name."""
    from tumorchain_agent.graph.llm import llm_name

    return [__version__, str(getattr(chat_model, "openai_api_base", None)), llm_name(chat_model)]


def _model(settings: Settings, chat_model: Callable[[], BaseChatModel]) -> str | None:
    """The served model's name; its server is asked only where the settings don't tell it."""
    from tumorchain_agent.graph.llm import llm_name

    if settings.llm_url is None or settings.llm_model is not None:
        return settings.llm_model
    return _told(lambda: llm_name(chat_model()))


def _told(look: Callable[[], str]) -> str | None:
    """``None`` where it can't be known: what needs it fails by itself, question by question."""
    try:
        return look()
    except TumorChainError:
        return None
