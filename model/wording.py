"""The words around evidence that a TumorChain LLM is trained with; training and inference take them from here."""

from __future__ import annotations

from typing import Final

from tumorchain_agent.tools.organs import display_name

ATTENTION: Final = "The question requires greater attention to"
"""Eq. 5, followed by the organ."""
WITHOUT_IIR: Final = "Answer from the whole scan alone."
WITHOUT_COT: Final = "Give the answer only."
"""Appended to a question: the LLM is trained with and without IIR and CoT, and knows by these what is wanted."""


def attention_text(organ: str) -> str:
    """T^i of eq. 5."""
    return f"{ATTENTION} {display_name(organ)}"


def zoom_text(organ: str, side_mm: float) -> str:
    """What announces an organ's zoomed tokens after its own, so that the two can't be confused.

    With the crop's width, to 10 mm, since a crop's scale is its own and its tokens don't tell it.
    """
    return f"{display_name(organ)} at higher resolution, {round(side_mm / 10) * 10} mm across"


def absent_text(organ: str) -> str:
    """What the LLM is told of an organ that the scan doesn't hold; a line of its own."""
    return f"{display_name(organ)} is not in the scan; not assessed\n"


def in_mode(question: str, *, iir: bool = True, cot: bool = True) -> str:
    """The question as it is put to the LLM with or without IIR and CoT; as it stands with both."""
    return " ".join([question, *([] if iir else [WITHOUT_IIR]), *([] if cot else [WITHOUT_COT])])


def tokenless_text(organ: str) -> str:
    """The same of an organ that the scan holds, but outside the model volume."""
    return f"{display_name(organ)} has no evidence tokens; not assessed\n"
