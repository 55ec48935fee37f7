"""Chat models: a TumorChain checkpoint in this process, or any LLM behind an OpenAI-compatible endpoint.

Both take messages of parts ``{"type": "text", "text": …}`` and ``{"type": "prompt_embeds", "data": …}``,
stream, report ``usage_metadata`` with ``cache_read`` tokens and fail with :class:`ChatModelError`, so that a
caller can't tell them apart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr

from tumorchain_agent.errors import ChatModelError, InputError
from tumorchain_agent.model.checkpoint import NANO_DIR, load_llm, load_tokenizer, read_info, served_name
from tumorchain_agent.model.generate import Decoder, Generation, Sampling, TextStream
from tumorchain_agent.model.llm import pick_device, pick_dtype
from tumorchain_agent.model.template import Message, Part, Role, decode_embeds, render
from tumorchain_agent.records import EvidenceKind
from tumorchain_agent.settings import Settings

if TYPE_CHECKING:
    import torch

_ROLES: Final[dict[str, Role]] = {"system": "system", "human": "user", "ai": "assistant"}
_OPTIONS: Final = ("temperature", "top_p", "max_tokens", "seed")


class TumorChainChatModel(BaseChatModel):
    """A checkpoint's LLM in this process.

    It keeps the keys and values of the latest conversations: a call that continues one computes only what is
    new, and says so in ``usage_metadata["input_token_details"]["cache_read"]``. Safe to call from several
    threads.
    """

    llm: Any = Field(repr=False, exclude=True)
    """``Qwen2ForCausalLM`` in evaluation mode."""
    tokenizer: Any = Field(repr=False, exclude=True)
    checkpoint_id: str
    model_name: str
    """What it is called in answers: the name that a server of the same checkpoint would give it."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=1024, gt=0)
    seed: int | None = None
    kept_conversations: int = Field(default=4, ge=0)

    _decoder: Decoder = PrivateAttr()

    @classmethod
    def from_checkpoint(
        cls, folder: Path | str, *, device: str = "auto", dtype: torch.dtype | None = None, **options: Any
    ) -> TumorChainChatModel:
        """Load a checkpoint folder; ``options`` are this class's fields. Raises :class:`CheckpointError`."""
        info = read_info(folder)
        place = pick_device(device)
        llm = load_llm(folder, device=place, dtype=dtype or pick_dtype(info.size, place))
        return cls(
            llm=llm,
            tokenizer=load_tokenizer(folder),
            checkpoint_id=info.checkpoint_id,
            model_name=served_name(info),
            **options,
        )

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._decoder = Decoder(self.llm, self.tokenizer, self.kept_conversations)

    @property
    def _llm_type(self) -> str:
        return "tumorchain"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name, **{name: getattr(self, name) for name in _OPTIONS}}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return whole(list(self._stream(messages, stop, run_manager, **kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        sampling = self._sampling(kwargs)
        pieces = render(to_messages(messages), self.tokenizer, add_generation_prompt=True)
        generation = self._decoder.start(pieces, sampling)
        for text in _texts(generation, TextStream(self.tokenizer, stop or ())):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
            if run_manager:
                run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk
        yield self._last_chunk(generation)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """Token by token in a worker thread, so that cancelling the caller stops the work."""
        chunks: AsyncIterator[ChatGenerationChunk] = self._astream(messages, stop, run_manager, **kwargs)
        return whole([chunk async for chunk in chunks])

    def _sampling(self, kwargs: dict[str, Any]) -> Sampling:
        unknown = sorted(set(kwargs) - set(_OPTIONS))
        if unknown:
            raise ChatModelError(f"unknown option {unknown[0]!r}: use {', '.join(_OPTIONS)}")
        return Sampling(**{name: getattr(self, name) for name in _OPTIONS} | kwargs)

    def _last_chunk(self, generation: Generation) -> ChatGenerationChunk:
        usage = UsageMetadata(
            input_tokens=generation.prompt_tokens,
            output_tokens=generation.completion_tokens,
            total_tokens=generation.prompt_tokens + generation.completion_tokens,
            input_token_details=InputTokenDetails(cache_read=generation.cached_tokens),
        )
        metadata = {"model_name": self.model_name, "finish_reason": generation.finish_reason}
        message = AIMessageChunk(
            content="", usage_metadata=usage, response_metadata=metadata, chunk_position="last"
        )
        return ChatGenerationChunk(message=message, generation_info=metadata)


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain messages → the template's. Raises :class:`ChatModelError` for a role or part it can't
    show."""
    return [Message(_role(message), tuple(_parts(message.content))) for message in messages]


def chat_model_from(
    settings: Settings,
    *,
    evidence: EvidenceKind = "tokens",
    temperature: float = 0.0,
    max_tokens: int = 1024,
) -> BaseChatModel:
    """The chat model that the settings name: ``llm_url`` when given, else ``model`` or nano in this process.

    Raises :class:`CheckpointError` when token evidence of ``model`` would go to a server of other weights,
    :class:`EndpointError` when nobody answers at ``llm_url`` or not as ``llm_model``,
    :class:`ChatModelError` when the server refuses otherwise, :class:`InputError` when the LLM can't read
    ``evidence``.
    """
    folder = settings.model or NANO_DIR
    if settings.llm_url is None:
        if evidence == "images":
            raise InputError("a TumorChain checkpoint can't see images: pass --llm-url, or --evidence tokens")
        return TumorChainChatModel.from_checkpoint(
            folder, device=settings.device, temperature=temperature, max_tokens=max_tokens
        )
    from tumorchain_agent.model.served import connect

    info = read_info(folder) if evidence == "tokens" else None
    return connect(settings, info, temperature=temperature, max_tokens=max_tokens)


def _role(message: BaseMessage) -> Role:
    name = message.type.removesuffix("MessageChunk").lower()
    if name not in _ROLES:
        raise ChatModelError(f"a {message.type} message can't be shown to the LLM: use system, human and ai")
    return _ROLES[name]


def _parts(content: str | list[Any]) -> Iterator[Part]:
    for part in [content] if isinstance(content, str) else content:
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type")
        if kind == "text":
            yield str(part.get("text", ""))
        elif kind == "prompt_embeds":
            yield decode_embeds(str(part.get("data", "")))
        else:
            raise ChatModelError(
                f"a TumorChain LLM can't read a part of type {kind!r}: use --evidence tokens"
            )


def _texts(generation: Generation, stream: TextStream) -> Iterator[str]:
    for token in generation:
        text = stream.push(token)
        if text:
            yield text
        if stream.stopped:
            generation.finish_reason = "stop"
            return
    rest = stream.finish()
    if rest:
        yield rest


def whole(chunks: list[ChatGenerationChunk]) -> ChatResult:
    """The chunks of a stream as one result."""
    from langchain_core.messages import message_chunk_to_message

    merged = chunks[0]
    for chunk in chunks[1:]:
        merged += chunk
    message = message_chunk_to_message(merged.message)
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=merged.generation_info)])
