"""Which servers of one cache folder share jobs: those whose callers have the same rights and get the same results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tumorchain_agent import __version__
from tumorchain_agent.mcp_server.arguments import PATHS
from tumorchain_agent.mcp_server.guard import Guard
from tumorchain_agent.mcp_server.index import file_signature
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.cache import content_key

_TOLD_OTHERWISE: Final = frozenset({"model", "roots"})
_WITHOUT_EFFECT: Final = frozenset({"cache_dir", "cache_max_gb", "llm_api_key", "llm_timeout_s", "mcp_token"})
"""Settings that neither results nor rights rest on: a server that is started again with others goes on."""


def context_of(settings: Settings, guard: Guard) -> str:
    """Content key of the callers' rights, and of the version, weights and settings that results rest on."""
    model, roots = settings.model, guard.roots
    return content_key(
        __version__,
        None if roots is None else sorted(map(str, roots)),
        None if model is None else file_signature(model) or str(model.absolute()),
        settings.model_dump(mode="json", exclude=set(_TOLD_OTHERWISE | _WITHOUT_EFFECT)),
    )


def with_whole_paths(arguments: Mapping[str, Any], guard: Guard) -> dict[str, Any]:
    """A tool's arguments, its paths absolute: as typed they are other files to a server with other roots.

    Raises InputError for a path that may not be read.
    """
    return {
        name: str(guard.read(value, PATHS[name])) if name in PATHS else value
        for name, value in arguments.items()
    }
