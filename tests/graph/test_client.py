"""The typed client: records, errors, resources, a server that forgot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import pytest
import torch
from mcp.server import MCPServer
from mcp_types import CallToolResult, TextContent
from safetensors.torch import save

from tests.graph.fakes import LABELS, SCAN, FakeCT, global_uri, tokens_label, tokens_uri
from tumorchain_agent.errors import InputError, ScanError, TumorChainError
from tumorchain_agent.graph.client import ERROR_META, MAX_PICTURE_BYTES, CTTools, connect
from tumorchain_agent.mcp_server import calls

T = TypeVar("T")


def use(server: MCPServer[Any], work: Callable[[CTTools], Awaitable[T]], **options: Any) -> T:
    async def scenario() -> T:
        async with connect(server) as client:
            return await work(CTTools(client, **options))

    return anyio.run(scenario)


def server_with(**tools: Callable[..., Any]) -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("odd", log_level="CRITICAL")
    for name, function in tools.items():
        server.add_tool(function, name=name)
    return server


def test_client_and_server_agree_where_an_error_is_told() -> None:
    assert ERROR_META == calls.ERROR_META


def test_a_tool_error_is_raised_as_what_the_server_raised() -> None:
    with pytest.raises(ScanError) as raised:
        use(FakeCT().server(), lambda tools: tools.open_scan("missing.nii.gz"))
    assert str(raised.value) == "missing.nii.gz does not exist; check the path"
    assert raised.value.exit_code == 2


def test_an_error_told_in_words_only_is_recognised() -> None:
    async def open_scan(path: str) -> CallToolResult:
        text = "Error executing tool open_scan: ScanError: it is\n4-D; pass --volume"
        return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)

    with pytest.raises(ScanError, match=r"^it is 4-D; pass --volume$"):
        use(server_with(open_scan=open_scan), lambda tools: tools.open_scan("ct"))


def test_a_crash_of_a_tool_is_an_error_of_ours_that_names_the_tool() -> None:
    async def open_scan(path: str) -> CallToolResult:
        raise ValueError("secret")

    with pytest.raises(TumorChainError, match="tool open_scan failed") as raised:
        use(server_with(open_scan=open_scan), lambda tools: tools.open_scan("ct"))
    assert "secret" not in str(raised.value)


def test_a_tool_that_is_missing_is_an_error_of_ours() -> None:
    with pytest.raises(TumorChainError, match="open_scan"):
        use(server_with(), lambda tools: tools.open_scan("ct"))


def test_a_result_of_another_shape_names_what_is_wrong() -> None:
    async def open_scan(path: str) -> dict[str, Any]:
        return {"scan_id": 3}

    with pytest.raises(TumorChainError, match=r"no valid ScanInfo \(scan_id"):
        use(server_with(open_scan=open_scan), lambda tools: tools.open_scan("ct"))


def test_progress_of_a_tool_reaches_the_caller() -> None:
    seen: list[tuple[float | None, str]] = []
    use(FakeCT().server(), lambda tools: tools.open_scan("ct", on_progress=lambda *told: seen.append(told)))
    assert seen == [(0.5, "reading the scan")]


def test_tokens_become_prompt_embeds_and_are_read_once() -> None:
    ct = FakeCT()

    async def work(tools: CTTools) -> tuple[str, str]:
        await tools.tokens(tokens_uri("liver"), 1)
        return await tools.tokens(tokens_uri("liver"), 1), await tools.tokens(global_uri(), 2)

    assert [tokens_label(data) for data in use(ct.server(), work)] == ["<τ_l liver>", "<τ_g>"]
    assert ct.reads == ["liver", "global"]


def test_what_was_read_is_forgotten_oldest_use_first_when_memory_is_full() -> None:
    ct = FakeCT()

    async def work(tools: CTTools) -> None:
        size = len(await tools.tokens(tokens_uri("liver"), 1))
        tools._memory_bytes = 2 * size + size // 2
        await tools.tokens(tokens_uri("spleen"), 1)
        await tools.tokens(tokens_uri("liver"), 1)
        await tools.tokens(tokens_uri("stomach"), 1)
        await tools.tokens(tokens_uri("liver"), 1)
        await tools.tokens(tokens_uri("spleen"), 1)

    use(ct.server(), work)
    assert ct.reads == ["liver", "spleen", "stomach", "spleen"]


def test_a_number_of_tokens_other_than_announced_is_an_error() -> None:
    with pytest.raises(TumorChainError, match="holds 1 tokens where 5 were announced"):
        use(FakeCT().server(), lambda tools: tools.tokens(tokens_uri("liver"), 5))


@pytest.mark.parametrize(
    "content", [b"no safetensors", save({"other": torch.zeros(1, 4)})], ids=["other file", "other tensor"]
)
def test_a_resource_that_holds_no_tokens_is_an_error(content: bytes) -> None:
    server = server_with()
    server.resource("tokens://bad", name="bad", mime_type="application/octet-stream")(lambda: content)
    with pytest.raises(TumorChainError, match="tokens://bad is no safetensors file"):
        use(server, lambda tools: tools.tokens("tokens://bad", 1))


def test_a_picture_over_the_limit_is_an_error() -> None:
    server = server_with()
    server.resource("picture://big", name="big", mime_type="image/png")(
        lambda: b"x" * (MAX_PICTURE_BYTES + 1)
    )
    with pytest.raises(TumorChainError, match="262,145 bytes"):
        use(server, lambda tools: tools.picture("picture://big"))


def test_a_resource_that_is_missing_is_an_error_of_ours() -> None:
    with pytest.raises(TumorChainError, match="picture://none"):
        use(server_with(), lambda tools: tools.picture("picture://none"))


def test_a_server_that_forgot_is_told_scan_and_label_map_once() -> None:
    ct = FakeCT()

    async def work(tools: CTTools) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(tools.restore, "ct", None, SCAN, LABELS, "masks.nii.gz")

    use(ct.server(), work)
    assert ct.calls == [("open_scan", ""), ("segment_organs", "")]


def test_a_scan_that_changed_in_between_is_refused() -> None:
    with pytest.raises(InputError, match=r"other\.nii has changed since the question began"):
        use(FakeCT().server(), lambda tools: tools.restore("other.nii", None, SCAN, LABELS, None))


def test_a_segmentation_that_changed_in_between_is_refused() -> None:
    with pytest.raises(InputError, match="segmentation of ct changed"):
        use(FakeCT().server(), lambda tools: tools.restore("ct", None, SCAN, "labels-0", None))
