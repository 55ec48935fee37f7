"""Baselines: a vision LLM behind an OpenAI-compatible address sees axial slices and the prompt, and nothing of ours."""

from __future__ import annotations

import base64
import io
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tumorchain_agent.errors import ScanError, TumorChainError
from tumorchain_agent.tools.cache import content_key
from tumorchain_agent.tools.scan import open_ct
from tumorchain_agent.training.evaluation import identity
from tumorchain_agent.training.evaluation.prompts import read_prompt
from tumorchain_agent.training.evaluation.reading import read_answer
from tumorchain_agent.training.evaluation.subjects import UNANSWERED, Said

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

log = logging.getLogger(__name__)

SLICES: Final = 8
"""Evenly spread over the middle nine tenths of the scan."""
SIDE: Final = 384
"""Longest side of a slice in pixels."""
WINDOW: Final = (400.0, 50.0)
"""Width and level in HU, as DeepTumorVQA's own slices have."""


class DirectSubject:
    """One call a question: slices from feet to head, then the prompt."""

    def __init__(self, chat_model: BaseChatModel, name: str, slices: int = SLICES) -> None:
        self.name = name
        self._chat_model, self._slices = chat_model, slices
        self._seen: tuple[Path, list[dict[str, Any]]] | None = None

    def made_with(self, scan: Path, image: str) -> str:
        pictures = (self._slices, SIDE, *WINDOW)
        return content_key(identity.of_llm(self._chat_model), pictures, identity.of_files([scan]))

    async def answer(self, prompt: str, scan: Path, image: str) -> Said:
        from langchain_core.messages import HumanMessage

        from tumorchain_agent.graph.llm import generate

        started = time.perf_counter()
        try:
            parts: list[str | dict[Any, Any]] = [*self._pictures(scan), {"type": "text", "text": prompt}]
            reply = await generate(self._chat_model, [HumanMessage(content=parts)], lambda _: None)
        except TumorChainError as error:
            log.warning("%s: %s", image, error)
            return Said(text=UNANSWERED, how="unanswered", note=str(error))
        seconds = time.perf_counter() - started
        text = read_answer(reply.text, read_prompt(prompt))
        if text is None:
            return Said(
                text=UNANSWERED, how="unanswered", raw=reply.text, seconds=seconds, note="can't be read"
            )
        return Said(text=text, how="llm", raw=reply.text, seconds=seconds)

    def _pictures(self, scan: Path) -> list[dict[str, Any]]:
        if self._seen is None or self._seen[0] != scan:
            self._seen = (scan, [_part(each) for each in axial_slices(scan, self._slices)])
        return self._seen[1]


def _part(png: bytes) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"},
    }


def axial_slices(scan: Path, count: int) -> list[bytes]:
    """PNGs in radiological display (patient right on the left, front on top), feet first.

    A ``.npy`` model volume [1, D, H, W] in 0..1 is shown as it is. Raises ScanError.
    """
    volume = _npy(scan) if scan.name.endswith(".npy") else _windowed(scan)
    depth = volume.shape[2]
    places = np.unique(
        np.linspace(0.05 * (depth - 1), 0.95 * (depth - 1), min(count, depth)).round().astype(int)
    )
    return [_png(volume[:, :, place]) for place in places]


def _windowed(scan: Path) -> NDArray[np.float32]:
    """[row, column, slice] in 0..1."""
    ct = open_ct(scan)
    width, level = WINDOW
    shown = np.clip((ct.hu - (level - width / 2)) / width, 0, 1)
    return np.ascontiguousarray(shown.transpose(1, 0, 2)[::-1, ::-1])


def _npy(scan: Path) -> NDArray[np.float32]:
    try:
        values = np.load(scan, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ScanError(f"{scan} can't be read as an array ({error}); restore it") from error
    if values.ndim != 4 or values.shape[0] != 1:
        raise ScanError(f"{scan} has shape {values.shape}, not (1, D, H, W); pass M3D's volumes")
    shown: NDArray[np.float32] = np.clip(values[0].transpose(1, 2, 0), 0, 1).astype(np.float32)
    return shown


def _png(picture: NDArray[np.float32]) -> bytes:
    from PIL import Image

    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
