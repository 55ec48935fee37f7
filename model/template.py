"""Messages → token ids and embeddings: one rendering for training, for in-process inference and for vLLM.

How vLLM 0.32 splices ``{"type": "prompt_embeds"}`` parts into a chat (``renderers/hf.py``,
``renderers/chat_utils.py``):

1. It registers ``<prompt_embeds>`` as one special token of a copy of the tokenizer.
2. Every ``prompt_embeds`` part becomes the text ``<prompt_embeds>``. A chat template that loops over a
   message's content gets the parts as a list of texts; one that does not gets them joined with line feeds.
3. The whole conversation goes through the chat template and is tokenized at once, without further special
   tokens.
4. Each marker is replaced by as many positions as its tensor has rows, filled with the tensor; all others are
   looked up in the embedding table. A text that holds the marker is refused.

:func:`render` does the same with the same calls, so equal messages give equal sequences.
"""

from __future__ import annotations

import base64
import binascii
import copy
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tumorchain_agent.errors import CheckpointError, InputError
from tumorchain_agent.model.tokenizer import END_OF_TEXT, MESSAGE_END, MESSAGE_START

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Role = Literal["system", "user", "assistant"]
Part = str | Tensor
"""Text, or embeddings [n, hidden] in LLM space."""

EMBEDS_MARKER: Final = "<prompt_embeds>"
RESERVED: Final = (MESSAGE_START, MESSAGE_END, END_OF_TEXT, EMBEDS_MARKER)
"""Not allowed inside a text: they would end or begin a message, or move an embedding."""
IGNORED_LABEL: Final = -100
MAX_EMBEDS_BYTES: Final = 256 * 2**20

LOAD_ERRORS: Final = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    ValueError,
    AttributeError,
    TypeError,
    OSError,
)
"""What ``torch.load`` raises for bytes that are no tensor file."""


@dataclass(frozen=True)
class Message:
    """One turn. An assistant's parts are texts only."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class TokenPiece:
    """Consecutive token ids."""

    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class EmbedsPiece:
    """Embeddings [n, hidden] that stand where a part stood."""

    embeds: Tensor

    def __len__(self) -> int:
        return int(self.embeds.shape[0])


Piece = TokenPiece | EmbedsPiece


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerFast,
    *,
    add_generation_prompt: bool,
) -> list[Piece]:
    """The conversation as pieces in order.

    ``add_generation_prompt`` is true for inference and opens the assistant's turn; in training the last
    message is the assistant's. Raises :class:`InputError` when a text holds a reserved token or an embedding
    is not [n ≥ 1, hidden].
    """
    splicing, marker_id = _splicing_tokenizer(tokenizer)
    as_list = _template_takes_lists(tokenizer)
    conversation = [{"role": m.role, "content": _content(m, as_list)} for m in messages]
    apply: Any = splicing.apply_chat_template
    ids = apply(conversation, tokenize=True, return_dict=False, add_generation_prompt=add_generation_prompt)
    return _splice(ids, marker_id, [part for m in messages for part in m.parts if isinstance(part, Tensor)])


def to_inputs(pieces: Sequence[Piece], embed_tokens: nn.Module) -> Tensor:
    """Input embeddings [1, n, hidden]: ids looked up in the table, embeddings cast to the table's dtype and
    device.

    Differentiable through both. Raises :class:`CheckpointError` when an embedding's width is not the LLM's.
    """
    weight = embed_tokens.get_parameter("weight")
    rows = []
    for piece in pieces:
        if isinstance(piece, TokenPiece):
            rows.append(embed_tokens(torch.tensor(piece.ids, device=weight.device)))
        else:
            check_width(piece.embeds, int(weight.shape[1]))
            rows.append(piece.embeds.to(device=weight.device, dtype=weight.dtype))
    return torch.cat(rows).unsqueeze(0)


def check_width(embeds: Tensor, hidden: int) -> None:
    """Raise :class:`CheckpointError` unless ``embeds`` is [n, hidden]."""
    if embeds.shape[-1] != hidden:
        raise CheckpointError(
            f"evidence tokens are {embeds.shape[-1]} wide and the LLM takes {hidden}: "
            "encode the scan with the checkpoint that the LLM belongs to"
        )


def flat_ids(pieces: Sequence[Piece], placeholder: int = -1) -> list[int]:
    """One id a position, ``placeholder`` where an embedding stands."""
    ids: list[int] = []
    for piece in pieces:
        ids.extend(piece.ids if isinstance(piece, TokenPiece) else [placeholder] * len(piece))
    return ids


def assistant_mask(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """bool [n]: true on the assistants' texts and the ``<|im_end|>`` that closes each, where the loss of eq.
    8 is taken.

    A position is scored as the token to be predicted there, so shift by one against the logits. Raises
    :class:`InputError` when an assistant's text begins with white space, which generation would tokenize
    differently.
    """
    ids = flat_ids(pieces)
    header = tokenizer.encode(f"{MESSAGE_START}assistant\n", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids(MESSAGE_END)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    for start in (i for i, token in enumerate(ids) if token == header[0]):
        stop = start + len(header)
        if ids[start : stop - 1] != header[:-1]:
            continue
        if ids[stop - 1] != header[-1]:
            raise InputError("an assistant message begins with white space: strip it before training")
        if end in ids[stop:]:
            mask[stop : ids.index(end, stop) + 1] = True
    return mask


def labels(pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """int64 [n]: the token id where :func:`assistant_mask` is true, else ``IGNORED_LABEL``; not shifted."""
    return torch.where(
        assistant_mask(pieces, tokenizer), torch.tensor(flat_ids(pieces)), torch.tensor(IGNORED_LABEL)
    )


def encode_embeds(embeds: Tensor) -> str:
    """Base64 of ``torch.save`` of the tensor [n, hidden], the ``data`` of a ``prompt_embeds`` part."""
    _check_embeds(embeds)
    buffer = io.BytesIO()
    torch.save(embeds.detach().cpu().clone(memory_format=torch.contiguous_format), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode_embeds(data: str, *, max_bytes: int = MAX_EMBEDS_BYTES) -> Tensor:
    """The inverse of :func:`encode_embeds`, for data of unknown origin: nothing in it is executed.

    Raises :class:`InputError` when it is not base64, not a tensor file, too large, not [n ≥ 1, hidden], not a
    dense floating-point tensor, or not finite.
    """
    if len(data) > max_bytes * 4 // 3 + 4:
        raise InputError(f"prompt_embeds data is larger than {max_bytes} bytes: send fewer evidence tokens")
    try:
        payload = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"prompt_embeds data is not base64 ({error}): use encode_embeds") from error
    try:
        embeds = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"prompt_embeds data is not a saved tensor ({reason}): use encode_embeds") from error
    if not isinstance(embeds, Tensor):
        raise InputError(f"prompt_embeds data holds a {type(embeds).__name__}: send one tensor [n, hidden]")
    _check_embeds(embeds)
    if embeds.numel() * embeds.element_size() > len(payload):
        raise InputError("prompt_embeds tensor claims more elements than it holds: send a contiguous tensor")
    if not bool(torch.isfinite(embeds).all()):
        raise InputError("prompt_embeds tensor holds NaN or infinity: encode the scan again")
    return embeds


def _check_embeds(embeds: Tensor) -> None:
    if embeds.layout is not torch.strided or embeds.dim() != 2 or 0 in embeds.shape:
        shape = tuple(embeds.shape)
        raise InputError(f"evidence tokens have shape {shape}: a dense tensor [n ≥ 1, hidden] is needed")
    if not embeds.is_floating_point():
        raise InputError(f"evidence tokens are {embeds.dtype}: a floating-point tensor is needed")


def _content(message: Message, as_list: bool) -> str | list[dict[str, str]]:
    texts = [_text_of(part, message.role) for part in message.parts]
    return [{"type": "text", "text": text} for text in texts] if as_list else "\n".join(texts)


def _text_of(part: Part, role: Role) -> str:
    if isinstance(part, Tensor):
        _check_embeds(part)
        if role == "assistant":
            raise InputError("an assistant message holds evidence tokens: put them into a user message")
        return EMBEDS_MARKER
    found = next((token for token in RESERVED if token in part), None)
    if found is not None:
        raise InputError(f"a {role} message holds the reserved token {found}: remove it from the text")
    return part


def _splice(ids: Sequence[int], marker_id: int, tensors: Sequence[Tensor]) -> list[Piece]:
    pieces: list[Piece] = []
    pending: list[int] = []
    remaining = iter(tensors)
    for token in ids:
        if token != marker_id:
            pending.append(token)
            continue
        if pending:
            pieces.append(TokenPiece(tuple(pending)))
            pending = []
        pieces.append(EmbedsPiece(next(remaining)))
    if pending:
        pieces.append(TokenPiece(tuple(pending)))
    found = sum(isinstance(piece, EmbedsPiece) for piece in pieces)
    if found != len(tensors):
        raise CheckpointError(
            f"the chat template showed {found} of {len(tensors)} evidence parts: "
            "use one that shows every part of a message once"
        )
    return pieces


_Splicing = tuple["PreTrainedTokenizerFast", int]
_SPLICING: WeakKeyDictionary[PreTrainedTokenizerFast, _Splicing] = WeakKeyDictionary()
_TAKES_LISTS: WeakKeyDictionary[PreTrainedTokenizerFast, tuple[str, bool]] = WeakKeyDictionary()


def _splicing_tokenizer(tokenizer: PreTrainedTokenizerFast) -> _Splicing:
    from tokenizers import AddedToken

    cached = _SPLICING.get(tokenizer)
    if cached is None or cached[0].chat_template != tokenizer.chat_template:
        splicing = copy.deepcopy(tokenizer)
        splicing.add_tokens([AddedToken(EMBEDS_MARKER, special=True, normalized=False)], special_tokens=True)
        (marker_id,) = splicing.encode(EMBEDS_MARKER, add_special_tokens=False)
        cached = splicing, marker_id
        _SPLICING[tokenizer] = cached
    return cached


def _template_takes_lists(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template loops over a message's content (vLLM's content format ``openai``)."""
    import jinja2

    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise CheckpointError("the tokenizer has no chat template: save the checkpoint with one")
    cached = _TAKES_LISTS.get(tokenizer)
    if cached is None or cached[0] != template:
        probe: Any = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
        try:
            shown = str(tokenizer.apply_chat_template(probe, tokenize=False))
        except (jinja2.TemplateError, TypeError):
            shown = ""
        cached = template, "probe" in shown and "'text'" not in shown
        _TAKES_LISTS[tokenizer] = cached
    return cached[1]
