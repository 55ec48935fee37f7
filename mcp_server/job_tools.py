"""The tools for what went on after its call had ended."""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.tools import Tool
from mcp_types import CallToolResult

from tumorchain_agent.mcp_server.arguments import WAIT_S, JobId, Wait
from tumorchain_agent.mcp_server.background import Jobs
from tumorchain_agent.mcp_server.declare import declared
from tumorchain_agent.mcp_server.results import JobList, JobStatus


class JobTools:
    """Each method is a tool of the same name."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def tools(self) -> list[Tool]:
        return [
            declared(self.get_job, "Get a job's result"),
            declared(self.list_jobs, "List jobs"),
            declared(self.cancel_job, "Cancel a job", reads=False),
        ]

    async def get_job(
        self, job_id: JobId, ctx: Context, wait_seconds: Wait = WAIT_S
    ) -> Annotated[CallToolResult, JobStatus]:
        """Get the result of a job, or how far it is after wait_seconds.

        `result` is what the tool would have returned. A job that failed is an error, as the tool's own. Jobs
        outlive the connection and the server; any client of a server with the same settings may fetch them, for
        a week."""
        return await self._jobs.get(job_id, ctx, wait_seconds)

    async def list_jobs(self, ctx: Context) -> Annotated[CallToolResult, JobList]:
        """List the latest jobs, those under way first: for a client that lost a job_id."""
        return self._jobs.listed()

    async def cancel_job(self, job_id: JobId, ctx: Context) -> Annotated[CallToolResult, JobStatus]:
        """Cancel a job, for everyone who waits for it. What it had finished in parts is kept."""
        return await self._jobs.cancel(job_id)
