"""Which work is behind which tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tumorchain_agent.mcp_server import links, texts
from tumorchain_agent.mcp_server.asking import Asker
from tumorchain_agent.mcp_server.calls import ProgressReporter
from tumorchain_agent.mcp_server.tasks import Task, blocking
from tumorchain_agent.mcp_server.workbench import Workbench
from tumorchain_agent.records import Answer


def tasks_of(bench: Workbench, asker: Asker) -> dict[str, Task]:
    """Every tool that may take long; arguments that aren't given have the defaults of the work."""

    async def ask(arguments: Mapping[str, Any], reporter: ProgressReporter) -> Answer:
        given = dict(arguments)
        return await asker.ask(given.pop("path"), given.pop("question"), reporter, **given)

    return {
        "open_scan": blocking(lambda **given: bench.open_scan(**given), texts.tell_scan),
        "segment_organs": blocking(
            lambda **given: bench.segment_organs(**given), texts.tell_segmentation, links.of_segmentation
        ),
        "measure_organs": blocking(lambda **given: bench.measure_organs(**given), texts.tell_measurements),
        "measure_lesions": blocking(lambda **given: bench.measure_lesions(**given), texts.tell_lesions),
        "measure_contact": blocking(lambda **given: bench.measure_contact(**given), texts.tell_contact),
        "encode_scan": blocking(
            lambda **given: bench.encode_scan(**given), texts.tell_tokens, links.of_tokens
        ),
        "extract_roi_tokens": blocking(
            lambda **given: bench.extract_roi_tokens(**given), texts.tell_tokens, links.of_tokens
        ),
        "classify_abnormality": blocking(
            lambda **given: bench.classify_abnormality(**given), texts.tell_classifications
        ),
        "compare_scans": blocking(lambda **given: bench.compare_scans(**given), texts.tell_comparison),
        "view_organ": blocking(
            lambda **given: bench.view_organ(**given), texts.tell_pictures, links.of_pictures
        ),
        "ask": Task(ask, texts.tell_answer, links.of_answer),
    }
