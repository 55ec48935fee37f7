"""``python -m tumorchain_agent.mcp_server``: serve over stdio, settings from the environment."""

from __future__ import annotations

from tumorchain_agent.mcp_server.server import run_stdio
from tumorchain_agent.settings import Settings

if __name__ == "__main__":
    run_stdio(Settings())
