"""Conversations → packed rows: token ids, labels, and how each evidence token is mixed from vision tokens.

Everything here is known from texts and label maps, before any encoding; so a row can be made by a loader's worker,
and the vision tokens of a scan are computed once for all questions about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tumorchain_agent.errors import InputError
from tumorchain_agent.model.template import (
    IGNORED_LABEL,
    EmbedsPiece,
    Message,
    Role,
    TokenPiece,
    labels,
    render,
)
from tumorchain_agent.tools.roi import CELLS, Mixture, global_mixture, mean_mixture, roi_mixture
from tumorchain_agent.tools.zoom import Zoom
from tumorchain_agent.training.packing import Block

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Coverage = Mapping[str, NDArray[np.float32]]
"""Organ in the scan → its share of each patch [8, 16, 16]."""


@dataclass(frozen=True)
class Evidence:
    """Where a message shows tokens: τ_g of the whole scan, τ_l of an organ, or those of the organ's crop."""

    organ: str | None = None
    zoomed: bool = False

    def mixture(self, coverage: Coverage, crops: Coverage | None = None, zoom: Zoom | None = None) -> Mixture:
        """Of the whole's vision tokens, or of the crop's: ``crops`` is each organ's coverage of its own crop."""
        if self.organ is None:
            return global_mixture()
        if self.zoomed:
            return (zoom or Zoom()).mixture((crops or {})[self.organ])
        return roi_mixture(coverage[self.organ])


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; an assistant says only text."""

    role: Role
    parts: tuple[str | Evidence, ...]
    learn: bool = True
    """Off for an assistant's text that is only context: no loss is taken on it."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One conversation as positions: ids and labels, 0 and ``IGNORED_LABEL`` where evidence stands."""

    name: str
    ids: Tensor
    labels: Tensor
    evidence: tuple[tuple[int, Mixture], ...]
    """(first position, mixture of as many tokens as it has positions)."""
    crops: tuple[str | None, ...] = ()
    """Of each evidence: the organ whose crop it is mixed from, ``None`` for the whole. Empty: all of the whole."""

    @property
    def trunk(self) -> int:
        """Positions up to the end of τ_g: alike in all conversations about a scan."""
        if not self.evidence:
            return 0
        at, mixture = self.evidence[0]
        return at + mixture.count if mixture.count == CELLS // 8 else 0


def encode(
    name: str,
    turns: Sequence[Turn],
    coverage: Coverage,
    tokenizer: PreTrainedTokenizerFast,
    crops: Coverage | None = None,
    zoom: Zoom | None = None,
) -> Encoded:
    """Render a conversation by the one template that inference uses (eq. 3, 4, 6).

    ``crops`` and ``zoom`` are for zoomed evidence: each organ's coverage of its own crop, and how it is pooled. Raises
    InputError when a turn shows an organ that ``coverage`` lacks.
    """
    shown = [part for turn in turns for part in turn.parts if isinstance(part, Evidence)]
    _check_shown(name, shown, coverage)
    mixtures = [part.mixture(coverage, crops, zoom) for part in shown]
    waiting = iter(mixtures)
    messages = [
        Message(
            turn.role,
            tuple(p if isinstance(p, str) else torch.zeros(next(waiting).count, 1) for p in turn.parts),
        )
        for turn in turns
    ]
    pieces = render(messages, tokenizer, add_generation_prompt=False)
    ids: list[int] = []
    evidence = []
    remaining = iter(mixtures)
    for piece in pieces:
        if isinstance(piece, EmbedsPiece):
            evidence.append((len(ids), next(remaining)))
            ids += [0] * len(piece)
        elif isinstance(piece, TokenPiece):
            ids += piece.ids
    wanted = _unlearned(labels(pieces, tokenizer), [t.learn for t in turns if t.role == "assistant"])
    views = tuple(part.organ if part.zoomed else None for part in shown)
    return Encoded(name, torch.tensor(ids), wanted, tuple(evidence), views if any(views) else ())


def _unlearned(wanted: Tensor, learn: Sequence[bool]) -> Tensor:
    """Labels without those of the assistants' texts that aren't to be learned: the k-th run of labels is the k-th
    assistant's."""
    if all(learn):
        return wanted
    here = wanted != IGNORED_LABEL
    first = here & ~torch.cat([torch.zeros(1, dtype=torch.bool), here[:-1]])
    number = first.long().cumsum(0) - 1
    kept = torch.tensor(learn)[number.clamp_min(0)] & here
    return torch.where(kept, wanted, torch.tensor(IGNORED_LABEL))


def _check_shown(name: str, shown: Sequence[Evidence], coverage: Coverage) -> None:
    for part in shown:
        if part.organ is not None and part.organ not in coverage:
            raise InputError(
                f"{name} shows {part.organ}, which its label map doesn't hold; mend the sample or the map"
            )


@dataclass(frozen=True, eq=False)
class Questions:
    """Conversations about one scan, and its organs with their labels for Cls."""

    scan: int
    """Index into the batch's scans."""
    encoded: tuple[Encoded, ...]
    coverage: Coverage
    abnormal: Mapping[str, int]
    """Organ → 0 normal or 1 abnormal; organs without a label are left out."""
    crops: Mapping[str, int] = field(default_factory=dict)
    """Organ → index of its crop, counted like ``scan``."""

    @property
    def trunk(self) -> int:
        return min((e.trunk for e in self.encoded), default=0)

    def __len__(self) -> int:
        """Positions that it takes in a row."""
        return self.trunk + sum(len(e.ids) - self.trunk for e in self.encoded)


@dataclass(frozen=True, eq=False)
class Row:
    """A packed row. Mixing: token ``groups[i]`` += ``weights[i]`` · vision token ``cells[i]``."""

    ids: Tensor
    """int64 [T]."""
    labels: Tensor
    """int64 [T], not shifted."""
    blocks: tuple[Block, ...]
    places: Tensor
    """int64 [E]: positions of the evidence tokens."""
    cells: Tensor
    """int64 [G] into the batch's vision tokens [scans and crops · 2048, C]."""
    groups: Tensor
    """int64 [G] 0 … E − 1."""
    weights: Tensor
    """float32 [G]."""
    names: tuple[str, ...]

    @property
    def text_tokens(self) -> int:
        """How many labels the text loss is taken on."""
        return int((self.labels != IGNORED_LABEL).sum())


@dataclass(frozen=True, eq=False)
class Organs:
    """Cls's part of a batch: means of organs' vision tokens and their labels (eq. 8, second term)."""

    cells: Tensor
    groups: Tensor
    weights: Tensor
    labels: Tensor
    """int64 [M]."""


def make_row(questions: Sequence[Questions]) -> Row:
    """Lay the conversations of several scans end to end; those of a scan share its trunk."""
    parts = _Parts()
    for item in questions:
        trunk, first = item.trunk, len(parts.blocks)
        if trunk:
            parts.add(item.encoded[0], 0, trunk, item, None)
        for encoded in item.encoded:
            parts.add(encoded, trunk, len(encoded.ids), item, first if trunk else None)
    return parts.row(tuple(e.name for item in questions for e in item.encoded))


class _Parts:
    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.blocks: list[Block] = []
        self.places: list[NDArray[np.int64]] = []
        self.mixing = _Mixing()
        self.length = 0

    def add(self, encoded: Encoded, start: int, end: int, of: Questions, trunk: int | None) -> None:
        self.blocks.append(Block(end - start, trunk))
        self.ids.append(encoded.ids[start:end])
        self.labels.append(encoded.labels[start:end])
        for k, (at, mixture) in enumerate(encoded.evidence):
            if start <= at < end:
                self.places.append(self.length + at - start + np.arange(mixture.count))
                organ = encoded.crops[k] if encoded.crops else None
                self.mixing.add(mixture, of.scan if organ is None else of.crops[organ])
        self.length += end - start

    def row(self, names: tuple[str, ...]) -> Row:
        places = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *self.places]))
        blocks = tuple(self.blocks)
        return Row(torch.cat(self.ids), torch.cat(self.labels), blocks, places, *self.mixing.tensors(), names)


class _Mixing:
    def __init__(self) -> None:
        self.count = 0
        self.cells: list[NDArray[np.int64]] = []
        self.groups: list[NDArray[np.int64]] = []
        self.weights: list[NDArray[np.float32]] = []

    def add(self, mixture: Mixture, scan: int) -> None:
        self.cells.append(mixture.cells + scan * CELLS)
        self.groups.append(mixture.groups + self.count)
        self.weights.append(mixture.weights)
        self.count += mixture.count

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        cells = np.concatenate([np.zeros(0, np.int64), *self.cells])
        groups = np.concatenate([np.zeros(0, np.int64), *self.groups])
        weights = np.concatenate([np.zeros(0, np.float32), *self.weights])
        return torch.from_numpy(cells), torch.from_numpy(groups), torch.from_numpy(weights)


def make_organs(scans: Sequence[Questions]) -> Organs:
    """Each organ of each scan once, however many questions ask about the scan."""
    mixing = _Mixing()
    truth: list[int] = []
    for item in scans:
        for organ, abnormal in item.abnormal.items():
            if organ in item.coverage:
                mixing.add(mean_mixture(item.coverage[organ]), item.scan)
                truth.append(abnormal)
    return Organs(*mixing.tensors(), torch.tensor(truth, dtype=torch.long))


def best_fit(questions: Sequence[Questions], capacity: int) -> list[list[Questions]]:
    """Fill rows of ``capacity`` positions, longest first, each into the fullest row that still takes it.

    Questions about a scan that don't fit into one row are divided over several. Raises InputError for a single
    conversation that is longer than a row.
    """
    rows: list[list[Questions]] = []
    room: list[int] = []
    for item in sorted((p for q in questions for p in _divided(q, capacity)), key=len, reverse=True):
        fitting = [k for k, free in enumerate(room) if free >= len(item)]
        if fitting:
            best = min(fitting, key=lambda k: room[k])
        else:
            rows.append([])
            room.append(capacity)
            best = len(rows) - 1
        rows[best].append(item)
        room[best] -= len(item)
    return rows


def _divided(item: Questions, capacity: int) -> list[Questions]:
    pieces: list[list[Encoded]] = [[]]
    used = trunk = item.trunk
    for encoded in item.encoded:
        if len(encoded.ids) > capacity:
            raise InputError(
                f"{encoded.name} has {len(encoded.ids)} positions and a row {capacity}; raise row_tokens"
            )
        length = len(encoded.ids) - trunk
        if used + length > capacity:
            pieces.append([])
            used = trunk
        pieces[-1].append(encoded)
        used += length
    return [replace(item, encoded=tuple(p)) for p in pieces if p]
