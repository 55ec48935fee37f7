"""The served model is the same model: through vLLM and in process, token for token, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import anyio
import openai
import pytest
import torch

from tests.serving.conftest import RunningServer
from tests.serving.phantoms import talks
from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.model.checkpoint import NANO_DIR, load_llm, load_tokenizer, read_info, served_name
from tumorchain_agent.model.generate import Decoder, Sampling
from tumorchain_agent.model.template import Message, encode_embeds, flat_ids, render, to_inputs
from tumorchain_agent.settings import Settings

pytestmark = pytest.mark.slow

PHANTOMS = 50
MAX_ROUNDS = 3
AT_ONCE = 8
LONGEST = 160


class Reply(NamedTuple):
    """What both ways say of one round."""

    prompt_tokens: int
    tokens: list[int]
    first_logprob: float


class InProcess:
    """nano in this process, greedy."""

    def __init__(self) -> None:
        self.tokenizer = load_tokenizer(NANO_DIR)
        self.decoder = Decoder(
            load_llm(NANO_DIR, device=torch.device("cpu"), dtype=torch.float32), self.tokenizer
        )

    def reply(self, messages: list[Message]) -> Reply:
        pieces = render(messages, self.tokenizer, add_generation_prompt=True)
        tokens = list(self.decoder.start(pieces, Sampling(max_tokens=LONGEST)))
        with torch.inference_mode():
            inputs = to_inputs(pieces, self.decoder.embed_tokens)
            logits = self.decoder.llm(inputs_embeds=inputs, logits_to_keep=1).logits[0, -1]
        first = float(torch.log_softmax(logits.float(), -1)[tokens[0]])
        return Reply(len(flat_ids(pieces)), tokens, first)

    def text(self, reply: Reply) -> str:
        return str(self.tokenizer.decode(reply.tokens, skip_special_tokens=True))


class Served:
    """The same over HTTP, with the ids that vLLM generated."""

    def __init__(self, server: RunningServer) -> None:
        self.url = server.url
        self.model = served_name(read_info(NANO_DIR))

    async def replies(self, prompts: list[list[Message]]) -> list[Reply]:
        """Several at once, so that vLLM batches them."""
        found: dict[int, Reply] = {}
        limit = anyio.CapacityLimiter(AT_ONCE)

        async def one(index: int) -> None:
            async with limit:
                found[index] = await self._reply(client, prompts[index])

        async with (
            openai.AsyncOpenAI(base_url=self.url, api_key="none", timeout=120) as client,
            anyio.create_task_group() as group,
        ):
            for index in range(len(prompts)):
                group.start_soon(one, index)
        return [found[index] for index in range(len(prompts))]

    async def _reply(self, client: openai.AsyncOpenAI, messages: list[Message]) -> Reply:
        sent: Any = [_as_openai(message) for message in messages]
        answer = await client.chat.completions.create(
            model=self.model,
            messages=sent,
            temperature=0,
            max_completion_tokens=LONGEST,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        choice: Any = answer.choices[0]
        assert answer.usage is not None
        return Reply(answer.usage.prompt_tokens, list(choice.token_ids), choice.logprobs.content[0].logprob)


def _as_openai(message: Message) -> dict[str, Any]:
    if message.role == "assistant":
        return {"role": message.role, "content": "".join(str(part) for part in message.parts)}
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "prompt_embeds", "data": encode_embeds(part)}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def test_greedy_answers_about_50_phantoms_are_equal_token_for_token(
    server: RunningServer, tmp_path: Path, seed: int
) -> None:
    here, there = InProcess(), Served(server)
    asked = list(talks(tmp_path / "pool", PHANTOMS, seed, ServedCheckpoint(Settings()), MAX_ROUNDS))
    going, rounds = list(asked), 0
    while going:
        prompts = [talk.messages("append") for talk in going]
        wanted = [here.reply(prompt) for prompt in prompts]
        found = anyio.run(there.replies, prompts)
        for talk, ours, theirs in zip(going, wanted, found, strict=True):
            assert theirs.prompt_tokens == ours.prompt_tokens, talk.question
            assert theirs.first_logprob == pytest.approx(ours.first_logprob, abs=1e-3), talk.question
            assert theirs.tokens == ours.tokens, talk.question
            talk.said(here.text(ours))
        rounds += len(going)
        going = [talk for talk in going if not talk.over]
    print(f"{rounds} rounds of {PHANTOMS} phantoms are equal")
    assert rounds > PHANTOMS, "no answer had a second round"
