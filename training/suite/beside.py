"""Many conversations continued side by side, greedily; those about one scan share its keys and values.

A prompt's *trunk* is its beginning up to the end of τ_g. It is read once for all questions about a scan, and
attended to without a copy for each. What follows is padded on the left; padding is never attended to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from tumorchain_agent.errors import ChatModelError
from tumorchain_agent.model.generate import TextStream
from tumorchain_agent.model.template import EmbedsPiece, Piece, to_inputs
from tumorchain_agent.training.packing import attending

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

ATTENTION: Final = "tumorchain_beside"
MAX_TOKENS: Final = 1024
"""Longest reply, as in ``model.chat``."""
_ROOM: Final = 64


@dataclass
class _Layer:
    """Keys and values of one layer."""

    trunks: list[tuple[Tensor, Tensor]]
    """[kv heads, t, d] of each trunk."""
    keys: Tensor
    """[rows, kv heads, room, d]."""
    values: Tensor


@dataclass
class _Rows:
    """What has been read after the trunks: one row a conversation, rows of a trunk next to each other."""

    trunk_of: list[int | None]
    lengths: list[int]
    """Of each row's trunk."""
    layers: list[_Layer] = field(default_factory=list)
    valid: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.bool))
    """[rows, positions so far]; false is padding."""

    def groups(self) -> Iterator[tuple[slice, int | None]]:
        """Rows of each trunk."""
        start = 0
        for row in range(1, len(self.trunk_of) + 1):
            if row == len(self.trunk_of) or self.trunk_of[row] != self.trunk_of[start]:
                yield slice(start, row), self.trunk_of[start]
                start = row

    def select(self, kept: Tensor) -> None:
        """Forget the other rows."""
        rows = kept.tolist()
        self.trunk_of = [self.trunk_of[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        self.valid = self.valid[kept]
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[kept], layer.values[kept]

    def write(self, number: int, key: Tensor, value: Tensor) -> _Layer:
        """Append [rows, kv heads, n, d] to a layer; ``valid`` knows the new positions already."""
        layer, stop = self.layers[number], self.valid.shape[1]
        if stop > layer.keys.shape[2]:
            more = (*key.shape[:2], stop - layer.keys.shape[2] + _ROOM, key.shape[3])
            layer.keys = torch.cat([layer.keys, key.new_empty(more)], dim=2)
            layer.values = torch.cat([layer.values, key.new_empty(more)], dim=2)
        start = stop - key.shape[2]
        layer.keys[:, :, start:stop] = key
        layer.values[:, :, start:stop] = value
        return layer


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    beside: _Rows,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' interface: query [rows, heads, n, d], new keys and values → [rows, n, heads, d]."""
    rows, heads, n, d = query.shape
    kv_heads = key.shape[1]
    layer, stop = beside.write(module.layer_idx, key, value), beside.valid.shape[1]
    query = (query * scaling).reshape(rows, kv_heads, heads // kv_heads * n, d)
    unseen = ~beside.valid[:, None, :].expand(rows, n, stop)
    if n > 1:
        unseen = unseen | torch.ones(n, stop, dtype=torch.bool, device=key.device).triu(stop - n + 1)
    unseen = unseen.repeat(1, heads // kv_heads, 1)[:, None]
    found = []
    for which, trunk in beside.groups():
        q, v = query[which], layer.values[which, :, :stop]
        scores = (q @ layer.keys[which, :, :stop].transpose(-1, -2)).masked_fill(unseen[which], float("-inf"))
        if trunk is None:
            found.append(scores.softmax(-1) @ v)
            continue
        k_trunk, v_trunk = layer.trunks[trunk]
        t = k_trunk.shape[1]
        together = q.transpose(0, 1).reshape(kv_heads, -1, d)
        seen = (together @ k_trunk.transpose(-1, -2)).view(kv_heads, len(q), -1, t).transpose(0, 1)
        share = torch.cat([seen, scores], dim=-1).softmax(-1)
        of_trunk = share[..., :t].transpose(0, 1).reshape(kv_heads, -1, t) @ v_trunk
        found.append(of_trunk.view(kv_heads, len(q), -1, d).transpose(0, 1) + share[..., t:] @ v)
    out = torch.cat(found).view(rows, heads, n, d)
    return out.transpose(1, 2), None


@dataclass(frozen=True)
class Reply:
    """What was said to one prompt."""

    text: str
    tokens: int
    cut_off: bool
    """It reached the longest reply."""


class Beside:
    """An LLM that answers many prompts at once."""

    def __init__(
        self, llm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.llm, self.tokenizer, self.max_tokens = llm, tokenizer, max_tokens
        self.embed = cast(nn.Embedding, llm.get_input_embeddings())
        self.device = self.embed.weight.device
        self.end_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        self.context = int(llm.config.max_position_embeddings)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[Piece]]) -> list[Reply]:
        """A greedy reply to each rendered prompt. Raises ChatModelError when one fills the LLM's context."""
        trunks: dict[tuple[int, ...], int] = {}
        numbers = [trunks.setdefault(_trunk_key(prompt), len(trunks)) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda k: numbers[k])
        first = {numbers[k]: prompts[k][:2] for k in reversed(order)}
        lengths = {number: sum(map(len, pieces)) for number, pieces in first.items()}
        for prompt in prompts:
            self._check(sum(map(len, prompt)))
        with attending(self.llm, ATTENTION, _attention):
            read = [self._read_trunk(first[number]) for number in range(len(trunks))]
            rows = _Rows([numbers[k] for k in order], [lengths[numbers[k]] for k in order])
            said = self._continue(rows, read, [prompts[k][2:] for k in order])
        replies = {k: self._reply(ids) for k, ids in zip(order, said, strict=True)}
        return [replies[k] for k in range(len(prompts))]

    def _check(self, length: int) -> None:
        if length >= self.context:
            raise ChatModelError(
                f"a prompt is {length} tokens long and the LLM's context is {self.context}: "
                "evaluate with fewer rounds"
            )

    def _read_trunk(self, pieces: Sequence[Piece]) -> list[tuple[Tensor, Tensor]]:
        inputs = to_inputs(pieces, self.embed)
        rows = _Rows([None], [0])
        self._prepare(rows, [[] for _ in range(self.llm.config.num_hidden_layers)], inputs.shape[1])
        self._forward(rows, inputs, torch.ones(1, inputs.shape[1], dtype=torch.bool))
        length = inputs.shape[1]
        return [
            (layer.keys[0, :, :length].clone(), layer.values[0, :, :length].clone()) for layer in rows.layers
        ]

    def _prepare(self, rows: _Rows, trunks: list[list[tuple[Tensor, Tensor]]], length: int) -> None:
        config = self.llm.config
        d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = int(config.num_key_value_heads or config.num_attention_heads)
        shape = (len(rows.trunk_of), heads, length + _ROOM, int(d))
        empty = self.embed.weight.new_empty
        rows.layers = [_Layer(trunk, empty(shape), empty(shape)) for trunk in trunks]
        rows.valid = torch.zeros(shape[0], 0, dtype=torch.bool, device=self.device)

    def _forward(self, rows: _Rows, inputs: Tensor, valid: Tensor) -> Tensor:
        """Next token [rows] after embeddings [rows, n, hidden], of which ``valid`` [rows, n] are no padding."""
        valid = valid.to(self.device)
        before = rows.valid.sum(1) + torch.tensor(rows.lengths, device=self.device)
        places = before[:, None] + valid.cumsum(1) - 1
        rows.valid = torch.cat([rows.valid, valid], dim=1)
        call: Any = self.llm.model
        states = call(
            inputs_embeds=inputs,
            position_ids=places.clamp_min(0),
            attention_mask={"full_attention": None},
            use_cache=False,
            beside=rows,
        ).last_hidden_state
        logits: Tensor = self.llm.lm_head(states[:, -1])
        return logits.float().argmax(-1)

    def _continue(
        self, rows: _Rows, read: list[list[tuple[Tensor, Tensor]]], rest: list[Sequence[Piece]]
    ) -> list[list[int]]:
        inputs, valid = self._padded(rest)
        room = [
            self.context - length - int(own) for length, own in zip(rows.lengths, valid.sum(1), strict=True)
        ]
        most = [min(self.max_tokens, each) for each in room]
        self._prepare(rows, [list(layer) for layer in zip(*read, strict=True)], inputs.shape[1])
        said: list[list[int]] = [[] for _ in rest]
        alive = list(range(len(rest)))
        live = torch.arange(len(rest))
        while True:
            tokens = self._forward(rows, inputs, valid).tolist()
            for place in live.tolist():
                said[alive[place]].append(tokens[place])
            going = [p for p in live.tolist() if not self._ended(said[alive[p]], most[alive[p]])]
            if not going:
                return said
            live = torch.tensor(going)
            if 2 * len(going) <= len(alive):
                rows.select(live.to(self.device))
                tokens = [tokens[p] for p in going]
                alive = [alive[p] for p in going]
                live = torch.arange(len(alive))
            inputs = self.embed(torch.tensor(tokens, device=self.device))[:, None]
            valid = torch.ones(len(alive), 1, dtype=torch.bool)

    def _ended(self, ids: list[int], most: int) -> bool:
        return ids[-1] in self.end_ids or len(ids) >= most

    def _padded(self, rest: list[Sequence[Piece]]) -> tuple[Tensor, Tensor]:
        """Embeddings [rows, n, hidden] padded on the left, and where there is no padding."""
        each = [to_inputs(pieces, self.embed)[0] for pieces in rest]
        n = max(len(row) for row in each)
        inputs = torch.stack([nn.functional.pad(row, (0, 0, n - len(row), 0)) for row in each])
        valid = torch.tensor([[k >= n - len(row) for k in range(n)] for row in each])
        return inputs, valid

    def _reply(self, ids: list[int]) -> Reply:
        stream = TextStream(self.tokenizer)
        text = "".join(stream.push(token) for token in ids) + stream.finish()
        return Reply(text, len(ids), ids[-1] not in self.end_ids)


def _trunk_key(prompt: Sequence[Piece]) -> tuple[int, ...]:
    """Prompts with equal keys begin alike: with the same ids and the same tensor."""
    head, evidence = prompt[:2]
    if isinstance(head, EmbedsPiece) or not isinstance(evidence, EmbedsPiece):
        raise ValueError("a prompt begins with text, then the tokens of the whole scan")
    return (*head.ids, -1, id(evidence.embeds))
