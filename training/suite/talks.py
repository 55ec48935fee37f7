"""Iterative Interleaved Reasoning for many questions side by side, by the graph's own prompts, Λ and stop rule.

What the graph fetches over MCP is read here straight from the encoded scan; a test holds both to the same texts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

import torch
from torch import Tensor

from tumorchain_agent.graph.matching import new_organs
from tumorchain_agent.graph.prompts import TextPart, TokensPart, Turn, check_question, conversation
from tumorchain_agent.graph.state import Asked, History, IIRConfig
from tumorchain_agent.mcp_server.served_checkpoint import ServedCheckpoint
from tumorchain_agent.model.checkpoint import load_llm, load_tokenizer
from tumorchain_agent.model.llm import pick_device, pick_dtype
from tumorchain_agent.model.template import Message, Part, render
from tumorchain_agent.records import OrganEvidence, Round, ScanInfo, TokenSet
from tumorchain_agent.settings import Settings
from tumorchain_agent.tools.organs import ORGANS as TABLE
from tumorchain_agent.tools.roi import global_pool, mean_roi, roi_tokens
from tumorchain_agent.training.phantom.patient import Truth
from tumorchain_agent.training.suite.beside import Beside
from tumorchain_agent.training.suite.patients import Variant, View, intensities

MOST_BESIDE: Final = 96
"""Conversations that are continued side by side."""
_WHOLE: Final = "whole"
_NUMBER: Final = {name: number for number, name in TABLE.items()}
_SCAN: Final = ScanInfo.model_construct()


class Shown(Protocol):
    """What a conversation's evidence is taken from."""

    @property
    def present(self) -> Collection[str]: ...

    @property
    def whole(self) -> Tensor:
        """τ_g [256, hidden]; the same tensor for all conversations that share it."""
        ...

    def roi(self, organ: str) -> Tensor:
        """τ_l [n, hidden]; n is 0 for an organ outside the model volume."""
        ...


class EncodedScan:
    """A view that a checkpoint has encoded."""

    def __init__(self, view: View, served: ServedCheckpoint) -> None:
        self.truth: Truth = view.truth
        self.variant: Variant = view.variant
        self.present, self.organs = view.present, view.organs
        self.intensities = intensities(view)
        self.tokens = served.encode(view.volume)
        """τ_v [2048, C]."""
        self.coverage = view.coverage
        self.whole = served.project(global_pool(self.tokens))
        self._served = served
        self._roi: dict[str, Tensor] = {}

    def raw_roi(self, organ: str) -> Tensor:
        """[n, C], before the projector."""
        return roi_tokens(self.tokens, self.coverage[_NUMBER[organ]]).tokens

    def roi(self, organ: str) -> Tensor:
        if organ not in self._roi:
            self._roi[organ] = self._served.project(self.raw_roi(organ))
        return self._roi[organ]

    def p_abnormal(self, organ: str) -> float:
        """By Cls; the organ must be in the model volume."""
        return self._served.p_abnormal(mean_roi(self.tokens, self.coverage[_NUMBER[organ]])[None])[0]


class Blank:
    """A scan of which nothing is seen: its tokens are zeros."""

    def __init__(self, scan: Shown) -> None:
        self._scan = scan
        self.present = scan.present
        self.whole = _zeros(*scan.whole.shape)

    def roi(self, organ: str) -> Tensor:
        return torch.zeros_like(self._scan.roi(organ))


@lru_cache(maxsize=8)
def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


class Swapped:
    """A scan with other tokens for one organ."""

    def __init__(self, scan: Shown, organ: str, tokens: Tensor) -> None:
        self._scan, self._organ, self._tokens = scan, organ, tokens
        self.present = scan.present
        self.whole = scan.whole

    def roi(self, organ: str) -> Tensor:
        return self._tokens if organ == self._organ else self._scan.roi(organ)


@dataclass
class Talk:
    """A question and all that has been said and shown about it."""

    scan: Shown
    question: str
    """With the words of its mode."""
    max_rounds: int
    rounds: list[Round] = field(default_factory=list)
    evidence: dict[str, OrganEvidence] = field(default_factory=dict)
    shown: list[OrganEvidence] = field(default_factory=list)
    """Evidence that is new to the next round."""
    over: bool = False
    cut_off: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(each.text for each in self.rounds)

    @property
    def organs(self) -> tuple[tuple[str, ...], ...]:
        """What each round was shown."""
        return tuple(tuple(each.organ for each in record.evidence) for record in self.rounds)

    def said(self, text: str, *, cut_off: bool = False) -> None:
        """Take the next round's text, and find out what comes after it (``graph.nodes.match``)."""
        self.rounds.append(
            Round(index=len(self.rounds) + 1, prompt="", text=text, evidence=tuple(self.shown))
        )
        self.cut_off |= cut_off
        texts = (self.question, text) if len(self.rounds) == 1 else (text,)
        pending = new_organs(texts, self.evidence)
        self.over = not pending or len(self.rounds) >= self.max_rounds or not text.strip()
        self.shown = [] if self.over else [self._examined(asked) for asked in pending]
        self.evidence |= {each.organ: each for each in self.shown}

    def _examined(self, asked: Asked) -> OrganEvidence:
        organ = asked["organ"]
        present = organ in self.scan.present
        tokens = self.scan.roi(organ) if present else None
        named = None if tokens is None or not len(tokens) else _token_set(organ, tokens)
        return OrganEvidence(
            organ=organ, asked_as=asked["asked_as"], present=present, kind="tokens", tokens=named
        )

    def messages(self, history: History) -> list[Message]:
        """The prompt of the next round."""
        whole = _token_set(_WHOLE, self.scan.whole)
        config = IIRConfig(history=history, max_rounds=self.max_rounds)
        question = check_question(self.question)
        turns = conversation(config, question, _SCAN, whole, self.rounds, self.shown)
        return [self._message(turn) for turn in turns]

    def _message(self, turn: Turn) -> Message:
        parts: list[Part] = []
        for part in turn.parts:
            match part:
                case TextPart(text):
                    parts.append(text)
                case TokensPart(uri, _, _):
                    parts.append(self.scan.whole if uri == _WHOLE else self.scan.roi(uri))
        return Message(turn.role, tuple(parts))


def _token_set(name: str, tokens: Tensor) -> TokenSet:
    """Named by the organ in place of a resource."""
    count, hidden = tokens.shape
    organ = None if name == _WHOLE else name
    return TokenSet(uri=name, scan_id="", organ=organ, count=count, hidden_size=hidden, checkpoint_id="")


class Asker:
    """A checkpoint that is asked: vision tower and LLM."""

    def __init__(self, settings: Settings) -> None:
        """Loads ``settings.model``, or nano. Raises CheckpointError."""
        self.served = ServedCheckpoint(settings)
        self.info = self.served.info
        device = pick_device(settings.device)
        llm = load_llm(self.served.folder, device=device, dtype=pick_dtype(self.info.size, device))
        self.tokenizer = load_tokenizer(self.served.folder)
        self.beside = Beside(llm, self.tokenizer)
        self.history: History = self.info.history

    def encode(self, view: View) -> EncodedScan:
        return EncodedScan(view, self.served)

    def answer(self, talks: Sequence[Talk]) -> None:
        """Continue all conversations to their ends."""
        going = [talk for talk in talks if not talk.over]
        while going:
            going.sort(key=lambda talk: id(talk.scan.whole))
            for first in range(0, len(going), MOST_BESIDE):
                self._round(going[first : first + MOST_BESIDE])
            going = [talk for talk in going if not talk.over]

    def _round(self, talks: Sequence[Talk]) -> None:
        prompts = [
            render(talk.messages(self.history), self.tokenizer, add_generation_prompt=True) for talk in talks
        ]
        for talk, reply in zip(talks, self.beside.generate(prompts), strict=True):
            talk.said(reply.text, cut_off=reply.cut_off)
