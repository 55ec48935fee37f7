"""The benchmark's prompt: made for our own runner, and read again where DeepTumorVQA's package made it.

Its parts, a line each: modality, patient, spacing (numeric questions), the question with options "A: … B: …" inline
where it is multiple choice, and last the form that the answer must have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tumorchain_agent.errors import DataError
from tumorchain_agent.training.data.record import CoTSample
from tumorchain_agent.training.data.rows import inline_choices

Form = Literal["letter", "number", "yes_no", "phrase"]

INSTRUCTIONS: Final[dict[Form, str]] = {
    "letter": "Answer with ONLY the single letter ({letters}).",
    "number": "Answer with a single number (no units, no extra words).",
    "yes_no": "Answer with 'yes' or 'no'.",
    "phrase": "Answer with the most appropriate short phrase.",
}
_FORMS: Final[tuple[tuple[Form, str], ...]] = (
    ("letter", r"single letter|only the letter|letter of"),
    ("number", r"single number|with a number|numeric"),
    ("yes_no", r"'yes' or 'no'|yes or no"),
    ("phrase", r"short phrase|short answer"),
)
_CONTEXT: Final = re.compile(
    r"(?:patient:|voxel spacing|volume shape|you are given|the (?:image|video)\b)", re.IGNORECASE
)
_INSTRUCTION: Final = re.compile(r"answer with\b.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """A prompt, taken apart."""

    question: str
    form: Form
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> str:
        """The question with its options and the form of its answer, for a language model; a phrase needs no form."""
        if self.form == "phrase":
            return self.question
        shown = " ".join(f"{key}: {text}" for key, text in self.options.items())
        told = INSTRUCTIONS[self.form].format(letters=spoken_letters(tuple(self.options)))
        return f"{self.question} {shown}".strip() + f"\n{told}"


def spoken_letters(letters: tuple[str, ...]) -> str:
    """``A, B, C, or D``."""
    if len(letters) < 2:
        return "".join(letters)
    return f"{', '.join(letters[:-1])}, or {letters[-1]}"


def read_prompt(prompt: str) -> Asked:
    """The question, its options and the wanted form. A prompt that tells no form wants a phrase, or a letter where it
    has options."""
    lines = [line.strip() for line in prompt.strip().splitlines() if line.strip()]
    told = lines.pop() if lines and _INSTRUCTION.match(lines[-1]) and len(lines) > 1 else ""
    body = " ".join(line for line in lines if not _CONTEXT.match(line)) or " ".join(lines)
    form: Form | None = next(
        (name for name, pattern in _FORMS if re.search(pattern, told, re.IGNORECASE)), None
    )
    if form in (None, "letter"):
        try:
            question, options = inline_choices(body)
        except DataError:
            return Asked(body, form or "phrase")
        return Asked(question, "letter", options)
    return Asked(body, form or "phrase")


def asked_of(sample: CoTSample) -> Asked:
    """What a sample asks: a letter where it has choices, else a number, yes or no, or a phrase as its answer is."""
    if sample.choices is not None:
        return Asked(sample.question, "letter", dict(sample.choices))
    if sample.answer_type == "number":
        return Asked(sample.question, "number")
    binary = re.fullmatch(r"(?:yes|no)\W*", sample.answer.strip(), re.IGNORECASE)
    return Asked(sample.question, "yes_no" if binary else "phrase")


def prompt_of(sample: CoTSample) -> str:
    """The whole prompt of a sample, with the patient and the spacing where its file tells them."""
    known = sample.provenance
    patient = ", ".join(
        f"{key}={known[key]}" for key in ("sex", "age", "scanner", "contrast") if known.get(key)
    )
    asked = asked_of(sample)
    lines = ["You are given the full 3D abdominal CT volume."]
    lines += [f"Patient: {patient}."] if patient else []
    if asked.form == "number" and known.get("spacing"):
        lines.append(f"Voxel spacing (mm): {known['spacing']}.  Volume shape: {known.get('shape')}.")
    return "\n".join([*lines, asked.plain])
