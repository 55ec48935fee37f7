"""Token by token, with the keys and values of everything that an earlier call has already seen."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from tumorchain_agent.errors import ChatModelError
from tumorchain_agent.model.template import EmbedsPiece, Piece, to_inputs

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2ForCausalLM

FinishReason = Literal["stop", "length"]
Row = int | bytes
"""What stands at a position: a token id, or the hash of an embedding."""


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy. ``max_tokens`` counts the end-of-message token, as vLLM does."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None


class PrefixCache:
    """Keys and values of the latest conversations, found again by their longest common prefix.

    Entries are never changed: a fork shares their tensors, and growing a ``DynamicCache`` copies.
    """

    def __init__(self, conversations: int) -> None:
        self._limit = conversations
        self._entries: list[tuple[list[Row], DynamicCache]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def fork(self, rows: Sequence[Row]) -> tuple[DynamicCache, int]:
        """A cache to grow, holding the longest known prefix of ``rows``, and the length of it.

        The last row is never taken from the cache, since its logits are needed.
        """
        from transformers import DynamicCache

        lengths = [_common_prefix(known, rows[:-1]) for known, _ in self._entries]
        best = max(lengths, default=0)
        if best == 0:
            return DynamicCache(), 0
        known, cache = self._entries[lengths.index(best)]
        fork = copy.copy(cache)
        fork.layers = [copy.copy(layer) for layer in cache.layers]
        fork.crop(best - len(known))
        return fork, best

    def keep(self, rows: Sequence[Row], cache: DynamicCache) -> None:
        """Remember a conversation as the latest, in place of those that it continues."""
        kept = [entry for entry in self._entries if _common_prefix(entry[0], rows) < len(entry[0])]
        self._entries = [(list(rows), cache), *kept][: self._limit]


class Decoder:
    """An LLM with its :class:`PrefixCache`. Calls from several threads take turns step by step."""

    def __init__(
        self, llm: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, conversations: int = 4
    ) -> None:
        self.llm = llm
        self.embed_tokens = cast(nn.Embedding, llm.get_input_embeddings())
        self.context = int(llm.config.max_position_embeddings)
        self.end_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        self._prefixes = PrefixCache(conversations)
        self._lock = threading.Lock()

    def start(self, pieces: Sequence[Piece], sampling: Sampling) -> Generation:
        """Begin an answer to a rendered prompt. Raises :class:`ChatModelError` when it fills the context."""
        length = sum(len(piece) for piece in pieces)
        if length >= self.context:
            raise ChatModelError(
                f"the prompt is {length} tokens long and the LLM's context is {self.context}: "
                "use --history latest, fewer rounds (--max-rounds) or a shorter question"
            )
        with self._lock, torch.inference_mode():
            rows = _rows(pieces, self.embed_tokens.weight.dtype)
            cache, cached = self._prefixes.fork(rows)
            inputs = to_inputs(pieces, self.embed_tokens)[:, cached:]
        return Generation(self, inputs, rows, cache, cached, sampling)

    def step(self, inputs: Tensor, cache: DynamicCache) -> Tensor:
        """Logits [vocabulary], float32, after embeddings [1, n, hidden] that follow what ``cache`` holds."""
        call: Any = self.llm
        with self._lock, torch.inference_mode():
            output = call(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: Tensor = output.logits[0, -1].float()
        return logits

    def embed(self, token: int) -> Tensor:
        with torch.inference_mode():
            row: Tensor = self.embed_tokens(torch.tensor([[token]], device=self.embed_tokens.weight.device))
        return row

    def keep(self, rows: Sequence[Row], cache: DynamicCache) -> None:
        with self._lock:
            self._prefixes.keep(rows, cache)


class Generation:
    """Iterate it once for the token ids of the answer, the end-of-message token included when it comes."""

    def __init__(
        self,
        decoder: Decoder,
        inputs: Tensor,
        rows: list[Row],
        cache: DynamicCache,
        cached_tokens: int,
        sampling: Sampling,
    ) -> None:
        self.prompt_tokens = len(rows)
        self.cached_tokens = cached_tokens
        self.completion_tokens = 0
        self.finish_reason: FinishReason = "length"
        self._decoder, self._inputs, self._rows, self._cache = decoder, inputs, rows, cache
        self._sampling = sampling

    def __iter__(self) -> Iterator[int]:
        room = self._decoder.context - self.prompt_tokens
        choose = _Chooser(self._sampling)
        inputs = self._inputs
        try:
            for _ in range(min(self._sampling.max_tokens, room)):
                token = choose(self._decoder.step(inputs, self._cache))
                self.completion_tokens += 1
                self._rows.append(token)
                if token in self._decoder.end_ids:
                    self.finish_reason = "stop"
                    yield token
                    return
                yield token
                inputs = self._decoder.embed(token)
        finally:
            seen = self._cache.get_seq_length()
            self._decoder.keep(self._rows[:seen], self._cache)


class _Chooser:
    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random: torch.Generator | None = None

    def __call__(self, logits: Tensor) -> int:
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        if self._random is None:
            self._random = torch.Generator()
            seed = self._sampling.seed
            self._random.manual_seed(seed) if seed is not None else self._random.seed()
        p = torch.softmax(logits.cpu() / self._sampling.temperature, dim=-1)
        p, order = p.sort(descending=True)
        p[p.cumsum(0) - p >= self._sampling.top_p] = 0
        return int(order[torch.multinomial(p, 1, generator=self._random)])


def _rows(pieces: Sequence[Piece], dtype: torch.dtype) -> list[Row]:
    rows: list[Row] = []
    for piece in pieces:
        if isinstance(piece, EmbedsPiece):
            raw = piece.embeds.detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy()
            rows.extend(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in raw)
        else:
            rows.extend(piece.ids)
    return rows


def _common_prefix(a: Sequence[Row], b: Sequence[Row]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


class TextStream:
    """Token ids → text as it becomes certain: whole characters, and nothing that may begin a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._ids = []
        return self._release(text)

    def finish(self) -> str:
        """What was held back; nothing after a stop text."""
        text = "" if self.stopped else self._release(self._decode()) + self._held
        self._ids, self._held = [], ""
        return text

    def _decode(self) -> str:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _release(self, text: str) -> str:
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain = self._held[: len(self._held) - keep]
        self._held = self._held[len(certain) :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
